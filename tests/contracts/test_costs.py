"""Counts are what the files hold, and nothing is computed that could be avoided."""

import json
import math

from tests.runs import toy

NAMES = list(toy.TASKS)


def test_counts_are_what_the_files_hold(whole):
    counts = toy.read_results(whole.directory)["counts"]
    method = whole.methods[0]
    answers = toy.read_answers(whole.directory)
    records = [record for stage in answers.values() for record in stage]
    lines = {
        name: [json.loads(line) for line in (folder.parent / "examples.jsonl").read_text().splitlines()]
        for name, folder in whole.trained_stages()
    }
    assert counts["train_examples"] == [len(stage) for stage in lines.values()]
    past = [
        sum(line["task"] != name.split("-", 1)[1] for line in stage) if method.traits.schedule == "sequential" else 0
        for name, stage in lines.items()
    ]
    drawn = [sum(task in NAMES[:stage] for task in tasks) for stage, tasks in enumerate(whole.drawn[: len(past)])]
    assert counts["rehearsed"] == [sum(both) for both in zip(past, drawn, strict=True)]
    assert counts["negatives"] == (past if method.traits.learns_refusals else [0] * len(past))
    # Ten passes, four examples a step.
    assert counts["steps"] == [10 * math.ceil(len(stage) / 4) for stage in lines.values()]
    assert sum(counts["steps"]) == len(whole.steps)
    assert counts["truncated"] == sum(record["truncated"] for record in records)
    assert (counts["token_efficiency"] is None) == (method.traits.schedule == "frozen" or not method.traits.trains)
    assert counts["token_efficiency"] is None or 0 < counts["token_efficiency"] <= 1


def test_costs_are_exactly_those_that_cannot_be_avoided(whole):
    """Frozen experts are asked once in a run; where weights move, every answer is made anew."""
    counts = toy.read_results(whole.directory)["counts"]
    method = whole.methods[0]
    answers = toy.read_answers(whole.directory)
    records = [record for stage in answers.values() for record in stage]
    if not method.traits.has_experts:
        # Rows of the memory or soft prompts are chosen for a query by its features, for which it is read once more.
        assert (counts["generations"], counts["prefills"]) == (len(records), method.reads_per_query * len(records))
        assert (counts["decisions"], counts["decided_again"], counts["remembered"]) == (0, 0, None)
        return
    pairs = {(record["expert"], record["id"]) for record in records}
    assert counts["generations"] == len(pairs)
    assert counts["remembered"] == len(records) - len(pairs)
    assert counts["decided_again"] == 0, "in fp32 no verdict is in doubt"
    queries = len(NAMES) * toy.TESTED
    if not method.traits.learns_refusals:
        # Whoever is not told the task reads each query first, to find its expert.
        looked_at = 0 if method.needs_task_id else len(records)
        assert (counts["decisions"], counts["prefills"]) == (0, len(pairs) + looked_at)
        return
    assert counts["decisions"] == len(method.pool.names) * queries
    if method.pool.header_ids:
        assert counts["prefills"] == queries, "once in a run, for all experts and the base"
        return
    at_birth = {
        (name, r["id"])
        for name, stage in zip(NAMES, answers.values(), strict=True)
        for r in stage
        if r["expert"] == name
    }
    by_base = {pair for pair in pairs if pair[0] == "base"}
    # Whoever accepted a query that was not tested yet reads it once more when its answer is wanted.
    assert counts["prefills"] == counts["decisions"] + len(by_base) + len(pairs - by_base - at_birth)
