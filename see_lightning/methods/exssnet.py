"""ExSSNeT: exclusive supermasks over one shared adapter (Yadav and Bansal, Findings of ACL 2023, arXiv 2210.10209).

A task first trains scores that select a share of the frozen adapter's weights, and then trains the selected weights that no
earlier task has selected. PAPERS.md lists what was inferred, since the paper masks whole networks instead of a LoRA adapter.
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
    """Each task is a mask over the adapter; weights of earlier tasks are frozen and can be used again.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        density: p, the share of each matrix that a task uses, 0..1.
        score_share: share of a task's steps that train scores, 0..1; the other steps train weights.
        score_lr: peak learning rate of the scores.
        warm_start: initialisation of a task's scores: ``none`` at random; or so that they select the mask of an earlier task,
            chosen by ``loss`` or ``knn``, see ``WarmStart``.
        probe: number of training examples that this choice uses.
        task_id: source of a query's task: ``given``, or inferred by ``key``, the nearest centroid of the tasks' prompts.
    """

    traits = Traits(has_experts=True, router=Oracle, shardable=False, after_training=frozenset({"task_id"}))
    #: Value of ``task_id`` -> router.
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
        """The most transferable earlier task, with ``warm_start``."""
        return self.warm_start.choose(self, task)

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Create the task's scores over all weights of the adapter."""
        shared = self._share()
        draw = torch.Generator().manual_seed(seed(self.run_seed, task.name, "scores"))
        scores = []
        for layer in self.pool.layers:
            (ranks, inner), (outer, _) = (weight.shape for weight in shared.pair(layer))
            drawn = MaskScores(1, "weight", (ranks, inner, outer), draw, math.ceil)  # the authors' code rounds up
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
        """Two phases, scores and then weights, each with the full learning rate schedule."""
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
        """Remove the gradients of the other phase, and set those of weights that earlier tasks use to 0.

        AdamW skips a parameter whose gradient is None. They are removed here and not earlier, since ranks wait for every
        gradient.
        """
        scores, weights = self.trainer.optimizers[0].param_groups
        resting = weights if self.trainer.global_step < self._choosing_steps else scores
        for parameter in resting["params"]:
            parameter.grad = None
        self._share().spare()

    def after_step(self) -> None:
        """Restore weights that earlier tasks use, which weight decay changes without a gradient."""
        self._share().put_back()

    def end_task(self, task: Task, memory: Memory) -> None:
        """Fix the mask."""
        if self.learning is None:
            return  # its experts come from a run with another ``task_id``, which ended the task
        learned, self.learning = self.learning, None
        prompts = [self.template.prompt_ids(example) for example in task.train]
        self.parts.keep(task.name, learned, self._share(), prompts)

    def _share(self) -> SharedAdapter:
        """The adapter; B is drawn too, since a mask over zeros has no effect."""
        if self.shared is None:
            self.shared = SharedAdapter(self.pool, ADAPTER, self.weights_seed(ADAPTER), draw_up=True)
        return self.shared

    # ------------------------------------------------------------------------------------------ what is kept

    def storage(self) -> dict[str, int]:
        """Weights of the adapter that any task uses, and each task's masks and key."""
        return {"pool": self.pool.adapter_bytes(ADAPTER), "weights": self._share().nbytes()} | self.parts.storage()

    def save(self, task: str, folder: Path) -> None:
        """Save the task's masked adapter as a LoRA adapter, its masks and its key."""
        super().save(task, folder)
        self.parts.save(task, folder)

    def restore(self, task: str, folder: Path) -> None:
        """Load a task's part of the adapter."""
        self.parts.restore(task, self._share(), folder)
