"""A wrong command is refused in one line, at once and without torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))


def run(folder: Path, *overrides: str) -> tuple[int, str, list[str], set[str]]:
    """``run.py`` in an empty folder: exit code, standard output, lines of standard error, modules imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), *overrides],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "SEE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    timed = re.compile(r"import time: +\S+ \| +\S+ \| +(\S+)")
    lines = done.stderr.splitlines()
    imported = {found[1] for line in lines if (found := timed.match(line))}
    assert "hydra" in imported, done.stderr
    return done.returncode, done.stdout, [line for line in lines if not line.startswith("import time:")], imported


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["ratio=7"], "ratio is the share of past examples that is rehearsed, between 0 and 1; got 7.0. For 10 % write 0.1."),
        (["ratio=abc"], "ratio=abc: Value 'abc' of type 'str' could not be converted to Float"),
        (["ratoi=0.1"], "there is no setting 'ratoi'. Did you mean 'ratio'?"),
        (["order=superni10"], "there is no order=superni10. Did you mean 'superni_10'? There are: citb_19_order1, "),
        (["ood.size=3"], "ood.size has no effect here: no foreign tasks are chosen; write ood=NAME too, such as ood=natural_"),
        (["optim.lrr=1"], "there is no setting 'optim.lrr'. Did you mean 'optim.lr'?"),
        (["method.rato=1"], "there is no setting 'method.rato'. Did you mean 'method.ratio'?"),
        (["model.dtype=bf61"], "model.dtype must be one of auto, bf16, fp32; got 'bf61'. Did you mean 'bf16'?"),
        (["order=jsonl"], "benchmark.reader.folder is not set; give benchmark.reader.folder=... on the command line."),
        (["+optim.foo=1"], "'optim.foo'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_command_is_refused_in_one_line(tmp_path, overrides, told):
    code, out, lines, imported = run(tmp_path, *overrides)
    assert code == 1
    (line,) = lines
    assert told in line
    assert line.startswith("error: ")
    assert out == ""
    assert not imported & {"torch", "lightning", "transformers", "peft"}
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        (
            ["--help"],
            ["== Groups (group=option) ==", f"method: {', '.join(METHODS)}", "ratio: 0.1"],
        ),
        (["--cfg", "job"], ["_target_: see_lightning.methods.see.See", "name: pocket_5", "on_bad_row: stop"]),
        (
            ["order=superni_10", "--info", "defaults"],
            ["benchmark/superni | benchmark | False | order/superni_10"],
        ),
    ],
)
def test_help_and_configuration_are_shown_without_torch(tmp_path, overrides, shown):
    code, out, lines, imported = run(tmp_path, *overrides)
    assert (code, lines) == (0, [])
    assert all(text in " ".join(out.split()) for text in shown), out
    assert not imported & {"torch", "lightning", "transformers", "peft"}
    assert list(tmp_path.iterdir()) == []
