"""MoELoRA: one adapter whose ranks are experts, with a trained router, fine-tuned task after task.

Chen et al., *CoIN: A Benchmark of Continual Instruction tuNing for Multimodel Large Language Model*, arXiv 2403.08350, which
introduces it for continual learning; with the load balancing of Switch Transformers (arXiv 2101.03961). PAPERS.md lists the
differences.

Letters: B rows, L layers.
"""

from pathlib import Path

import torch
from torch import Tensor

from see_lightning.adapters.routed_experts import RoutedExperts
from see_lightning.config.checks import within
from see_lightning.errors import ConfigError
from see_lightning.methods.loss import row_mean
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.seeds import seed
from see_lightning.tasks.batches import IGNORED, Batch
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

ROUTER = "router "  # begins the names of tensors in the state; a layer's name follows


class MoeLora(OneAdapterMethod):
    """Sequential fine-tuning of experts and routers, which all tasks share; nothing is frozen, so it may forget.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        experts: number of groups into which the adapter's ranks are divided, at least 1.
        top_k: experts that act on a token at a layer, 1..experts.
        balance: weight of the imbalance of each row, see ``imbalance``, averaged over the layers; 0 for none.

    Raises:
        ConfigError: a setting is out of range, or the rank is no multiple of the number of experts.
    """

    traits = Traits(shardable=False, peft_loadable=False)  # sharded was not tried

    def __init__(self, setup: Setup, *, experts: int, top_k: int, balance: float) -> None:
        super().__init__(setup)
        within("method.experts", experts, 1)
        within("method.top_k", top_k, 1, experts)
        within("method.balance", balance, 0)
        if self.pool.adapter.rank % experts:
            raise ConfigError(
                f"adapter.rank={self.pool.adapter.rank} cannot be divided among method.experts={experts}; choose a multiple."
            )
        self.experts, self.top_k, self.balance = experts, top_k, balance
        self.mixture: RoutedExperts | None = None

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Creates the experts and their routers in the first task; later tasks train them further."""
        if self.mixture is None:
            self.pool.add_expert(self.ADAPTER, self.weights_seed(self.ADAPTER))
            self._join({layer: self._draw(layer) for layer in self.pool.layers})
        assert self.mixture is not None
        self.pool.train_only(self.ADAPTER)
        self.mixture.requires_grad_(self.experts > 1)  # with one expert the gate is 1

    def _join(self, routers: dict[str, Tensor]) -> None:
        self.mixture = RoutedExperts(self.pool, self.ADAPTER, routers, self.top_k).to(self.pool.device())
        self.pool.register(self.ADAPTER, self.mixture)

    def _draw(self, layer: str) -> Tensor:
        """A router as a linear layer begins, from the layer's name and the run's seed."""
        inner = self.pool.pair(layer, self.ADAPTER)[0].shape[1]
        draw = torch.Generator().manual_seed(seed(self.run_seed, layer, "router"))
        return torch.empty(self.experts, inner).uniform_(-(inner**-0.5), inner**-0.5, generator=draw)

    def loss(self, part: Batch) -> Tensor:
        """The loss on the answers, and the weighted imbalance: a mean with each row's weight in that loss."""
        if not self.balance or self.mixture is None or self.experts == 1:
            return super().loss(part)
        labels_B = (part.labels_BS != IGNORED).sum(1)
        with self.mixture.noting(part.attention_mask_BS.bool(), labels_B) as noted:
            loss = super().loss(part)
        each_B = torch.stack(noted).mean(0)
        return loss + self.balance * row_mean(each_B, part.labels_BS, self.optim.loss_reduction)

    def state(self) -> dict[str, Tensor]:
        """The routers."""
        if self.mixture is None:
            return {}
        return {ROUTER + layer: self.mixture.router(layer) for layer in self.pool.layers}

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The routers after a task replace those before it."""
        self._join({layer: tensors[ROUTER + layer] for layer in self.pool.layers})

    def restore(self, task: str, folder: Path) -> None:
        """Loads the experts by their own name, and then the routers over them."""
        self.pool.composites.pop(self.ADAPTER, None)
        super().restore(task, folder)
