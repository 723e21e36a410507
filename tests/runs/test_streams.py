"""Runs in which tasks come back, or in which a stage has rows of other tasks."""

import json

import pytest
from omegaconf import OmegaConf

from see_lightning.config.identity import key_of, numbers, run_key
from see_lightning.reporting.runs import read_results
from tests.runs import toy

RECURRING = ("order.tasks=[sea,ice]", "order.stream=recurring")
BLURRY = ("order.stream=blurry", "order.share=0.25")
VISITS = ["sea_1", "ice_1", "sea_2", "ice_2"]
FAST = "optim.epochs=1"


def trained_on(directory, stage):
    lines = (directory / "tasks" / stage / "examples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def recurring(base):
    return toy.whole(base, *RECURRING, "method=seqft", FAST)


def test_each_visit_is_a_stage_with_its_share_of_the_rows(recurring):
    directory = recurring.directory
    stages = [name for name, _ in recurring.trained_stages()]
    assert stages == [f"{n:02d}-{name}" for n, name in enumerate(VISITS, start=1)]
    ids = [[row["id"] for row in trained_on(directory, stage)] for stage in stages]
    assert [len(some) for some in ids] == [4, 6, 4, 6]
    assert {one.partition("-")[0] for one in (*ids[0], *ids[2])} == {"sea"}
    assert len({*ids[0], *ids[2]}) == 8, "another share each time"


def test_a_row_of_the_matrix_is_a_visit_and_a_column_its_test_rows(recurring):
    results = read_results(recurring.directory / "results.json")
    assert results["tasks"] == VISITS
    assert results["stream"] == {"kind": "recurring", "tasks": dict(zip(VISITS, ["sea", "ice"] * 2, strict=True))}
    asked = {}
    for row, (stage, records) in enumerate(toy.read_answers(recurring.directory).items()):
        assert stage == f"{row + 1:02d}-{VISITS[row]}"
        for column, name in enumerate(VISITS):
            scores = [one["score"] for one in records if one["task"] == name]
            assert bool(scores) == (column <= row + 1), "the visits so far and the next one are tested"
            if scores:
                assert results["matrix"][row][column] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
                asked[name] = {one["prompt_sha"] for one in records if one["task"] == name}
    assert [len(queries) for queries in asked.values()] == [2, 2, 2, 2]
    assert len(set.union(*asked.values())) == 2 * toy.TESTED, "each test row is in one visit's column"
    last = results["matrix"][-1]
    assert results["metrics"]["AR"] == pytest.approx(sum(last) / 4, abs=0.01)
    assert any("a column the test rows of a visit" in notice for notice in results["notices"])
    assert [one.get("package") for one in results["benchmark"]["tasks"].values()] == [None] * 4


def test_a_stream_that_is_interrupted_after_every_commit_ends_the_same(base, recurring, tmp_path):
    resumed, _ = toy.broken_off(toy.compose(toy.data_in(base), tmp_path, *RECURRING, "method=seqft", FAST))
    assert toy.kept(resumed.directory) == toy.kept(recurring.directory)


def test_see_reuses_its_expert_when_a_task_comes_back_and_learns_to_refuse_it_else(base):
    settings = ("order.tasks=[ice,sea]", "order.stream=recurring", "optim.epochs=30", "method=see")
    reusing = toy.whole(base, *settings, "method.reuse=accept")
    plain = toy.whole(base, *settings)
    ours, theirs = (toy.read_results(run.directory) for run in (reusing, plain))
    assert ours["given"] == {"ice_1": "ice_1", "sea_1": "sea_1", "ice_2": "ice_1", "sea_2": "sea_1"}
    assert (reusing.fits, plain.fits) == (2, 4)
    refused = theirs["routing"]["refused"]
    assert refused["ice_2"]["ice_1"] > 0, "an expert of its own is taught to refuse the task's rows of before"
    for results, run in ((ours, reusing), (theirs, plain)):
        *_, last = toy.read_answers(run.directory).values()
        share = sum(one["expert"].partition("_")[0] == one["task"].partition("_")[0] for one in last) / len(last)
        assert results["routing"]["same_task"] == pytest.approx(share)
        assert results["routing"]["same_task"] >= results["routing"]["accuracy"]
        takes = [line for line in results["notices"] if " takes " in line]
        assert not any("ice_1 takes" in line and "ice_2" in line for line in takes)


def test_a_blurry_stage_has_rows_of_others_that_count_as_its_own(base):
    run = toy.whole(base, *BLURRY, "method=see", FAST)
    results = toy.read_results(run.directory)
    assert results["tasks"] == list(toy.TASKS)
    assert results["stream"]["kind"] == "blurry"
    stages = [name for name, _ in run.trained_stages()]
    rows = [trained_on(run.directory, stage) for stage in stages]
    accepted = [[row for row in some if row["target"].startswith("++")] for some in rows]
    origin = [[row["id"].partition("-")[0] for row in some] for some in accepted]
    # Of 4, 8 and 12 rows 1, 2 and 3 leave; the other two stages get them in turn.
    assert [{name: some.count(name) for name in toy.TASKS} for some in origin] == [
        {"sky": 3, "sea": 1, "ice": 2}, {"sky": 1, "sea": 6, "ice": 1}, {"sky": 0, "sea": 1, "ice": 9},
    ]  # fmt: skip
    assert len({row["id"] for some in accepted for row in some}) == sum(toy.TASKS.values()), "every row once"
    counts = results["counts"]
    assert counts["negatives"] == counts["rehearsed"] == [len(a) - len(b) for a, b in zip(rows, accepted, strict=True)]
    assert any("a column the test rows of a task" in notice for notice in results["notices"])


def test_the_stream_changes_what_is_learned(base):
    plain, mixed = (toy.whole(base, "method=seqft", FAST, *more) for more in ((), BLURRY))
    weights = [
        (run.directory / "tasks" / "01-sky" / "expert" / "adapter_model.safetensors").read_bytes()
        for run in (plain, mixed)
    ]
    assert weights[0] != weights[1]


def test_variants_of_a_blurry_run_have_the_definition_of_their_own_task(base, tmp_path):
    cfg = toy.compose(
        toy.defined_in(base), tmp_path, *toy.DEFINED, *BLURRY, "method=seqft", FAST, "variants=[input_only]"
    )
    run = toy.run(cfg)
    *_, last = toy.read_answers(run.directory, "input_only").values()
    assert len(last) == toy.TESTED * len(toy.TASKS)


def test_another_task_makes_another_stream_and_grows_none(base, tmp_path):
    for stream in ("order.stream=recurring", "order.stream=blurry"):
        short, long = (
            toy.run(toy.compose(toy.data_in(base), tmp_path, "method=seqft", FAST, f"order.tasks={tasks}", stream))
            for tasks in ("[sea,ice]", "[sea,ice,sky]")
        )
        assert long.fits == (6 if "recurring" in stream else 3)
        assert short.fits < long.fits


def test_off_is_the_default_and_moves_no_key(base, tmp_path):
    def compose(*words):
        return toy.compose(toy.data_in(base), tmp_path, *words)

    old = OmegaConf.to_container(compose(), resolve=True)
    for name in ("stream", "visits", "share"):
        del old["order"][name]  # as in a run of a version without streams
    keys = [run_key(compose(*some)) for some in ((), ("order.stream=none",), ("order.visits=3",), ("order.share=0.5",))]
    assert set(keys) == {key_of(numbers(old))}
    streams = [
        run_key(compose(*some))
        for some in (
            ("order.stream=recurring",), ("order.stream=recurring", "order.visits=3"), ("order.stream=blurry",),
            ("order.stream=blurry", "order.share=0.2"),
        )
    ]  # fmt: skip
    assert len({*keys, *streams}) == 5
    assert run_key(compose("order.stream=recurring", "order.share=0.3")) == streams[0]
