"""The notebook runs from its first cell to its last, and ends with answers of both experts."""

import json
import os
import subprocess
import sys

from see_lightning.config.search_path import CONF

NOTEBOOK = CONF.parent / "docs" / "use_as_a_library.ipynb"


def test_the_notebook_runs(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(CONF.parent)}
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(code)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = "".join(cells[-1]["outputs"][0]["text"]).splitlines()
    assert done.stdout.splitlines()[-len(told) :] == told
