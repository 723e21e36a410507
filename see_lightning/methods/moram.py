"""MoRA, a self-activated mixture of ranks (Lu et al., *Little By Little*, arXiv 2506.21035; later named MoRAM).

Every task adds ranks; earlier ones are frozen. All ranks form one model, in which each rank is weighted by the projection of
the layer's input on the rank's own input direction. Queries are not routed and come without a task id. PAPERS.md lists what
the paper leaves open.
"""

from pathlib import Path

import torch
from torch import Tensor

from see_lightning.adapters import files
from see_lightning.adapters.rank_mixture import Activity, MixtureOfRanks, living
from see_lightning.config.checks import within
from see_lightning.errors import ConfigError
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class MoRAM(OneAdapterMethod):
    """One composite adapter of all tasks' ranks; each task trains ``adapter.rank`` new ones in an adapter of its name.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        budget: k, number of ranks of all tasks that are active for a token at a layer.
        temperature: tau; weights of ranks are softmax(s / tau), s being their normalised activations; None: |s|.
        threshold: delta, 0..1; at inference, ranks with a smaller s are inactive.
        prune: share, 0..1, of a task's new ranks that are removed after its training: those least active on its prompts.
    """

    traits = Traits(shardable=False, peft_loadable=False)  # sharded was not tried

    def __init__(
        self,
        setup: Setup,
        *,
        budget: int,
        temperature: float | None,
        threshold: float,
        prune: float,
    ) -> None:
        super().__init__(setup)
        within("method.budget", budget, 1)
        within("method.temperature", temperature, 0.001)
        within("method.threshold", threshold, 0, 1)
        within("method.prune", prune, 0, 1)
        rank = self.pool.adapter.rank
        self.pruned = round(prune * rank)
        if prune and not 0 < self.pruned < rank:
            raise ConfigError(
                f"method.prune={prune:g} drops {self.pruned} of a task's {rank} new ranks; it must drop at least one and"
                f" leave one. Choose 0, another share or another adapter.rank."
            )
        self.budget, self.temperature, self.threshold = budget, temperature, threshold
        #: Adapters, the newest task's first.
        self.tasks: list[str] = []

    # ------------------------------------------------------------------------------------------ one task

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Adds new ranks to the old ones, which are active and frozen."""
        self._join(task.name, self.weights_seed(task.name))
        self.pool.train_only(self.ADAPTER, task.name)

    def end_task(self, task: Task, memory: Memory) -> None:
        """Removes the least active of the new ranks."""
        if not self.pruned:
            return
        for layer, acted_R in self._activity(task).items():
            a, b = self.pool.pair(layer, task.name)
            least = acted_R[: len(a)].topk(self.pruned, largest=False).indices
            with torch.no_grad():
                a[least] = 0
                b[:, least] = 0

    def _activity(self, task: Task) -> dict[str, Tensor]:
        """Summed activations of all ranks, new ones first, on a task's training prompts, each in a batch of its own."""
        activity = Activity(self._mixture())
        with torch.no_grad():
            for example in task.train:
                self.pool.prefill(activity, [self.template.prompt_ids(example)])
        return activity.sums

    def _join(self, task: str, weights_seed: int) -> None:
        self.pool.add_adapter(task, weights_seed)
        self.tasks.insert(0, task)
        self.pool.register(self.ADAPTER, self._mixture())

    def _mixture(self) -> MixtureOfRanks:
        return MixtureOfRanks(
            self.pool, self.tasks, budget=self.budget, temperature=self.temperature, threshold=self.threshold
        )

    # ------------------------------------------------------------------------------------------ what is kept

    def storage(self) -> dict[str, int]:
        """``weights``: ranks of all tasks that were not removed; ``pool``: one adapter."""
        pairs = [self.pool.pair(layer, task) for layer in self.pool.layers for task in self.tasks]
        return {
            "pool": self.pool.adapter_bytes(self.tasks[0]),
            "weights": sum(int(living(a).sum()) * (a.nbytes + b.nbytes) // len(a) for a, b in pairs),
        }

    def restore(self, task: str, folder: Path) -> None:
        """Adds a task's ranks to those of the tasks before it."""
        self._join(task, weights_seed=0)
        self.pool.load_weights(task, files.read(self.pool, task, folder))
