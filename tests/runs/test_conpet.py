"""Static ConPET in runs: which past rows a task gets, and that their number depends on no number of tasks."""

import json
from collections import Counter

import pytest

from see_lightning.errors import ConfigError
from tests.runs import toy

FAST = ("method=conpet", "optim.epochs=1", "optim.global_batch_size=2", "ratio=0.5")


@pytest.mark.parametrize("old_per_new", [1, 0.5, 3])
def test_steps_depend_on_the_size_of_the_task_and_on_no_number_of_tasks(base, old_per_new):
    longer, shorter = (
        toy.read_results(toy.whole(base, *FAST, f"method.old_per_new={old_per_new}", f"order.tasks={tasks}").directory)[
            "counts"
        ]
        for tasks in ("[sky,sea,ice]", "[sky,ice]")
    )
    old = [0, round(8 * old_per_new), round(12 * old_per_new)]
    assert longer["rehearsed"] == old
    assert longer["train_examples"] == [4, 8 + old[1], 12 + old[2]]
    assert longer["steps"] == [-(-rows // 2) for rows in longer["train_examples"]]
    assert shorter["steps"] == [longer["steps"][0], longer["steps"][2]]


def test_past_rows_come_from_what_is_stored_and_from_every_past_task(base):
    directory = toy.whole(base, *FAST, "data.resample=once", "method.old_per_new=10").directory
    lines = [json.loads(line) for line in (directory / "tasks" / "03-ice" / "examples.jsonl").open()]
    by_task = {name: {row["id"] for row in lines if row["task"] == name} for name in toy.TASKS}
    assert {name: len(ids) for name, ids in by_task.items()} == {"sky": 2, "sea": 4, "ice": 12}, (
        "half of each is stored"
    )
    counts = Counter(row["task"] for row in lines)
    assert abs(counts["sky"] - counts["sea"]) < 5 * 120**0.5, "though sea has twice as many rows"
    before = [json.loads(line) for line in (directory / "tasks" / "02-sea" / "examples.jsonl").open()]
    assert {row["id"] for row in before if row["task"] == "sky"} == by_task["sky"], "the same ones are stored for all"


def test_nothing_stored_is_plain_fine_tuning(base):
    settings = ("optim.epochs=1", "optim.global_batch_size=2")
    runs = [
        toy.whole(base, "method=conpet", "ratio=0", *settings),
        toy.whole(base, "method=conpet", "ratio=0.5", "method.old_per_new=0", *settings),
        toy.whole(base, "method=seqft", *settings),
    ]
    weights = [
        (run.directory / "tasks" / "03-ice" / "expert" / "adapter_model.safetensors").read_bytes() for run in runs
    ]
    assert weights[0] == weights[1] == weights[2]


def test_a_negative_number_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="method.old_per_new must be at least 0"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, *FAST, "method.old_per_new=-1"))
