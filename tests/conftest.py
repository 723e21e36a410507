"""What all tests share: the environment, which tests one process runs, and what happens where public data are missing."""

import logging
import logging.config
import os
import shutil

# Read when torch is imported, so set before anything of ours is.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = set(filter(None, os.environ.get("SEE_REQUIRE", "").split(",")))


@pytest.fixture(scope="session", autouse=True)
def streams_stay_open():
    """Hydra closes the log handlers of all packages, and absl's closes its stream, which here is pytest's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.config, "_clearExistingHandlers", logging._handlers.clear)
        yield


class ByFileOrMethod(LoadFileScheduling):
    """The tests of a file share its runs in one process; the contracts of a method share theirs, whatever their files."""

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        return test.partition("[")[2] or file if file.startswith("tests/contracts/") else file


def pytest_xdist_make_scheduler(config, log):
    """For ``--dist loadfile``."""
    return ByFileOrMethod(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items):
    """A test on public data, Slurm or a browser is skipped where there is none, unless SEE_REQUIRE=data,slurm,browser."""
    if "browser" not in REQUIRED and not any(map(shutil.which, BROWSERS)):
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason=f"install one of {', '.join(BROWSERS)}"))
    if "slurm" not in REQUIRED and shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        for item in items:
            if item.get_closest_marker("slurm"):
                item.add_marker(pytest.mark.skip(reason="install slurm-wlm and munge"))
    if "data" in REQUIRED or Path(os.environ.get("SEE_DATA", "")).joinpath("ssr_ni_split").is_dir():
        return
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason="set SEE_DATA to the folder with ssr_ni_split"))
