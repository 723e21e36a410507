"""A run's test queries with their answers after each stage, as the page of answers shows them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from see_lightning.evaluation.routing import BASE

Record = Mapping[str, Any]
#: Letters of verdicts in the files of the page.
LETTERS = {"pos": "p", "neg": "n", "neither": "x"}


@dataclass(frozen=True, slots=True)
class StageAnswers:
    """The answers to a run's own test queries after one stage.

    Args:
        name: of the stage, such as ``03-trans``.
        experts: that the run had by then, in the order of learning; empty for methods without experts.
        answers: lines of ``answers.jsonl``, one for each query.
    """

    name: str
    experts: tuple[str, ...]
    answers: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Query:
    """A test query and everything about it that is known, with experts as their places in ``TestQueries.experts``.

    Args:
        id: unique within its task.
        prompt: without the beginning that all prompts of the task share; None if it is not known.
        prompt_sha: 16 hex digits of the whole prompt's sha256.
        references: answers that count as right.
        texts: the different answers that were given to it.
        cut: places in ``texts`` of those that were cut at the limit of tokens.
        after: for each stage, the place of its answer in ``texts`` followed by the letters of the verdicts, in the order of
            asking, and if these are not those of the newest experts, ``:`` and the experts; None if it was not answered.
        log_odds: expert, its log-odds of accepting the query in nats, rounded to 4 digits, and the letter of its verdict
            before any threshold.
    """

    id: str
    prompt: str | None
    prompt_sha: str
    references: list[str]
    texts: list[str]
    cut: list[int]
    after: list[str | None]
    log_odds: list[tuple[int, float, str]]


class TestQueries:
    """The test queries of a run, by task in the order of learning.

    Args:
        results: content of ``results.json``.
        stages: of the run, with their answers.
        responses: lines of ``remembered.jsonl`` of all stages, in the order of writing; the latest value of a field counts.
        prompts: prompts by ``prompt_sha``; those of queries that it lacks are not shown.
    """

    __test__ = False  # for pytest this is no class of tests

    def __init__(
        self,
        results: Mapping[str, Any],
        stages: Sequence[StageAnswers],
        responses: Iterable[Record],
        prompts: Mapping[str, str],
    ) -> None:
        self.results, self.stages = results, stages
        self.answers = [{(one["task"], one["id"]): one for one in stage.answers} for stage in stages]
        place = {task: number for number, task in enumerate(results["tasks"])}
        #: Task and id of every query.
        self.keys = sorted(
            dict.fromkeys(key for answers in reversed(self.answers) for key in answers), key=lambda key: place[key[0]]
        )
        counts = Counter(task for task, _ in self.keys)
        #: Number of queries by task.
        self.sizes = {task: counts[task] for task in place if counts[task]}
        self.experts = self._experts()
        self._expert = {name: number for number, name in enumerate(self.experts)}
        self._prompts = self._known(prompts)
        by_task: dict[str, list[str]] = {task: [] for task in self.sizes}
        for key, prompt in self._prompts.items():
            by_task[key[0]].append(prompt)
        #: By task, the beginning that all its prompts share, such as its definition.
        self.beginnings = {task: shared_beginning(found) for task, found in by_task.items()}
        self._responses = self._by_query(responses)

    @property
    def without_prompt(self) -> int:
        """Number of queries whose prompt is not known."""
        return len(self.keys) - len(self._prompts)

    def right(self) -> dict[str, list[str]] | None:
        """By task, the experts whose answer counts as routed right; None if the method does not route."""
        if not self.results.get("routing"):
            return None
        assigned, stream = (
            self.results.get("assigned_expert") or {},
            (self.results.get("stream") or {}).get("tasks", {}),
        )
        return {
            task: [
                name
                for name in self.experts
                if name == assigned.get(task, task) or (task in stream and stream.get(name) == stream[task])
            ]
            for task in self.sizes
        }

    def experts_after(self, stage: StageAnswers) -> list[int]:
        """The experts that the run had after a stage, newest first."""
        return [self._expert[name] for name in reversed(stage.experts) if name in self._expert]

    def columns_after(self, number: int) -> tuple[list[int | None], list[float | None]]:
        """Expert and score of the answer to every query after a stage; None where it was not answered."""
        found = [self.answers[number].get(key) for key in self.keys]
        return (
            [None if one is None else self._expert.get(one["expert"]) for one in found],
            [None if one is None else one["score"] for one in found],
        )

    def __iter__(self) -> Iterator[Query]:
        for key in self.keys:
            answers = [answers.get(key) for answers in self.answers]
            yield self._query(key, answers)

    def _experts(self) -> list[str]:
        """Names of all experts in the order of learning, the base model last; empty for methods without experts."""
        answered = dict.fromkeys(
            one["expert"] for stage in self.stages for one in stage.answers if one["expert"] is not None
        )
        if not answered:
            return []
        learned = dict.fromkeys(name for stage in self.stages for name in stage.experts)
        return [*(name for name in learned | answered if name != BASE), BASE]

    def _known(self, prompts: Mapping[str, str]) -> dict[tuple[str, str], str]:
        """The prompts that are known, by task and id; the lines of some scores hold the prompt."""
        found = {}
        for key in self.keys:
            record = next(answers[key] for answers in reversed(self.answers) if key in answers)
            prompt = record.get("prompt", prompts.get(record["prompt_sha"]))
            if prompt is not None:
                found[key] = prompt
        return found

    def _by_query(self, responses: Iterable[Record]) -> dict[tuple[str, str], dict[int, tuple[float, str]]]:
        """Log-odds and verdict of experts, by the task and prompt of a query and then by expert."""
        found: dict[tuple[str, str], dict[int, tuple[float, str]]] = {}
        for one in responses:
            expert, log_odds, verdict = self._expert.get(one["expert"]), one["log_odds"], one["verdict"]
            if expert is not None and log_odds is not None and verdict is not None:
                of = found.setdefault((one["task"], one["prompt_sha"]), {})
                of[expert] = round(float(log_odds), 4), LETTERS[verdict]
        return found

    def _query(self, key: tuple[str, str], answers: Sequence[Record | None]) -> Query:
        *_, last = (one for one in answers if one is not None)
        texts: dict[tuple[str, bool], int] = {}
        after: list[str | None] = []
        asked: set[int] = set()
        for stage, one in zip(self.stages, answers, strict=True):
            if one is None:
                after.append(None)
                continue
            text = texts.setdefault((one["text"], bool(one.get("truncated"))), len(texts))
            named = [self._expert[name] for name in one.get("asked", ())]
            asked |= {*(named or self.experts_after(stage)[: len(one["verdicts"])])}
            verdicts = "".join(LETTERS[word] for word in one["verdicts"])
            after.append(f"{text}{verdicts}{':' if named else ''}{','.join(map(str, named))}")
        prompt, responses = self._prompts.get(key), self._responses.get((key[0], last["prompt_sha"]), {})
        return Query(
            id=key[1],
            prompt=None if prompt is None else prompt[len(self.beginnings[key[0]]) :],
            prompt_sha=last["prompt_sha"],
            references=list(last.get("references", [last["target"]])),
            texts=[text for text, _ in texts],
            cut=[place for (_, was_cut), place in texts.items() if was_cut],
            after=after,
            # Of runs without verdicts it is not recorded whom the router asked: all log-odds are shown.
            log_odds=[(expert, *one) for expert, one in sorted(responses.items()) if expert in asked or not asked],
        )


def shared_beginning(prompts: Sequence[str]) -> str:
    r"""The beginning that all prompts of a task share, up to the end of a line or else of a word.

    It is empty for fewer than two different prompts, and leaves something of every prompt.

    >>> shared_beginning(["Is it kind?\n\nThe soup", "Is it kind?\n\nThe sun"])
    'Is it kind?\n\n'
    >>> shared_beginning(["Sort the words b a", "Sort the words b c"]), shared_beginning(["one"])
    ('Sort the words b ', '')
    """
    if not prompts or min(prompts) == max(prompts):
        return ""
    first, last = min(prompts), max(prompts)  # what these two share, all share
    size = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    shared = first[: min(size, *(len(prompt) - 1 for prompt in prompts))]
    return shared[: shared.rfind("\n") + 1 or shared.rfind(" ") + 1]
