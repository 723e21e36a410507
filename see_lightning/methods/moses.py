"""Mixtures of SubExperts, a reconstruction: sparse parts of one shared pool of experts, a router for each task.

After Kang, *Mixtures of SubExperts for Large Language Continual Learning* (arXiv 2511.06237), of which only the abstract and
captions were available. The reconstruction uses the same author's earlier methods (WSN, Soft-TF); PAPERS.md lists each
inferred choice. Numbers of this method are not the paper's.
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
    """Each task uses a share of the pool, chosen by scores; weights of earlier tasks are frozen and can be used again.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        experts: N, experts of ``adapter.rank`` in the pool.
        top_k: k, number of experts that a token is routed to, at most N.
        density: c, the share of the pool that a task uses, 0..1.
        granularity: ``weight`` masks every number (R1 in PAPERS.md), ``rank`` whole ranks (R2).
        task_id: source of a query's task: ``given`` (TIL), or inferred (TaIL) by ``key``, the nearest centroid of the tasks'
            prompts, or by ``entropy``, the sub-expert that lowers the answer's entropy most.
        scores: ``kept`` from task to task, as in WSN, or ``fresh`` for each task.
        router: initialised as a copy of the previous task's (``copied``), or ``fresh``.
        own_pool: whether each task has a pool of its own, so that no weight is shared.
    """

    traits = Traits(
        has_experts=True,
        router=Oracle,
        shardable=False,
        peft_loadable=False,
        after_training=frozenset({"task_id"}),
    )
    #: Value of ``task_id`` -> router.
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
        #: Adapter's name -> the pool, or each task's own, with the mask of used weights (M).
        self.shared: dict[str, SharedAdapter] = {}
        self._scores: list[MaskScores] = []  # of the previous task

    # ------------------------------------------------------------------------------------------ one task

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Create the task's scores over the whole pool, and its router."""
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
        self.learning.routers.requires_grad_(self.experts > 1)  # with one expert the gate is 1

    def edit_gradients(self) -> None:
        """Set the gradients of weights that earlier tasks use to 0."""
        self._trained().spare()

    def after_step(self) -> None:
        """Restore weights that earlier tasks use."""
        self._trained().put_back()

    def end_task(self, task: Task, memory: Memory) -> None:
        """Fix the masks; weights outside them are reset to their initial values."""
        if self.learning is None:
            return  # its experts come from a run with another ``task_id``, which ended the task
        learned, self.learning = self.learning, None
        learned.requires_grad_(False)
        self._scores = [scores for scores in learned.scores if isinstance(scores, MaskScores)]
        prompts = [self.template.prompt_ids(example) for example in task.train]
        self.parts.keep(task.name, learned, self.shared[learned.adapter], prompts)

    def _pool_of(self, task: str) -> SharedAdapter:
        """The adapter that a task uses; created if it does not exist."""
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
        """Save the task's part of the pool as a LoRA adapter; masks, router, key, and the scores for the next task."""
        super().save(task, folder)
        self.parts.save(task, folder)
        if self.keep_scores:
            values = enumerate(value for scores in self._scores for value in scores.values)
            write_tensors({str(number): value.detach() for number, value in values}, folder / SCORES)

    def restore(self, task: str, folder: Path) -> None:
        """Load a task's part of the pool."""
        shared = self._pool_of(task)
        self.parts.restore(task, shared, folder)
        if self.keep_scores:
            draw = torch.Generator()
            self._scores = [self._draw(shared, layer, draw) for layer in self.pool.layers]
            values_of = read_tensors(folder / SCORES)
            with torch.no_grad():
                for number, value in enumerate(value for scores in self._scores for value in scores.values):
                    value.copy_(values_of[str(number)])
