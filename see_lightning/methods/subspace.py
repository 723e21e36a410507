r"""The subspace of a layer's inputs in which later tasks must not change the layer.

The gradient of a linear layer's weight is $\sum \delta x^\top$ over the tokens, so its rows lie in the span of the layer's
inputs $x$. A change $\Delta W$ that is orthogonal to most of this span leaves the layer's outputs for them almost as they
were. Saha et al., *Gradient Projection Memory for Continual Learning*, ICLR 2021, arXiv 2103.09762; the choice of the smaller
basis is that of DualGPM (Liang and Li, *Adaptive Plasticity Improvement for Continual Learning*, CVPR 2023).

Letters: N tokens or rows, I size of a layer's input, K directions.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.checks import within
from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory


def principal(covariance_II: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (I,), the largest first, and eigenvectors in columns (I, I), each with a positive largest entry.

    Args:
        covariance_II: symmetric.

    >>> values, vectors = principal(torch.diag(torch.tensor([1.0, 4.0])))
    >>> values.tolist(), vectors.tolist()
    ([4.0, 1.0], [[0.0, 1.0], [1.0, 0.0]])
    """
    values_I, vectors_II = torch.linalg.eigh((covariance_II + covariance_II.T) / 2)
    values_I, vectors_II = values_I.flip(0), vectors_II.flip(1)
    largest_1I = vectors_II.gather(0, vectors_II.abs().argmax(0, keepdim=True))
    return values_I, vectors_II * largest_1I.sign()


@dataclass(frozen=True)
class Subspace:
    """Protected directions, as an orthonormal basis of them or, where these are fewer, of all others.

    Args:
        basis_IK: in fp32.
        is_free: whether the basis spans the directions that are not protected.
    """

    basis_IK: Tensor
    is_free: bool

    @classmethod
    def empty(cls, size: int, device: torch.device) -> Self:
        """Without a protected direction.

        Args:
            size: I.
            device: of the basis.
        """
        return cls(torch.zeros(size, 0, device=device), is_free=False)

    def dimension(self) -> int:
        """The number of protected directions, 0..I."""
        size, kept = self.basis_IK.shape
        return size - kept if self.is_free else kept

    def remove(self, rows_NI: Tensor) -> Tensor:
        """The rows without their components in protected directions, (N, I), in the dtype of the rows.

        >>> Subspace(torch.tensor([[1.0], [0.0]]), is_free=False).remove(torch.tensor([[3.0, 4.0]]))
        tensor([[0., 4.]])
        """
        basis_IK = self.basis_IK.to(rows_NI)
        inside_NI = (rows_NI @ basis_IK) @ basis_IK.T
        return inside_NI if self.is_free else rows_NI - inside_NI

    def free_part(self, covariance_II: Tensor) -> Tensor:
        r"""$P C P$ of the covariance $C$, with the projection $P$ on the directions that are not protected, (I, I)."""
        return self.remove(self.remove(covariance_II).T)

    def grow(self, covariance_II: Tensor, threshold: float) -> "Subspace":
        r"""With the fewest further directions such that the protected ones have a share of the inputs' energy.

        The energy of inputs $X$ is $\lVert X\rVert_F^2$, the trace of $C = X X^\top$. Directions of most energy come first,
        until the protected part has at least $\epsilon \lVert X\rVert_F^2$ (equations 5 and 9 of GPM).

        Args:
            covariance_II: $C$, not centred.
            threshold: $\epsilon$, 0..1.
        """
        covariance_II = covariance_II.double()
        total, free_II = covariance_II.trace(), self.free_part(covariance_II)
        values_I, vectors_II = principal(free_II)
        missing = threshold * total - (total - free_II.trace())
        below_I = torch.cat([values_I.new_zeros(1), values_I.cumsum(0)[:-1]]) < missing
        new_IK = vectors_II[:, below_I & (values_I > 1e-9 * total)]
        if not new_IK.shape[1]:
            return self
        if self.is_free:
            basis_IK = self.basis_IK.double()
            inside_KN = torch.linalg.qr(basis_IK.T @ new_IK, mode="complete").Q[:, new_IK.shape[1] :]
            return _stored(basis_IK @ inside_KN, is_free=True)
        protected_IK = torch.linalg.qr(torch.cat([self.basis_IK.double(), new_IK], dim=1)).Q
        size, kept = protected_IK.shape
        if kept <= size / 2:
            return _stored(protected_IK, is_free=False)
        return _stored(torch.linalg.qr(protected_IK, mode="complete").Q[:, kept:], is_free=True)


