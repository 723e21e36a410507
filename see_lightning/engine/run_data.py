"""The data of a finished run from which its results are computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from see_lightning.config.schema import RunConfig
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.stages import EvalSet, Stage
from see_lightning.methods.method import Method
from see_lightning.tasks.task import Task


@dataclass(frozen=True)
class RunData:
    """A run with all stages finished.

    Args:
        ledger: of the run.
        stages: of the run.
        tasks: in their order.
        eval_sets: the test queries that were answered, by name.
        cfg: the composed config.
        config: its typed form.
        method: the method's class, for its traits.
    """

    ledger: Ledger
    stages: list[Stage]
    tasks: list[Task]
    eval_sets: Mapping[str, EvalSet]
    cfg: DictConfig
    config: RunConfig
    method: type[Method]

    @property
    def names(self) -> list[str]:
        """Names of the tasks, in their order."""
        return [task.name for task in self.tasks]

    @property
    def about(self) -> dict[str, Any]:
        """The ledger's facts about the run as a whole."""
        about: dict[str, Any] = self.ledger.content["about"]
        return about

    @cached_property
    def answers(self) -> dict[str, list[dict[str, Any]]]:
        """Stage -> its answers to the run's own queries."""
        return {stage.name: self.ledger.answers(stage.name) for stage in self.stages}

    @property
    def final(self) -> list[dict[str, Any]]:
        """The answers to the run's own queries after the last stage."""
        return self.answers[self.stages[-1].name]

    def last_written(self) -> float:
        """When the answers after the last stage were written, in seconds since 1970."""
        return (self.ledger.folder(self.stages[-1].name) / "answers.jsonl").stat().st_mtime

    def last_answers(self, one: EvalSet) -> list[dict[str, Any]]:
        """The answers to another eval set after the last stage."""
        return self.ledger.answers(self.stages[-1].name, one.answers, one.digests)

    @cached_property
    def trained(self) -> list[dict[str, Any]]:
        """The ledger's entries ``trained``, in the order of stages."""
        return [self.ledger.stage(stage.name)["trained"] for stage in self.stages if stage.task]

    @cached_property
    def blocks(self) -> list[list[dict[str, Any]]]:
        """For each stage, the ledger's entries about its answers and cached responses to the run's own queries."""
        return [
            [
                block
                for kind in ("answers", "remembered")
                for block in self.ledger.stage(stage.name).get(kind, {}).values()
                if "start" in block
            ]
            for stage in self.stages
        ]
