"""No number moves: every run of the golden files ends as it did when they were made."""

import json
from typing import Any

import pytest

from tests.contracts.conftest import edits_forward
from tests.golden.runs import CASES, GOLDEN, MAKE, differences, measure, path_of, processor, renamed


def test_every_run_has_a_golden_file_and_every_file_a_run():
    files = {path.stem for path in GOLDEN.glob("*.json")}
    without = sorted(set(CASES) - files)
    assert not without, f"there is no golden file yet; make it by: {MAKE} {' '.join(without)}"
    assert not files - set(CASES), "these are of no run"


def marked(name: str) -> Any:
    """A run by its name; activated adapters run nightly where a method does not change the forward pass, as its contracts do."""
    method = name.removesuffix("_activated")
    return pytest.param(name, marks=pytest.mark.nightly if name != method and not edits_forward(method) else ())


@pytest.mark.parametrize("name", [marked(name) for name in CASES if path_of(name).exists()])
def test_a_run_ends_as_its_golden_file_says(name, tmp_path):
    changed = differences(json.loads(path_of(name).read_text(encoding="utf-8")), measure(name, tmp_path))
    assert not changed, "\n".join([f"{name} is not as it was", *changed])


def test_a_change_is_told_by_its_name_and_a_new_value_is_none():
    golden = {"everywhere": {"a/b": 1, "a/c": [1.0, {"d": 9.0}]}, "by_processor": {}}
    near = [1.001, {"d": 9.001}]  # enough on a processor that the file does not know
    assert not differences(golden, {"a/b": 1, "a/c": near, "new": 2})
    assert differences(golden, {"a/b": 2, "a/c": near}) == ["a/b: was 1, is 2"]
    assert differences(golden, {"a/b": 1, "a/c": [1.5, {"d": 9.0}]}) == [
        "a/c: was [1.0, {'d': 9.0}], is [1.5, {'d': 9.0}]"
    ]
    assert differences({**golden, "by_processor": {processor(): {}}}, {"a/b": 1, "a/c": near}), "on one that it knows"


def test_a_value_of_an_old_name_is_found_under_its_new_one(monkeypatch):
    monkeypatch.setattr("tests.golden.runs.RENAMED", {"results/a": "results/b"})
    assert [renamed(name) for name in ("results/a", "results/a/x", "results/ab")] == [
        "results/b",
        "results/b/x",
        "results/ab",
    ]
