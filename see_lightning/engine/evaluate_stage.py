"""The evaluation of one stage: test queries are answered and scored, and what came of them becomes final."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from see_lightning.engine.callbacks import StageProgress, Throughput
from see_lightning.engine.context import RunContext
from see_lightning.engine.expert_file import EXPERT_FILE, write_expert_file
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
    """What one rank computed of its share of some tasks' test queries.

    Args:
        answers: records of ``evaluate``, by task; None where only decisions were made.
        responses: records of what frozen experts generated or decided for the first time, by task.
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
        context: what the stages of the run share.
        stage: that was trained.
        title: begins every line of progress.
    """

    def __init__(self, context: RunContext, stage: Stage, title: str) -> None:
        self.context, self.stage, self.title = context, stage, title

    def run(self) -> None:
        """Answer and decide whatever the ledger does not name as final.

        Raises:
            Preempted: a rank was told to stop.
        """
        for one in self.context.eval_sets.values():
            self._evaluate(one, self._unanswered(one))
            self._evaluate(one, self._undecided(one), only_decide=True)

    def _unanswered(self, one: EvalSet) -> list[Task]:
        """The tasks of an eval set that are still to be answered after this stage."""
        ledger, name = self.context.ledger, self.stage.name
        tasks = one.answered_after(self.stage, last=self.stage is self.context.stages[-1])
        if one.name == OWN:
            return [task for task in tasks if task.name not in ledger.stage(name)["answers"]]
        return [task for task in tasks if not ledger.knows(name, one.answers, task.name, task.asked())]

    def _undecided(self, one: EvalSet) -> list[Task]:
        """The run's own tasks that are not answered after this stage, and not yet decided on."""
        if one.name != OWN or not one.decide:  # of other sets, tasks are decided on when they are answered
            return []
        noted = self.context.ledger.stage(self.stage.name).get(one.responses, {})
        return [task for task in one.tasks if task.name not in noted]

    def _evaluate(self, one: EvalSet, tasks: Sequence[Task], *, only_decide: bool = False) -> None:
        """Answer tasks, each rank its share, and make the results final.

        One process makes a task final before it begins the next. Several are given all tasks in one stream, and meet when
        it ends: at each meeting everyone waits for the slowest, and few queries at a time are slow to answer.
        """
        ranks = self.context.ranks
        for portion in [[task] for task in tasks] if ranks.size == 1 else filter(None, [tasks]):
            work = partial(self._compute, one, portion, only_decide)
            # A rank that was told to stop meets the others first.
            results = ranks.gather(ranks.run_preemptible(work, in_step(self.context.method)))
            self._commit(one, portion, results)

    def _title(self, one: EvalSet) -> str:
        return self.title if one.name == OWN else f"{self.title} · {one.name}"

    def _compute(self, one: EvalSet, tasks: Sequence[Task], only_decide: bool) -> RankResult:
        """This rank's share of the queries of some tasks."""
        context, method, batch_size = self.context, self.context.method, self.context.settings.eval_batch
        shares = [context.shares[one.name][task.name] for task in tasks]
        title = f"{self._title(one)} · {', '.join(task.name for task in tasks)}"
        started = time.monotonic()
        method.counts.clear()
        result = RankResult()
        with kept_pages():
            if not only_decide:
                progress = StageProgress(context.console, title, Throughput())
                trainer = context.trainer(self.stage, [progress], alone=True)
                result.answers = evaluate(trainer, method, shares, batch_size=batch_size)
                if one.name == OOD and self._routes:
                    with torch.inference_mode(not is_sharded(method)):
                        add_plain(method, tasks, result.answers)
            if one.decide:  # by experts that routing did not reach
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

    def _commit(self, one: EvalSet, tasks: Sequence[Task], results: Sequence[RankResult]) -> None:
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
                records = blocks[one.answers] = merge([(result.answers or {})[task.name] for result in results], task)
                scores[task.name] = round(sum(record["score"] for record in records) / len(records), 4)
                facts = {"score": scores[task.name], "queries": len(records)}
                if one.name != OWN:
                    facts |= {"task": task.name, "digest": task.asked()}
                elif self.stage.task and task.name == self.stage.task.name:
                    self._describe_expert(scores[task.name])
            if isinstance(self.context.method, ExpertMethod):
                blocks[one.responses] = [record for result in results for record in result.responses[task.name]]
            self.context.ledger.note_answers(self.stage.name, task.name, blocks, facts | costs)
            costs = {}  # those of all tasks are noted with the first
        self.context.ledger.commit()
        if scores:
            self._tell(one, tasks, results, scores)

    def _describe_expert(self, score: float) -> None:
        """Write the file of the stage's expert; final with the next commit, as the answers that give its score are."""
        if self.context.ranks.first:
            trained = self.context.ledger.stage(self.stage.name)["trained"]
            path = write_expert_file(self.context, self.stage, trained, score)
            trained["files"][f"expert/{EXPERT_FILE}"] = sha256(path)

    def _tell(
        self, one: EvalSet, tasks: Sequence[Task], results: Sequence[RankResult], scores: dict[str, float]
    ) -> None:
        """Log and print the scores of tasks, 0..100 by name."""
        if one.name == OWN:
            for name, score in scores.items():
                for row in self.stage.rows:
                    self.context.tracker.score(after=row + 1, task=name, score=score)
        told = ", ".join(f"{task.name} {scores[task.name]:.2f} ({task.score})" for task in tasks)
        if one.name != OWN and self._routes:
            answers = [record for result in results for block in (result.answers or {}).values() for record in block]
            to_base = sum(record["expert"] == BASE for record in answers)
            told += f"; {to_base / len(answers):.0%} of them reached the base model"
        self.context.console.print(f"{self._title(one)}: {told}, {max(result.seconds for result in results):.0f} s")
