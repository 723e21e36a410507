"""ExSSNeT: exclusive supermasks over one shared adapter (Yadav and Bansal, Findings of ACL 2023, arXiv 2210.10209).

A task first chooses a share of the adapter's numbers, which rest meanwhile, and then trains those of them that no earlier
task has chosen. PAPERS.md says what was inferred, since the paper masks whole networks and here it is a LoRA adapter.
"""

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from see_lightning.config.checks import within
from see_lightning.methods.setup import Setup, Traits
from see_lightning.methods.subnetworks.masks import favouring
from see_lightning.methods.subnetworks.mixture import MaskScores, TrainableSubnetwork
from see_lightning.methods.subnetworks.shared_adapter import SharedAdapter
from see_lightning.methods.subnetworks.sub_experts import SubExperts
from see_lightning.methods.task_id import TaskIdMethod
from see_lightning.methods.training import learning_rate_share
from see_lightning.methods.warm_start import WarmStart
from see_lightning.routing.centroid import Centroid
from see_lightning.routing.oracle import Oracle
from see_lightning.routing.router import Router
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

ADAPTER = "shared"


class ExSSNeT(TaskIdMethod):
    """Each task is a mask over the adapter; what earlier tasks use stays as it is, and may be used again.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        density: p, the share of each matrix that a task uses, 0..1.
        score_share: share of a task's steps that train its scores, 0..1; the others train weights.
        score_lr: peak learning rate of the scores.
        warm_start: how a task's scores begin: ``none`` as drawn; or so that they choose the mask of an earlier task, found
            by ``loss`` or ``knn``, see ``WarmStart``.
        probe: how many training examples that choice looks at.
        task_id: how a query's task is known: ``given`` with it, or inferred by ``key``, the nearest of the tasks' prompts in
            the base model.
    """

    traits = Traits(has_experts=True, router=Oracle, shardable=False, after_training=frozenset({"task_id"}))
    #: By the values of ``task_id``, the routers that they mean.
    TASK_ID: ClassVar[dict[str, type[Router]]] = {"given": Oracle, "key": Centroid}

    def __init__(
        self,
        setup: Setup,
        *,
        density: float,
        score_share: float,
        score_lr: float,
        warm_start: str,
        probe: int,
        task_id: str,
    ) -> None:
        super().__init__(setup, task_id)
        within("method.density", density, 0.001, 1)
        within("method.score_share", score_share, 0, 1)
        within("method.score_lr", score_lr, 0)
        self.density, self.score_share, self.score_lr = density, score_share, score_lr
        self.warm_start = WarmStart(warm_start, probe)
        self.learning: TrainableSubnetwork | None = None
        self.shared: SharedAdapter | None = None
        self._choosing_steps = 0
        self.parts = SubExperts(self.pool, self.keys)

    # ------------------------------------------------------------------------------------------ one task

    def choose_parent(self, task: Task) -> str | None:
        """The task whose mask is most useful to the new one, if scores begin with others' masks."""
        return self.warm_start.choose(self, task)

    def begin_task(self, task: Task, memory: Memory) -> None:
        """The scores choose among all numbers of the adapter, used or not."""
        shared = self._share()
        draw = torch.Generator().manual_seed(seed(self.run_seed, task.name, "scores"))
        scores = []
        for layer in self.pool.layers:
            (ranks, inner), (outer, _) = (weight.shape for weight in shared.pair(layer))
            drawn = MaskScores(
                1, "weight", (ranks, inner, outer), draw, math.ceil
            )  # rounded up as in the authors' code
            scores.append(drawn.to(self.pool.device()))
            if self.parent:
                mask = self.parts.of[self.parent].masks[layer]
                for value, part in zip(scores[-1].values, (mask.down, mask.up), strict=True):
                    value.data = favouring(value.data, part)
        self.learning = TrainableSubnetwork(self.pool, ADAPTER, scores, density=self.density)
        shared.begin()
        self.pool.register(task.name, self.learning)
        self.pool.train_only(task.name, ADAPTER)

    def configure_optimizers(self) -> dict[str, Any]:
        """Two phases, each with the whole of the schedule: scores, then weights."""
        assert self.learning is not None
        steps = int(self.trainer.estimated_stepping_batches)
        choosing = self._choosing_steps = round(self.score_share * steps)
        weights = [weight for layer in self.pool.layers for weight in self._share().pair(layer)]
        groups: list[dict[str, Any]] = [
            {"params": list(self.learning.parameters()), "lr": self.score_lr, "weight_decay": 0.0},
            {"params": weights},
        ]
        optimizer: Optimizer = AdamW(groups, lr=self.optim.lr, weight_decay=self.optim.weight_decay)

        def share(step: int, phase: int) -> float:
            return learning_rate_share(step, phase, self.optim.schedule, self.optim.warmup)

        schedule = LambdaLR(
            optimizer,
            [lambda step: share(step, choosing), lambda step: share(max(0, step - choosing), steps - choosing)],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def edit_gradients(self) -> None:
        """What is not of the phase rests, and so does what an earlier task uses.

        Without a gradient AdamW passes a parameter by. All of them have one until here, for ranks wait for every gradient.
        """
        scores, weights = self.trainer.optimizers[0].param_groups
        resting = weights if self.trainer.global_step < self._choosing_steps else scores
        for parameter in resting["params"]:
            parameter.grad = None
        self._share().spare()

    def after_step(self) -> None:
        """AdamW's decay needs no gradient to move a weight."""
        self._share().put_back()

    def end_task(self, task: Task, memory: Memory) -> None:
        """Its mask is final."""
        if self.learning is None:
            return  # taken over from a run that inferred tasks otherwise: it was ended there
        learned, self.learning = self.learning, None
        prompts = [self.template.prompt_ids(example.prompt) for example in task.train]
        self.parts.keep(task.name, learned, self._share(), prompts)

    def _share(self) -> SharedAdapter:
        """The adapter; B is drawn too, for of zeros there would be nothing to choose."""
        if self.shared is None:
            self.shared = SharedAdapter(self.pool, ADAPTER, self.weights_seed(ADAPTER), draw_up=True)
        return self.shared

    # ------------------------------------------------------------------------------------------ what is kept

    def storage(self) -> dict[str, int]:
        """Weights of the adapter that any task uses, and each task's masks and key."""
        return {"pool": self.pool.adapter_bytes(ADAPTER), "weights": self._share().nbytes()} | self.parts.storage()

    def save(self, task: str, folder: Path) -> None:
        """The task's masked adapter as a plain one, its masks and its key."""
        super().save(task, folder)
        self.parts.save(task, folder)

    def restore(self, task: str, folder: Path) -> None:
        """A task's part of the adapter comes back."""
        self.parts.restore(task, self._share(), folder)
