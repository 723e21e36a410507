"""The table of refusals: how they are shared among past tasks, and whether late tasks cost more."""

import pytest

from see_lightning.reporting.report.refusals import largest_deviation, refusals, steadiness


def results(refused: dict[str, object], tokens: object = None) -> dict[str, object]:
    tasks = list("abcdefghi")
    counts = {} if tokens is None else {"past_tokens": tokens, "negative_tokens": tokens}
    return {"tasks": tasks, "routing": {"refused": refused}, "counts": counts}


def test_a_row_tells_fewest_median_most_and_the_tasks_without():
    refused = {"a": {}, "b": {"a": 4}, "c": {"a": 3, "b": 1}, "d": {"a": 1}, "e": None}
    head, *rows = refusals(results(refused, [0, 40, 44, 9] + [None] * 5))
    assert head[0] == "expert"
    assert rows == [
        ["b", "4", "40", "4", "4", "4", "0"],
        ["c", "4", "44", "1", "2", "3", "0"],
        ["d", "1", "9", "0", "0", "1", "2"],
    ]
    assert refusals(results(refused))[1][2] == "–"


@pytest.mark.parametrize("section", [None, {"refused": {"a": {}, "b": {}}}, {"accuracy": 1.0}])
def test_without_refusals_there_is_no_table(section):
    assert refusals({"tasks": ["a", "b"], "routing": section}) == []


def test_steadiness_compares_from_the_sixth_task_on():
    told = steadiness(results({}, [0, 1, 2, 3, 4, 90, 100, 110, 100]))
    assert told.startswith("From task 6 on,")
    assert "90 to 110 tokens" in told
    assert told.endswith("at most 10.0 % from their mean.")
    for tokens in (None, [0] * 5, [0, 1, 2, 3, 4, 5], [None] * 9):
        assert steadiness(results({}, tokens)) == ""
    assert largest_deviation([7, 7]) == largest_deviation([0, 0]) == 0
