"""The decisions of a finished run's experts on its test queries, from its cached responses."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from see_lightning.errors import Refusal
from see_lightning.evaluation.routing import BASE
from see_lightning.routing.verdicts import Verdict, apply_threshold

Record = Mapping[str, Any]
Decisions = Mapping[str, Sequence[Verdict]]
MIXTURE = "("  # begins the name of a mixture of experts, which answers under some other routers and decides nothing


@dataclass(frozen=True, slots=True)
class RecordedDecisions:
    """The verdict of every expert of a run on every test query, and the scores of the answers that were generated.

    Args:
        tasks: in the order of learning.
        tests: for each stage, the tasks that were tested after it.
        queries: task and id of every test query.
        verdicts: expert -> its verdict on each query.
        log_odds: expert -> its log-odds of accepting each query, finite, in nats; 0 is undecided.
        scores: expert or ``base`` -> the score of its answer to each query, 0..100; None if it was never generated.
    """

    tasks: tuple[str, ...]
    tests: tuple[tuple[str, ...], ...]
    queries: tuple[tuple[str, str], ...]
    verdicts: Decisions
    log_odds: Mapping[str, Sequence[float]]
    scores: Mapping[str, Sequence[float | None]]

    def decisions(self, threshold: float | None) -> Decisions:
        """The decision of each expert on each query: its verdict, or whether its log-odds reach a threshold."""
        if threshold is None:
            return self.verdicts
        return {
            expert: [Verdict.POS if value >= threshold else Verdict.NEG for value in values]
            for expert, values in self.log_odds.items()
        }


def gather(records: Iterable[Record], results: Mapping[str, Any], answers: Sequence[Record]) -> RecordedDecisions:
    """Collect the cached responses of a run by expert and query.

    Args:
        records: lines of ``remembered.jsonl``, of all stages, in the order of writing. Lines of one key complete each
            other; the latest value of a field counts.
        results: content of ``results.json``; tasks that its matrix has not measured after a stage are not simulated there.
        answers: one to every test query, for its task, id, prompt and target, in the order in which scores are averaged.

    Raises:
        Refusal: an expert's verdict or log-odds on a query are missing, or a line belongs to no query of the run.
    """
    tasks, thresholds = tuple(results["tasks"]), results.get("routing", {}).get("thresholds", {})
    cached = _Cached.of(records, tasks, answers)
    decided = {
        expert: [cached.decision(expert, answer, results["score"][answer["task"]]) for answer in answers]
        for expert in (*tasks, BASE)
    }
    return RecordedDecisions(
        tasks,
        tuple(
            tuple(task for task, score in zip(tasks, row, strict=True) if score is not None)
            for row in results["matrix"]
        ),
        tuple(dict.fromkeys((answer["task"], answer["id"]) for answer in answers)),
        {
            expert: [
                apply_threshold(Verdict(found["verdict"]), found["log_odds"], thresholds.get(expert))
                for found in decided[expert]
            ]
            for expert in tasks
        },
        {expert: [found["log_odds"] for found in decided[expert]] for expert in tasks},
        {expert: [found["score"] for found in column] for expert, column in decided.items()},
    )


@dataclass(frozen=True)
class _Cached:
    """Cached responses by their key; queries with the same prompt share one.

    Args:
        responses: key -> those of verdict, log-odds and text that are known.
        keys: expert with task and id, or with the prompt, -> key.
        scores: key, task and id -> score.
    """

    responses: dict[str, dict[str, Any]]
    keys: dict[tuple[str, ...], str]
    scores: dict[tuple[str, ...], float]

    @classmethod
    def of(cls, records: Iterable[Record], tasks: Sequence[str], answers: Sequence[Record]) -> Self:
        """Collect records by their keys; see `gather` for the arguments and errors."""
        prompts = {(answer["task"], answer["id"]): answer["prompt_sha"] for answer in answers}
        cached = cls({}, {}, {})
        for record in records:
            expert, task, id_, key = record["expert"], record["task"], record["id"], record["key"]
            if expert.startswith(MIXTURE):
                continue
            if expert not in (*tasks, BASE) or (task, id_) not in prompts:
                raise Refusal(
                    f"the record of {expert!r} on {id_!r} of {task!r} belongs to no expert or test query of this run."
                )
            new = {name: record[name] for name in ("verdict", "log_odds", "text") if record[name] is not None}
            cached.responses.setdefault(key, {}).update(new)
            for name in _names(expert, task, id_, prompts[task, id_]):
                cached.keys.setdefault(name, key)
            if record["score"] is not None:
                cached.scores[key, task, id_] = record["score"]
        return cached

    def decision(self, expert: str, answer: Record, score_name: str) -> dict[str, Any]:
        """The verdict and log-odds of an expert on a test query, and the ``score`` of its answer; None without an answer."""
        task, id_ = answer["task"], answer["id"]
        names = _names(expert, task, id_, answer["prompt_sha"])
        key = next((self.keys[name] for name in names if name in self.keys), "")
        found = self.responses.get(key, {})
        if expert != BASE and not ("verdict" in found and math.isfinite(found.get("log_odds", math.nan))):
            raise Refusal(
                f"expert {expert!r} has no verdict with finite log-odds on {id_!r} of {task!r}, and a study needs all;"
                f" run the experiment again from the start."
            )
        score = self.scores.get((key, task, id_))
        if score is None and "text" in found:
            score = _score(score_name, found["text"], answer)
        return {**found, "score": score}


def _names(expert: str, task: str, id_: str, prompt: str) -> tuple[tuple[str, ...], ...]:
    """The names under which a cached response is found: its query, then the prompt within its task, then the prompt."""
    return (expert, task, id_), (expert, task, prompt, "prompt"), (expert, prompt)


def _score(name: str, text: str, answer: Mapping[str, Any]) -> float:
    """The score of an answer that was generated for another query with the same prompt."""
    # Late: the import takes a second and is rarely needed.
    from see_lightning.evaluation.scores import best_score, references_of

    return best_score(name, text, references_of(answer), answer.get("prompt", ""))
