"""No file of the package is longer than a few pages, and no function longer than one."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "see_lightning"
FILE, FUNCTION = 350, 60  # lines

#: Longer than that until they are split. Names leave this list and never enter it.
FILES: set[str] = set()
FUNCTIONS = {
    "cli/calibrate.py:calibrate",
    "cli/harness.py:run_harness",
    "cli/study.py:run_study",
}


def long_files() -> set[str]:
    """Files of the package with too many lines."""
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > FILE
    }


def long_functions() -> set[str]:
    """Functions with too many lines, from ``def`` to the last one, as ``file:name``."""
    return {
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= FUNCTION
    }


def test_no_file_is_longer_than_a_few_pages():
    assert not long_files() - FILES, f"split these files, of more than {FILE} lines"
    assert not FILES - long_files(), "short by now; take them off the list"


def test_no_function_is_longer_than_a_page():
    assert not long_functions() - FUNCTIONS, f"split these functions, of more than {FUNCTION} lines"
    assert not FUNCTIONS - long_functions(), "short by now; take them off the list"