def _stored(basis_IK: Tensor, *, is_free: bool) -> Subspace:
    """A subspace whose basis has the bits and the layout in memory that it has after it was saved and loaded."""
    return Subspace(basis_IK.float().contiguous(), is_free)


def packed(subspaces: dict[str, Subspace]) -> dict[str, Tensor]:
    """The subspaces as tensors by name, for ``Method.state``."""
    return {f"{'free' if one.is_free else 'protected'} {layer}": one.basis_IK for layer, one in subspaces.items()}


def unpacked(tensors: dict[str, Tensor]) -> dict[str, Subspace]:
    """The subspaces that ``packed`` returned as tensors.

    >>> one = {"q_proj": Subspace(torch.eye(3)[:, :1], is_free=True)}
    >>> unpacked(packed(one))["q_proj"].is_free
    True
    """
    parts = {name: name.split(" ", 1) for name in tensors}
    return {layer: Subspace(tensors[name], is_free=kind == "free") for name, (kind, layer) in parts.items()}


class InputRecorder:
    """An adapter that acts as another one, and adds up the outer products of its layers' inputs.

    It gets the inputs alone on which the adapter acts: with activated adapters, those from the header on.

    Args:
        pool: holds the adapter.
        adapter: its name.
    """

    def __init__(self, pool: ExpertPool, adapter: str) -> None:
        self.pool, self.adapter = pool, adapter
        self.sums: dict[str, Tensor] = {}

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The adapter's update of a layer's output, (..., O), for the layer's input ``x``, (..., I)."""
        x_NI = x.detach().flatten(0, -2).float()
        if layer not in self.sums:
            self.sums[layer] = torch.zeros(x_NI.shape[1], x_NI.shape[1], device=x.device)
        self.sums[layer].addmm_(x_NI.T, x_NI)
        return self.pool.update_of(layer, self.adapter, x)


def input_covariances(method: OneAdapterMethod, examples: Sequence[Example], rows: int) -> dict[str, Tensor]:
    r"""$X X^\top$, (I, I), of each adapted layer's inputs on a task's prompts and answers, under the method's adapter.

    Examples are read one by one, so no padding is counted. Every rank reads all of them: a sum over ranks would have other
    roundings, and these decide about directions of almost equal energy.

    Args:
        method: whose adapter acts.
        examples: of one task.
        rows: most examples that are read; they are drawn by the run's seed.
    """
    if rows < len(examples):
        draw = random.Random(seed(method.run_seed, examples[0].task, "rows whose inputs are recorded"))
        examples = draw.sample(list(examples), rows)
    recorder = InputRecorder(method.pool, method.ADAPTER)
    for batch in method.batches(examples, 1):
        method.pool.logits(batch, recorder)
    return recorder.sums


class SubspaceMethod(OneAdapterMethod):
    r"""A method that protects, for each task, further directions of the inputs of layers or matrices.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        threshold: $\epsilon$ of the first task, 0..1: share of the inputs' energy that becomes protected.
        threshold_step: added to $\epsilon$ for every further task; it ends at 1.
        rows: most training rows of a task whose inputs are recorded.
    """

    def __init__(self, setup: Setup, *, threshold: float, threshold_step: float, rows: int) -> None:
        super().__init__(setup)
        within("method.threshold", threshold, 0, 1)
        within("method.threshold_step", threshold_step, 0, 1)
        within("method.rows", rows, 1)
        self.threshold, self.threshold_step, self.rows = threshold, threshold_step, rows
        #: By the names of layers or matrices; empty before the first task has ended.
        self.protected: dict[str, Subspace] = {}

    def subspace(self, name: str, covariance: Tensor) -> Subspace:
        """The protected subspace of that name; the empty one before the first task has ended."""
        return self.protected.get(name) or Subspace.empty(len(covariance), covariance.device)

    def protect(self, name: str, covariance: Tensor, memory: Memory) -> None:
        """Adds the directions of a task's inputs to the protected ones of that name.

        Args:
            name: of a layer or matrix.
            covariance: of its inputs.
            memory: tells how many tasks came before.
        """
        threshold = min(1.0, self.threshold + self.threshold_step * len(memory.past))
        self.protected[name] = self.subspace(name, covariance).grow(covariance, threshold)

    def state(self) -> dict[str, Tensor]:
        """A basis for each name."""
        return packed(self.protected)

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The bases after the last task replace those before it."""
        self.protected = unpacked(tensors)
