"""Mixtures of SubExperts, a reconstruction: sparse parts of one shared pool of experts, a router for each task.

The idea is that of Kang, *Mixtures of SubExperts for Large Language Continual Learning* (arXiv 2511.06237), of which abstract
and captions are known to us and the equations are not. What stands here was built from the same author's earlier methods
(WSN, Soft-TF); PAPERS.md lists choice by choice what was inferred. Numbers of this method are not the paper's.
"""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from see_lightning.adapters.files import read_tensors, write_tensors
from see_lightning.config.checks import one_of, within
from see_lightning.methods.setup import Setup, Traits
from see_lightning.methods.subnetworks.mixture import MaskScores, TrainableSubnetwork
from see_lightning.methods.subnetworks.shared_adapter import SharedAdapter
from see_lightning.methods.subnetworks.sub_experts import SubExperts
from see_lightning.methods.task_id import TaskIdMethod
from see_lightning.routing.centroid import Centroid
from see_lightning.routing.gradient import Gradient
from see_lightning.routing.oracle import Oracle
from see_lightning.routing.router import Router
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

POOL = "pool"  # the adapter that all tasks share
SCORES = "scores.safetensors"


class Moses(TaskIdMethod):
    """Each task uses a share of the pool, found by scores; what earlier tasks use stays as it is, and may be used again.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        experts: N, experts of ``adapter.rank`` in the pool.
        top_k: k, experts that a token goes to, at most N.
        density: c, the share of the pool that a task uses, 0..1.
        granularity: ``weight`` masks every number (R1 in PAPERS.md), ``rank`` whole ranks (R2).
        task_id: how a query's task is known: ``given`` with it (TIL), or inferred (TaIL): by ``key``, the nearest of the
            tasks' prompts in the base model, or by ``entropy``, the sub-expert that would make the answer surest.
        scores: ``kept`` from task to task, as in WSN, or ``fresh`` for each.
        router: ``copied`` from the task before, or ``fresh``.
        own_pool: whether each task has a pool of its own; no weight of it is shared then.
    """

    traits = Traits(
        has_experts=True,
        router=Oracle,
        shardable=False,
        peft_loadable=False,
        after_training=frozenset({"task_id"}),
    )
    #: By the values of ``task_id``, the routers that they mean.
    TASK_ID: ClassVar[dict[str, type[Router]]] = {"given": Oracle, "key": Centroid, "entropy": Gradient}

    def __init__(
        self,
        setup: Setup,
        *,
        experts: int,
        top_k: int,
        density: float,
        granularity: str,
        task_id: str,
        scores: str,
        router: str,
        own_pool: bool,
    ) -> None:
        super().__init__(setup, task_id)
        within("method.experts", experts, 1)
        within("method.top_k", top_k, 1, experts)
        within("method.density", density, 0.001, 1)
        one_of("method.granularity", granularity, ("weight", "rank"))
        one_of("method.scores", scores, ("kept", "fresh"))
        one_of("method.router", router, ("copied", "fresh"))
        self.experts, self.top_k, self.density, self.granularity = experts, top_k, density, granularity
        self.keep_scores, self.copy_router, self.own_pool = scores == "kept", router == "copied", own_pool
        self.learning: TrainableSubnetwork | None = None
        self.parts = SubExperts(self.pool, self.keys, top_k)
        #: The pool, or each task's own, by the adapter's name; it knows what any task uses (M).
        self.shared: dict[str, SharedAdapter] = {}
        self._scores: list[MaskScores] = []  # of the task before

    # ------------------------------------------------------------------------------------------ one task

    def begin_task(self, task: Task, memory: Memory) -> None:
        """The scores choose among all of the pool, used or not; the router is the task's own."""
        shared = self._pool_of(task.name)
        draw = torch.Generator().manual_seed(seed(self.run_seed, task.name, "scores and router"))
        layers = self.pool.layers
        scores = (
            self._scores if self._scores and self.keep_scores else [self._draw(shared, layer, draw) for layer in layers]
        )
        before = list(self.parts.of.values())[-1:] if self.copy_router else []
        routers = [
            nn.Parameter(before[0].routers[layer].clone() if before else self._router(shared, layer, draw))
            for layer in layers
        ]
        self.learning = TrainableSubnetwork(self.pool, shared.name, scores, routers, k=self.top_k, density=self.density)
        shared.begin()
        self.pool.register(task.name, self.learning)
        self.pool.train_only(task.name, shared.name)
        self.learning.requires_grad_(True).train()
        self.learning.routers.requires_grad_(self.experts > 1)  # a single expert has nothing to choose

    def edit_gradients(self) -> None:
        """What an earlier task uses has no gradient."""
        self._trained().spare()

    def after_step(self) -> None:
        """Nor does it move."""
        self._trained().put_back()

    def end_task(self, task: Task, memory: Memory) -> None:
        """Its masks are final. What the task moved on its way and does not use goes back to where the pool began."""
        if self.learning is None:
            return  # taken over from a run that inferred tasks otherwise: it was ended there
        learned, self.learning = self.learning, None
        learned.requires_grad_(False)
        self._scores = [scores for scores in learned.scores if isinstance(scores, MaskScores)]
        prompts = [self.template.prompt_ids(example.prompt) for example in task.train]
        self.parts.keep(task.name, learned, self.shared[learned.adapter], prompts)

    def _pool_of(self, task: str) -> SharedAdapter:
        """The adapter that a task uses; made if there is none."""
        name = task if self.own_pool else POOL
        if name not in self.shared:
            self.shared[name] = SharedAdapter(self.pool, name, self.weights_seed(name), times=self.experts)
        return self.shared[name]

    def _trained(self) -> SharedAdapter:
        assert self.learning is not None
        return self.shared[self.learning.adapter]

    def _draw(self, shared: SharedAdapter, layer: str, draw: torch.Generator) -> MaskScores:
        (ranks, inner), (outer, _) = (weight.shape for weight in shared.pair(layer))
        return MaskScores(self.experts, self.granularity, (ranks, inner, outer), draw).to(self.pool.device())

    def _router(self, shared: SharedAdapter, layer: str, draw: torch.Generator) -> Tensor:
        inner = shared.pair(layer)[0].shape[1]
        drawn = torch.empty(self.experts, inner).uniform_(-(inner**-0.5), inner**-0.5, generator=draw)
        return drawn.to(self.pool.device())

    # ------------------------------------------------------------------------------------------ what is kept

    def storage(self) -> dict[str, int]:
        """Weights of the pool that any task uses, and each task's masks, router and key."""
        return {
            "pool": self.pool.adapter_bytes(next(iter(self.shared))),
            "weights": sum(shared.nbytes() for shared in self.shared.values()),
        } | self.parts.storage()

    def save(self, task: str, folder: Path) -> None:
        """The task's part of the pool as a plain adapter; masks, router, key, and the scores to go on from."""
        super().save(task, folder)
        self.parts.save(task, folder)
        if self.keep_scores:
            values = enumerate(value for scores in self._scores for value in scores.values)
            write_tensors({str(number): value.detach() for number, value in values}, folder / SCORES)

    def restore(self, task: str, folder: Path) -> None:
        """A task's part of the pool comes back."""
        shared = self._pool_of(task)
        self.parts.restore(task, shared, folder)
        if self.keep_scores:
            draw = torch.Generator()
            self._scores = [self._draw(shared, layer, draw) for layer in self.pool.layers]
            values_of = read_tensors(folder / SCORES)
            with torch.no_grad():
                for number, value in enumerate(value for scores in self._scores for value in scores.values):
                    value.copy_(values_of[str(number)])
