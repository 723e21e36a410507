"""SEE's experts that begin as earlier ones: copies that train on, told in the files, and resumed as any other."""

import json
from unittest.mock import patch

import pytest
from safetensors.torch import load_file

from see_lightning.adapters import files
from see_lightning.engine.ledger import Ledger
from see_lightning.methods.see import See
from tests.runs import toy

STAGES = [f"{number:02d}-{name}" for number, name in enumerate(toy.TASKS, start=1)]
HOWS = pytest.mark.parametrize("how", ["loss", "knn"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Tasks of two answers each, told apart by the prompts' beginning."""
    folder = tmp_path_factory.mktemp("data")
    for name, size in toy.TASKS.items():
        rows = [
            {"prompt": f"{'ab'[n % 2] * 4}{name}{n}?", "answer": "xy"[n % 2] * 2}
            for n in range(100, 100 + size + toy.TESTED)
        ]
        for half, some in (("train", rows[:size]), ("test", rows[size:])):
            (folder / f"{name}.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Of each way to choose, an undisturbed run, and its experts as they began."""
    made = {}
    for how in ("loss", "knn"):
        place, begin = tmp_path_factory.mktemp(how), See.begin_task

        def keep(method, task, memory, place=place, begin=begin):
            begin(method, task, memory)
            files.save(method.pool, task.name, place / "began" / task.name)

        with patch.object(See, "begin_task", keep):
            made[how] = toy.run(toy.compose(data, place, f"method.warm_start={how}")), place / "began"
    return made


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


@HOWS
def test_an_expert_begins_as_the_one_that_its_files_name_and_that_one_does_not_move(runs, how):
    run, began = runs[how]
    parents = toy.read_results(run.directory)["warm_start"]
    assert parents[0] is None
    assert any(parents), "nobody began as another"
    ledger = Ledger(run.directory).read()
    for stage, name, parent in zip(STAGES, toy.TASKS, parents, strict=True):
        folder = ledger.verified(stage) / "expert"
        told = json.loads((folder / "expert.json").read_text())["parent"]
        if parent is None:
            assert told is None
            assert not any(tensor.any() for key, tensor in weights(began / name).items() if "lora_B" in key)
            continue
        assert told == next(one for one in STAGES if one.endswith(parent))
        start, old, learned = (
            weights(place) for place in (began / name, run.directory / "tasks" / told / "expert", folder)
        )
        assert all(start[key].equal(old[key]) for key in old)
        assert not all(learned[key].equal(old[key]) for key in old)


@HOWS
def test_a_run_that_is_broken_off_after_every_commit_ends_the_same(runs, data, tmp_path, how):
    cfg = toy.compose(data, tmp_path, f"method.warm_start={how}")
    resumed, _ = toy.broken_off(cfg)
    assert toy.kept(resumed.directory) == toy.kept(runs[how][0].directory)


def test_without_a_warm_start_no_run_tells_of_one(data, tmp_path, runs):
    plain = toy.run(toy.compose(data, tmp_path))
    assert "warm_start" not in toy.read_results(plain.directory)
    for stage in STAGES:
        assert json.loads((plain.directory / "tasks" / stage / "expert" / "expert.json").read_text())["parent"] is None
    first = [
        (run.directory / "tasks" / STAGES[0] / "expert" / "adapter_model.safetensors").read_bytes()
        for run in (plain, *(run for run, _ in runs.values()))
    ]
    assert first[0] == first[1] == first[2], "the first expert has nobody to begin as"
