"""The evaluation of one stage: test queries are answered and scored, and the records become final."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from see_lightning.adapters.files import EXPERT_FILE
from see_lightning.engine.callbacks import StageProgress, Throughput
from see_lightning.engine.context import RunContext
from see_lightning.engine.expert_file import write_expert_file
from see_lightning.engine.ledger import OOD
from see_lightning.engine.pages import kept_pages
from see_lightning.engine.stages import OWN, EvalSet, Stage
from see_lightning.evaluation.evaluate import add_plain, decide, evaluate, merge, remembered
from see_lightning.evaluation.routing import BASE
from see_lightning.files.reading import sha256
from see_lightning.methods.method import ExpertMethod
from see_lightning.models.sharding import in_step, is_sharded
from see_lightning.tasks.task import Task


@dataclass(slots=True)
class RankResult:
    """One rank's records and costs for its share of some tasks' test queries.

    Args:
        answers: records of ``evaluate``, by task; None where only decisions were made.
        responses: records of responses of frozen experts that were not cached before, by task.
        counts: costs, see ``Method.counts``.
        seconds: from the first query to the last.
    """

    answers: dict[str, list[dict[str, Any]]] | None = None
    responses: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class EvaluateStage:
    """Answers the eval sets of a run that are due after a stage.

    Args:
        context: state that the stages of the run share.
        stage: that was trained.
        title: begins every line of progress.
    """

    def __init__(self, context: RunContext, stage: Stage, title: str) -> None:
        self.context, self.stage, self.title = context, stage, title

    def run(self) -> None:
        """Compute the answers and decisions that are not final in the ledger.

        Raises:
            Preempted: a rank received a stop signal.
            Refusal: the server that is to answer gives other answers than this process.
        """
        if self.context.settings.evaluate.engine == "vllm" and self._is_left():
            self._connect()
        for eval_set in self.context.eval_sets.values():
            self._evaluate(eval_set, self._unanswered(eval_set))
            self._evaluate(eval_set, self._undecided(eval_set), only_decide=True)

    def _is_left(self) -> bool:
        """Whether any query is still to be answered or decided on."""
        sets = self.context.eval_sets.values()
        return any(self._unanswered(one) or self._undecided(one) for one in sets)

    def _connect(self) -> None:
        """Let the server answer, once it agrees with this process on the first queries of the run's own tasks."""
        context = self.context
        remote, method = context.remote, context.method
        due = context.eval_sets[OWN].answered_after(self.stage, last=self.stage is context.stages[-1])
        newest_first = sorted(due, key=lambda task: (task != self.stage.task, -due.index(task)))
        found = remote.check(newest_first, context.settings.facts, batch_size=context.settings.eval_batch_size)
        assert isinstance(method, ExpertMethod)
        assert method.response_cache is not None
        method.response_cache.remote = remote.responses
        context.console.print(
            f"{self.title}: {remote.server.url} answers; of {found['checked']} queries that were answered here too,"
            f" {found['other_expert']} went to another expert, {found['other_text']} have another text"
        )
        engine = context.ledger.content["about"].setdefault("engine", {"name": "vllm", "stages": {}})
        engine["url"] = remote.server.url
        engine["stages"][self.stage.name] = found
        context.ledger.commit()

    def _unanswered(self, eval_set: EvalSet) -> list[Task]:
        """The tasks of an eval set that are still to be answered after this stage."""
        ledger, name = self.context.ledger, self.stage.name
        tasks = eval_set.answered_after(self.stage, last=self.stage is self.context.stages[-1])
        if eval_set.name == OWN:
            return [task for task in tasks if task.name not in ledger.stage(name)["answers"]]
        return [task for task in tasks if not ledger.knows(name, eval_set.answers, task.name, task.asked())]

    def _undecided(self, eval_set: EvalSet) -> list[Task]:
        """The run's own tasks that are not answered after this stage, and not yet decided on."""
        if eval_set.name != OWN or not eval_set.decide:  # of other sets, tasks are decided on when they are answered
            return []
        noted = self.context.ledger.stage(self.stage.name).get(eval_set.responses, {})
        return [task for task in eval_set.tasks if task.name not in noted]

    def _evaluate(self, eval_set: EvalSet, tasks: Sequence[Task], *, only_decide: bool = False) -> None:
        """Answer tasks, each rank its share, and make the results final.

        One process makes a task final before it begins the next. Several processes answer all tasks in one stream and
        synchronise at its end: at each synchronisation all wait for the slowest, and small batches are slow.
        """
        ranks = self.context.ranks
        for chunk in [[task] for task in tasks] if ranks.size == 1 else filter(None, [tasks]):
            work = partial(self._compute, eval_set, chunk, only_decide)
            # A rank with a stop signal synchronises with the others first.
            results = ranks.gather(ranks.run_preemptible(work, in_step(self.context.method)))
            self._commit(eval_set, chunk, results)

    def _title(self, eval_set: EvalSet) -> str:
        return self.title if eval_set.name == OWN else f"{self.title} · {eval_set.name}"

    def _compute(self, eval_set: EvalSet, tasks: Sequence[Task], only_decide: bool) -> RankResult:
        """Answer and decide this rank's share of the queries of some tasks."""
        context, method, batch_size = self.context, self.context.method, self.context.settings.eval_batch_size
        shares = [context.shares[eval_set.name][task.name] for task in tasks]
        title = f"{self._title(eval_set)} · {', '.join(task.name for task in tasks)}"
        started = time.monotonic()
        method.counts.clear()
        result = RankResult()
        with kept_pages():
            if not only_decide:
                progress = StageProgress(context.console, title, Throughput())
                trainer = context.trainer(self.stage, [progress], alone=True)
                result.answers = evaluate(trainer, method, shares, batch_size=batch_size)
                if eval_set.name == OOD and self._routes:
                    with torch.inference_mode(not is_sharded(method)):
                        add_plain(method, tasks, result.answers)
            if eval_set.decide:  # verdicts of the experts that routing did not reach
                progress = StageProgress(context.console, f"{title} · verdicts", Throughput())
                trainer = context.trainer(self.stage, [progress], alone=True)
                decide(trainer, method, shares, batch_size=batch_size)
        if isinstance(method, ExpertMethod):
            assert method.response_cache is not None
            entries, method.response_cache.new = method.response_cache.new, []
            result.responses = remembered(entries, shares)
        result.counts = dict(method.counts)
        result.seconds = time.monotonic() - started
        return result

    @property
    def _routes(self) -> bool:
        """Whether the method chooses an expert for each query by itself."""
        method = self.context.method
        return method.traits.has_experts and not method.needs_task_id

    def _commit(self, eval_set: EvalSet, tasks: Sequence[Task], results: Sequence[RankResult]) -> None:
        """Make the answers of all ranks final, in one act."""
        costs: dict[str, Any] = {
            "seconds": round(max(result.seconds for result in results), 3),
            "counts": dict(sorted(sum((Counter(result.counts) for result in results), Counter()).items())),
        }
        scores: dict[str, float] = {}
        for task in tasks:
            blocks: dict[str, list[dict[str, Any]]] = {}
            facts: dict[str, Any] = {}
            if all(result.answers is not None for result in results):
                records = blocks[eval_set.answers] = merge(
                    [(result.answers or {})[task.name] for result in results], task
                )
                scores[task.name] = round(sum(record["score"] for record in records) / len(records), 4)
                facts = {"score": scores[task.name], "queries": len(records)}
                if eval_set.name != OWN:
                    facts |= {"task": task.name, "digest": task.asked()}
                elif self.stage.task and task.name == self.stage.task.name:
                    self._describe_expert(scores[task.name])
            if isinstance(self.context.method, ExpertMethod):
                blocks[eval_set.responses] = [record for result in results for record in result.responses[task.name]]
            self.context.ledger.note_answers(self.stage.name, task.name, blocks, facts | costs)
            costs = {}  # the first task's entry has the costs of all
        self.context.ledger.commit()
        if scores:
            self._report_scores(eval_set, tasks, results, scores)

    def _describe_expert(self, score: float) -> None:
        """Write ``expert.json`` of the stage's expert; final with the next commit, together with the answers."""
        if self.context.ranks.first:
            trained = self.context.ledger.stage(self.stage.name)["trained"]
            path = write_expert_file(self.context, self.stage, trained, score)
            trained["files"][f"expert/{EXPERT_FILE}"] = sha256(path)

    def _report_scores(
        self, eval_set: EvalSet, tasks: Sequence[Task], results: Sequence[RankResult], scores: dict[str, float]
    ) -> None:
        """Log and print the scores of tasks, 0..100 by name."""
        if eval_set.name == OWN:
            for name, score in scores.items():
                for row in self.stage.rows:
                    self.context.tracker.score(after=row + 1, task=name, score=score)
        line = ", ".join(f"{task.name} {scores[task.name]:.2f} ({task.score})" for task in tasks)
        if eval_set.name != OWN and self._routes:
            answers = [record for result in results for block in (result.answers or {}).values() for record in block]
            to_base = sum(record["expert"] == BASE for record in answers)
            line += f"; {to_base / len(answers):.0%} of them reached the base model"
        self.context.console.print(
            f"{self._title(eval_set)}: {line}, {max(result.seconds for result in results):.0f} s"
        )
