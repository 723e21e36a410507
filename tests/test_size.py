"""No file of the package is longer than a few pages, and no function longer than one."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "see_lightning"
FILE, FUNCTION = 350, 60  # lines


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
    assert not long_files(), f"split these files, of more than {FILE} lines"


def test_no_function_is_longer_than_a_page():
    assert not long_functions(), f"split these functions, of more than {FUNCTION} lines"
