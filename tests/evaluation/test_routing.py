"""Routing measures against counts by hand and in plain loops."""

import random

import pytest

from see_lightning.evaluation.routing import misrouted, routing_report


def record(task: str, expert: str | None, *verdicts: str) -> dict[str, object]:
    return {"id": f"{task}-0", "task": task, "expert": expert, "verdicts": list(verdicts)}


def test_routing_of_a_few_queries_counted_by_hand():
    records = [
        record("qa", "qa", "neg", "pos"),
        record("qa", "sa", "pos"),
        record("sa", "sa", "pos"),
        record("sa", "base", "neither"),
        record("sa", "base", "neg", "neg"),
    ]
    assert routing_report(records, ["qa", "sa"]) == {
        "accuracy": 2 / 5,
        "confusion": [[1, 1, 0], [0, 1, 2]],
        "tasks": ["qa", "sa"],
        "columns": ["qa", "sa", "base"],
        "base_share": 2 / 5,
        "no_indicator_share": 1 / 5,
    }


def test_routing_of_random_queries_is_what_a_loop_counts():
    draw = random.Random(0)
    tasks = ["qa", "qg", "sa", "sum"]
    columns = [*tasks, "base"]
    for _ in range(50):
        records = [
            record(draw.choice(tasks), draw.choice(columns), *draw.choices(["pos", "neg", "neither"], k=2))
            for _ in range(draw.randint(1, 40))
        ]
        report = routing_report(records, tasks)
        assert report["confusion"] == [
            [sum(r["task"] == task and r["expert"] == column for r in records) for column in columns] for task in tasks
        ]
        assert report["accuracy"] == sum(r["task"] == r["expert"] for r in records) / len(records)
        assert report["base_share"] == sum(r["expert"] == "base" for r in records) / len(records)
        assert report["no_indicator_share"] == sum("neither" in r["verdicts"] for r in records) / len(records)


def test_a_task_that_was_given_the_expert_of_another_is_routed_right_by_that_one():
    records = [record("qa", "qa"), record("sa", "qa"), record("sa", "qg"), record("qg", "qa"), record("qg", "qg")]
    report = routing_report(records, ["qa", "sa", "qg"], {"qa": "qa", "sa": "qa", "qg": "qg"})
    assert report["accuracy"] == 3 / 5
    assert report["confusion"] == [[1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]]
    assert routing_report(records, ["qa", "sa", "qg"])["accuracy"] == 2 / 5


def test_a_task_without_queries_has_an_empty_row():
    assert routing_report([record("qa", "base", "neg")], ["qa", "sa"])["confusion"] == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "at least one answer"),
        ([record("sum", "qa", "pos")], "task 'sum', which has no expert yet"),
        ([record("qa", "sum", "pos")], "given by 'sum'; known: qa, sa, base"),
        ([record("qa", None)], "given by None.*methods with experts"),
    ],
)
def test_answers_that_cannot_be_counted_are_refused(records, message):
    with pytest.raises(ValueError, match=message):
        routing_report(records, ["qa", "sa"])


def test_whose_queries_an_expert_takes_is_told_with_what_it_had_refused_and_what_to_type():
    routing = {
        "tasks": ["a", "b", "c"],
        "confusion": [[5, 7, 0, 0], [0, 20, 0, 0], [2, 0, 17, 1]],
        "refused": {"a": {}, "b": {"a": 4}, "c": {"a": 4, "b": 4}},
    }
    first, second = misrouted(routing)
    assert first.startswith(
        "the expert of b takes 7 of 12 queries of a, of which it had learned to refuse 4 examples: "
    )
    assert "ratio=0.5 or method.min_negatives=8)" in first
    assert "see-lightning calibrate RUN_DIR --calibrate-on train" in first
    assert second.startswith("the expert of a takes 2 of 20 queries of c, which that of c passes on: ")
    assert misrouted(routing, least=0.2) == [first]
    assert misrouted(routing, least=0.7) == []
    routing["refused"] = {"a": None, "b": None, "c": None}
    assert misrouted(routing)[0].startswith("the expert of b takes 7 of 12 queries of a: train with more")


def test_what_is_advised_against_wrong_routing_would_have_an_effect():
    routing = {"tasks": ["a", "b"], "confusion": [[5, 7, 0], [0, 9, 0]], "refused": {"a": {}, "b": {"a": 12}}}
    (told,) = misrouted(routing, ratio=0.5, sizes={"a": 40, "b": 40}, calibrated=True)
    assert told.endswith("12 examples: train with more of them (method.min_negatives=24).")
    (told,) = misrouted(routing, ratio=0.1, sizes={"a": 40, "b": 40}, most_in_all=12, calibrated=True)
    assert told.endswith("12 examples: train with more of them (method.max_negatives=24).")
    (told,) = misrouted(routing, ratio=0.5, sizes={"a": 40, "b": 40}, most_in_all=13, calibrated=True)
    assert told.endswith("(method.min_negatives=24).")
    (told,) = misrouted(routing, ratio=0.1, sizes={"a": 12, "b": 40})
    assert "give more rows, or set thresholds" in told
