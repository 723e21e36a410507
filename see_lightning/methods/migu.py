"""MIGU: sequential fine-tuning of one adapter, where a step updates only the rows with the largest outputs.

Du et al., *Unlocking Continual Learning Abilities in Language Models*, 2024, arXiv 2406.17245. Tasks differ in the
outputs of a layer that are large, so their updates fall on different rows.

Letters: B rows of a batch, S and N tokens, M outputs of a matrix, which are its rows.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.errors import ConfigError
from see_lightning.methods.method import Method, OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.tasks.batches import IGNORED, Batch
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def largest(magnitudes_M: Tensor, frozen: float) -> Tensor:
    r"""True for the rows that are updated: those whose normalised magnitude reaches the quantile of ``frozen``, (M,).

    The normalised magnitudes are $n = \bar h / \lVert \bar h\rVert_1$, for the mean $\bar h$ of the absolute outputs.

    Args:
        magnitudes_M: sums or means of the absolute outputs, at least 0.
        frozen: share of the rows that are not updated, 0..1.

    >>> largest(torch.tensor([5.0, 1.0, 4.0, 2.0]), 0.5)
    tensor([ True, False,  True, False])
    """
    normalised_M = magnitudes_M / magnitudes_M.sum().clamp_min(torch.finfo(magnitudes_M.dtype).tiny)
    return normalised_M >= torch.quantile(normalised_M, frozen)


def tokens_of(x: Tensor, counts_B: Tensor) -> Tensor:
    """The inputs of a layer without those of padding, (N, I).

    Args:
        x: (B, S, I), padded on the left; or of another first size: inputs without padding.
        counts_B: tokens of each row.

    >>> tokens_of(torch.arange(6.0).view(2, 3, 1), torch.tensor([1, 2])).flatten().tolist()
    [2.0, 4.0, 5.0]
    """
    if x.dim() < 3 or len(x) != len(counts_B):  # the head sees answer tokens alone, and some models read row by row
        return x.flatten(0, -2)
    width = x.shape[1]
    return x[torch.arange(width, device=x.device) >= width - counts_B[:, None]]


class LargestRows(OneAdapterMethod):
    """From the second task on, each step keeps most rows of A and B bit for bit as they were: ``optim.migu`` of them.

    It stands before the class of a method, whose loss, gradients and steps stay as they are.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        settings: of the method.
    """

    def __init__(self, setup: Setup, **settings: Any) -> None:
        super().__init__(setup, **settings)
        self.masks_rows = False
        #: By the names of the adapter's matrices: sums of the absolute outputs in the present step.
        self.magnitudes: dict[str, Tensor] = {}
        #: By the same names: the rows that the present step updates, and the matrix before it.
        self.before: dict[str, tuple[Tensor, Tensor]] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """As the method; the first task updates all rows."""
        super().begin_task(task, memory)
        own = self.pool.matrices(self.ADAPTER).values() if self.pool.has_adapter(self.ADAPTER) else ()
        if {id(weight) for weight in self.trained_weights()} != {id(weight) for weight in own}:
            raise ConfigError(
                f"optim.migu={self.optim.migu} chooses rows of one LoRA adapter, and {type(self).__name__} trains other"
                f" weights; leave optim.migu out, and declare Traits(one_lora=False)."
            )
        self.masks_rows = bool(memory.past)
        self.magnitudes, self.before = {}, {}

    def loss(self, part: Batch) -> Tensor:
        """Mean loss of a micro-batch; adds up the magnitudes of the outputs of A and B."""
        if not self.masks_rows or not part.ids:
            return super().loss(part)
        answers_B = (part.labels_BS != IGNORED).sum(1)
        header = len(self.pool.header_ids)  # activated adapters act from there on
        counts_B = answers_B + header if header else part.attention_mask_BS.sum(1)
        with self.pool.observe(partial(self._add_magnitudes, counts_B)):
            return super().loss(part)

    def gradients(self, batch: Batch, loss: Callable[[Batch], Tensor] | None = None) -> list[Tensor]:
        """Gradients for the method's own use; their outputs are none of the step's."""
        masks_rows, self.masks_rows = self.masks_rows, False
        try:
            return super().gradients(batch, loss)
        finally:
            self.masks_rows = masks_rows

    def _add_magnitudes(self, counts_B: Tensor, layer: str, x: Tensor) -> None:
        if not torch.is_grad_enabled():  # the base model reads the prompts of activated adapters
            return
        a_RI, b_OR = (weight.detach() for weight in self.pool.pair(layer, self.ADAPTER))
        low_NR = tokens_of(x.detach(), counts_B).to(a_RI) @ a_RI.T
        for name, out_NM in ((f"{layer}.A", low_NR), (f"{layer}.B", low_NR @ b_OR.T)):
            self.magnitudes[name] = self.magnitudes.get(name, 0) + out_NM.abs().sum(0)

    def edit_gradients(self) -> None:
        """Sets the gradients of rows with small outputs to 0, and keeps the matrices; nothing more in the first task."""
        super().edit_gradients()
        if not self.masks_rows:
            return
        weights = self.pool.matrices(self.ADAPTER)
        # A rank that had no example in this step has no magnitudes.
        own = [self.magnitudes.get(name, weight.new_zeros(len(weight))) for name, weight in weights.items()]
        of_all_ranks = torch.split(self.average(torch.cat(own)), [len(weight) for weight in weights.values()])
        for (name, weight), magnitudes_M in zip(weights.items(), of_all_ranks, strict=True):
            rows_M = largest(magnitudes_M, self.optim.migu)
            if weight.grad is not None:
                weight.grad.mul_(rows_M[:, None])
            self.before[name] = rows_M, weight.detach().clone()
        self.magnitudes = {}

    @torch.no_grad()
    def after_step(self) -> None:
        """Puts the other rows back, which momentum, weight decay or the method have moved."""
        super().after_step()
        weights = self.pool.matrices(self.ADAPTER)
        for name, (rows_M, before) in self.before.items():
            weights[name].copy_(torch.where(rows_M[:, None], weights[name], before))
        self.before = {}


class Migu(LargestRows):
    """Sequential fine-tuning with ``LargestRows``.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        frozen: share of each matrix's rows that a step does not update, 0..1 without 1; it takes the place of ``optim.migu``.
    """

    traits = Traits()

    def __init__(self, setup: Setup, *, frozen: float) -> None:
        within("method.frozen", frozen, 0, 0.999)
        super().__init__(replace(setup, optim=replace(setup.optim, migu=frozen)))


def with_largest_rows(method: type[Method]) -> type[Method]:
    """The class of a method with one LoRA adapter, with ``LargestRows`` before it."""
    return type(method.__name__, (LargestRows, method), {"__module__": method.__module__, "__doc__": method.__doc__})
