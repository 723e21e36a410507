"""With changed rows of a later task, a run copies the stages before it, and ends like one that was started with these rows."""

import json

import pytest
from _pytest.mark import ParameterSet

from tests.contracts.conftest import FIRST, ORDINARY, TRAINING
from tests.runs import toy

SETTINGS = ("order.tasks=[sky,ice]", "optim.epochs=3")
#: Kept by name, or in a state that a task's end does not make alone.
DAILY = {*FIRST, "coso", "moelora"}


def cases() -> list[ParameterSet]:
    """One method of each set of traits; the others with ``make test-all``."""
    return [
        pytest.param(*one.values, id=one.id, marks=() if one.values[0][0] in DAILY else pytest.mark.nightly)
        for one in ORDINARY
        if one.values[0][0] in (*TRAINING, "planted")
    ]


@pytest.mark.parametrize("method", cases(), indirect=True)
def test_what_was_learned_before_the_changed_rows_is_taken_over_whole(method, tmp_path):
    data = toy.write_tasks(tmp_path / "data")
    before = toy.run(toy.compose(data, tmp_path / "runs", *method, *SETTINGS))
    path = data / "ice.train.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({"prompt": "new row?", "answer": "x"}), *rows[1:]]) + "\n")
    after = toy.run(toy.compose(data, tmp_path / "runs", *method, *SETTINGS))
    fresh = toy.run(toy.compose(data, tmp_path / "fresh", *method, *SETTINGS))
    ours, theirs = (toy.read_results(one.directory) for one in (after, fresh))
    if before.fits == 2:  # stages, not one stage of all tasks
        assert after.fits == 1
        assert ours["grown_from"] == str(before.directory)
    for name in ("matrix", "metrics", "method_report", "storage", "capacity", "routing", "last_row"):
        assert ours.get(name) == theirs.get(name), name
    for file in (path for path in (fresh.directory / "tasks").glob("*/expert/*") if path.is_file()):
        assert (after.directory / file.relative_to(fresh.directory)).read_bytes() == file.read_bytes(), file.name
