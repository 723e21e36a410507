"""A task's stage: the hooks of the method, experts that are not trained, and the commit that makes the stage final."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from see_lightning.config.origins import Origin
from see_lightning.engine.context import RunContext
from see_lightning.engine.examples_file import write_examples
from see_lightning.engine.expert_file import write_expert_file
from see_lightning.engine.ledger import dump
from see_lightning.engine.method_costs import MethodCosts, of_all_ranks
from see_lightning.engine.origin import import_expert, write_origin
from see_lightning.engine.router import learn_route, save_expert, storage_of
from see_lightning.engine.row_counts import stored_counts
from see_lightning.engine.stages import Stage
from see_lightning.errors import ConfigError
from see_lightning.evaluation.routing import BASE
from see_lightning.methods.method import Assignment, Method
from see_lightning.tasks.task import Task


class TaskStage:
    """A task's stage: what a method does in it beside training, and how it becomes final.

    Args:
        context: state that the stages of the run share.
        stage: of the run.
        task: the task of the stage.
        title: begins every line of progress.
    """

    def __init__(self, context: RunContext, stage: Stage, task: Task, title: str) -> None:
        self.context, self.stage, self.task, self.title = context, stage, task, title
        self.folder = context.ledger.folder(stage.name)
        #: Where the task's expert comes from, if it is not trained as all others are.
        self.origin = context.settings.origins.get(task.name)
        own = self.origin.training if self.origin else {}
        self.settings = replace(
            context.settings,
            seed=int(own.get("seed", context.settings.seed)),
            epochs=int(own.get("epochs", context.settings.epochs)),
        )

    @cached_property
    def costs(self) -> MethodCosts:
        """Time and tokens of the method's hooks in this stage."""
        return MethodCosts(self.context.method.pool.model.get_input_embeddings())

    def _assign(self) -> Assignment:
        """Let the method choose the expert for the task.

        Raises:
            RuntimeError: the ranks chose different ones.
        """
        method, ranks = self.context.method, self.context.ranks
        with self.costs.of("assign"):
            with _at_rest(method):
                assigned = method.assign(self.task)
            if len({one.expert for one in ranks.gather(assigned)}) > 1:
                raise RuntimeError(
                    f"{self.stage.name}: the ranks chose different experts for this task; run all ranks on the same hardware."
                )
            own = assigned.expert == self.task.name
            choice = (
                "an expert of its own" if own else f"explained by the expert of {assigned.expert}, nothing is trained"
            )
            self.context.console.print(f"{self.title}: {choice} ({method.reason(assigned)})")
        return assigned

    def _keep(self) -> None:
        """Make a stage final whose task trains nothing: the method keeps of it what later answers need."""
        self._begin_task()
        self._end_task()
        self._commit_untrained()
        self.context.console.print(f"{self.title}: nothing is trained")

    def _reuse(self, assigned: Assignment) -> None:
        """Make a stage final whose task reuses an expert; nothing is trained."""
        self._commit_untrained(assigned=asdict(assigned))

    def _take_from(self, origin: Origin) -> None:
        """Make a stage final whose task gets an imported expert, or none; nothing is trained."""
        content: dict[str, Any] = {"from": None}
        more: dict[str, Any] = {}
        if origin.folder is not None:
            self._begin_task()
            source = Path(origin.folder)
            content = import_expert(self.context.method, self.task.name, source, self.context.settings.facts)
            for note in content["notes"]:
                self.context.console.print(f"note: {source}: {note}")
            more |= self._quantize()
        self._end_task()
        if self.context.ranks.first:
            self.context.ledger.check_held()
            write_origin(self.folder / "expert", content)
        more |= {"import_notes": content["notes"]} if content.get("notes") else {}
        never_refuses = self.task.name in self.context.method.never_refusing
        if origin.is_none:
            self._commit_untrained(saves=False, assigned={"expert": BASE, "z": {}})
        else:
            self._commit_untrained(**more, **({"never_refuses": True} if never_refuses else {}))
        done = "has no expert" if origin.is_none else f"expert imported from {content['from']}"
        refuses = ", which never refuses" if never_refuses else ""
        self.context.console.print(f"{self.title}: {done}{refuses}, nothing is trained")

    def _commit_untrained(self, *, saves: bool = True, **more: Any) -> None:
        """Make a stage final without training.

        Args:
            saves: whether the method has something to save.
            more: further facts of the stage.
        """
        method = self.context.method
        if self.context.ranks.first:
            self.context.ledger.check_held()
            write_examples(self.folder / "examples.jsonl", [])
            if saves:
                save_expert(method, self.task.name, self.folder / "expert")
        nothing = dict.fromkeys(("examples", "rehearsed", "past_tokens", "negatives", "steps", "tokens", "computed"), 0)
        facts = {
            "loss": None,
            "seconds": round(self.costs.seconds("assign"), 3),
            "hooks": self._hooks(),
            "storage": storage_of(method),
            **stored_counts(self.context, []),
            **self._report(),
        }
        self._commit({**nothing, "trained_weights": 0, **facts, **more})

    def _begin_task(self) -> None:
        method, ranks = self.context.method, self.context.ranks
        with self.costs.of("choose_parent"):
            method.parent = ranks.gather(method.choose_parent(self.task))[0]  # the same one on every rank
        with self.costs.of("begin_task"):
            method.begin_task(self.task, self.context.memory)

    def _quantize(self) -> dict[str, float]:
        """Round the task's new expert to what is stored of it; the relative error as a fact of the stage."""
        pool = self.context.method.pool
        if pool.adapter.quantization == "none":
            return {}
        return {"quantization_error": round(pool.quantize(self.task.name), 6)}

    def _end_task(self) -> None:
        method = self.context.method
        if self.origin and self.origin.is_none:
            return
        with self.costs.of("end_task"), _at_rest(method):
            method.end_task(self.task, self.context.memory)
            learn_route(method, self.task)

    def _report(self) -> dict[str, Any]:
        """The method's own facts.

        Raises:
            ConfigError: JSON cannot hold them.
        """
        method = self.context.method
        report = method.report()
        try:
            dump(report)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{type(method).__name__}.report returns values that JSON cannot hold: {error}. Return finite numbers, texts,"
                f" lists, dictionaries or None."
            ) from error
        return {"report": report} if report else {}

    def _hooks(self) -> dict[str, Any]:
        return of_all_ranks(self.context.ranks.gather(self.costs.spent))

    def _commit(self, facts: dict[str, Any]) -> None:
        """Make the saved files of the training final."""
        if not self.stage.tests_own:  # else the stage's evaluation writes it, with the score
            write_expert_file(self.context, self.stage, facts, score=None)
        expert = sorted(path.name for path in (self.folder / "expert").glob("*"))
        self.context.ledger.commit_trained(self.stage.name, ["examples.jsonl", *(f"expert/{n}" for n in expert)], facts)


@contextmanager
def _at_rest(method: Method) -> Iterator[None]:
    """A context without gradients and without dropout."""
    with torch.no_grad():
        method.eval()
        yield
        method.train()  # as fit leaves it: modules in eval mode would be trained without dropout
