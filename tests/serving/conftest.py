"""The toy's runs, as in ``tests/runs``."""

import pytest

from tests.runs import toy
from tests.runs.conftest import base as base
from tests.serving.server import Served, served


@pytest.fixture(scope="session", params=[(), toy.ACTIVATED, ("method=seqft",)], ids=["see", "activated", "seqft"])
def directory(base, request):
    """A finished run."""
    return toy.whole(base, *request.param).directory


@pytest.fixture(scope="session")
def see(base):
    """The finished run of SEE."""
    return toy.whole(base).directory


@pytest.fixture(scope="module")
def server(directory) -> Served:
    """A server of a run."""
    with served(directory) as one:
        yield one


@pytest.fixture(scope="module")
def see_server(see) -> Served:
    """A server of SEE's run."""
    with served(see) as one:
        yield one
