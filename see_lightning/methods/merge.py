"""Merging: one adapter per task is trained independently, and a merge rule makes one model of all, which answers.

Letters: R rank, I and O the sizes of a layer's input and output, B rows, T tasks, L labels, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from see_lightning.adapters import files
from see_lightning.adapters.composites import LazyDense
from see_lightning.adapters.gated_sum import GatedSum, Weights
from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.checks import within
from see_lightning.data.example import Example
from see_lightning.merging.arithmetic import Arithmetic
from see_lightning.merging.changes import Changes, LowRank, as_low_rank, tensors
from see_lightning.merging.rule import Merged, MergeRule, TaskVector
from see_lightning.methods.loss import answer_loss
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.seeds import seed
from see_lightning.tasks.batches import IGNORED
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def changes_of(pool: ExpertPool, adapter: str) -> dict[str, LowRank]:
    """What a LoRA adapter changes at each layer, its scale included; copies, which further training leaves as they are."""
    return {
        layer: LowRank(pool.scale(layer, adapter) * b_OR.detach(), a_RI.detach().clone())
        for layer, (a_RI, b_OR) in pool.pairs(adapter).items()
    }


class Merge(OneAdapterMethod):
    """One adapter, merged after each task from adapters that were trained independently, as those of ``stl``.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        rank: rank to which the merged changes of the model that answers are truncated; None leaves them exact. What a rule
            keeps for further merging is not truncated.
    """

    traits = Traits(peft_loadable=False, trains_as="see_lightning.methods.stl.Stl", after_training=frozenset({"rank"}))
    #: Class and settings of the rule that it has if a run names none: the mean.
    own_rule: ClassVar[tuple[type[MergeRule], Mapping[str, Any]]] = (
        Arithmetic,
        {"sparsify": "none", "density": 1, "consensus": "mean", "scale": 1},
    )
    ADAPTER, TRIED = "(merged)", "(tried)"  # no task has such a name

    def __init__(self, setup: Setup, *, rank: int | None) -> None:
        super().__init__(setup)
        within("method.rank", rank, 1)
        self.rank = rank
        rule, settings = self.own_rule
        self.merge_rule: MergeRule = rule(**settings)  # the engine sets another one, if the run names it
        self.merged: Merged | None = None
        #: Names of the adapters, the oldest task's first.
        self.tasks: list[str] = []

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Adds a new adapter to the base model."""
        self.pool.add_adapter(task.name, self.weights_seed(task.name))
        self.pool.train_only(task.name)

    def end_task(self, task: Task, memory: Memory) -> None:
        """Merges the task's adapter with what is kept of the earlier ones."""
        rows = self.proxy_rows(task, memory) if self.merge_rule.rows else []
        gradient = partial(self.coefficient_gradient, rows, [*self.tasks, task.name]) if rows else None
        model = self._keep(task.name, self.merge_rule.add(self.merged, self._vector(task.name), gradient))
        model.compute()  # here, where its time is that of the method

    def proxy_rows(self, task: Task, memory: Memory) -> list[Example]:
        """The stored rows of past tasks on which a rule computes losses, and as many of the task."""
        size = self.merge_rule.rows
        past = memory.rehearse(task, ratio=1e-9, resample="once", at_least=size)
        own = Random(seed(self.run_seed, task.name, "proxy")).sample(list(task.train), min(size, len(task.train)))
        return [*past, *own]

    def coefficient_gradient(self, rows: Sequence[Example], tasks: Sequence[str], coefficients_T: Tensor) -> Tensor:
        """Derivatives of the mean loss on rows by the merging coefficients of tasks, (T,); the same on all ranks."""
        coefficients_T = coefficients_T.float().to(self.pool.device()).requires_grad_()
        tried = GatedSum(self.pool, tasks, lambda: ())
        self.pool.register(self.TRIED, tried, is_expert=False)
        total_T = torch.zeros_like(coefficients_T)
        (batch,) = self.batches(rows, len(rows))
        for part in batch.split(self.optim.loss_reduction):
            labels_B = (part.labels_BS != IGNORED).sum(1)
            with torch.enable_grad():
                with tried.weighted(Weights(coefficients_T.expand(len(labels_B), -1), labels_B)):
                    logits_LV = self.pool.logits(part, self.TRIED, grad=True)
                loss = answer_loss(logits_LV, part.labels_BS, self.optim.loss_reduction)
                (found_T,) = torch.autograd.grad(part.weight * loss, coefficients_T)
            total_T += found_T
        del self.pool.composites[self.TRIED]
        return self.average(total_T).cpu()

    def _vector(self, task: str) -> TaskVector:
        return TaskVector(changes_of(self.pool, task), seed(self.run_seed, task, "merge"))

    def _keep(self, task: str, merged: Merged) -> LazyDense:
        self.tasks.append(task)
        self.merged = merged
        self.pool.register(self.ADAPTER, model := LazyDense(lambda: self._truncated(self.merge_rule.result(merged))))
        return model

    def _truncated(self, changes: Changes) -> Changes:
        return changes if self.rank is None else as_low_rank(changes, self.rank)[0]

    def report(self) -> dict[str, Any]:
        """``numbers``: what the rule computed besides weights."""
        return {"numbers": dict(self.merged.numbers)} if self.merged and self.merged.numbers else {}

    def storage(self) -> dict[str, int]:
        """``weights``: the merged model's changes; ``state``: what the rule keeps beside them; the measure is one adapter."""
        if self.merged is None:
            return {}
        weights = sum(weight.nbytes for weight in self.pool.composites[self.ADAPTER].weights())
        kept = [] if self.merge_rule.bounded else [tensors(c) for one in self.merged.kept for c in one.changes.values()]
        state = sum(tensor.nbytes for pair in kept for tensor in pair)
        sizes = {"pool": self.pool.adapter_bytes(self.tasks[0]), "weights": weights}
        return {**sizes, **({"state": state} if state else {})}

    def saved_adapter(self, task: str) -> str | None:
        """The adapter of the task, from which the merged model is made again."""
        return task

    def restore(self, task: str, folder: Path) -> None:
        """Loads the adapter of a past task, and merges it if it was merged; ``end_task`` follows if it was not."""
        self.pool.add_adapter(task, weights_seed=0)
        self.pool.load_weights(task, files.read(self.pool, task, folder))
        if tensors := files.load_state(folder, self.pool.device()):
            self.load_state(task, tensors)

    def state(self) -> dict[str, Tensor]:
        """``merged``: how many adapters are merged, the task's own included; and the rule's numbers."""
        if self.merged is None:
            return {}
        numbers = {name: torch.tensor(one, dtype=torch.float64) for name, one in self.merged.numbers.items()}
        return {"merged": torch.tensor(self.merged.number), **numbers}

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """Merges the task's adapter with those before it."""
        numbers = {name: float(one) for name, one in tensors.items() if name != "merged"}
        self._keep(task, self.merge_rule.restored(self.merged, self._vector(task), numbers))
