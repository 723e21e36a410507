"""GPM: one adapter, whose matrices change only orthogonally to the inputs that they had in earlier tasks.

Saha et al., *Gradient Projection Memory for Continual Learning*, ICLR 2021, arXiv 2103.09762, applied to both matrices of a
LoRA adapter. The inputs of A are those of the layer, $x$; the inputs of B are $A x$.

Letters: R rank, I and O the sizes of a layer's input and output.
"""

import torch
from torch import Tensor, nn

from see_lightning.config.checks import within
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.methods.subspace import Subspace, input_covariances, packed, unpacked
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class Gpm(OneAdapterMethod):
    r"""Projects gradients, and after each step the change since the task began, off the protected inputs of each matrix.

    The second projection is exact under any optimizer: with Adam's scaling of entries, and with weight decay, a step has not
    the direction of its projected gradient.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        threshold: $\epsilon$ of the first task, 0..1: share of the energy of a matrix's inputs that becomes protected.
        threshold_step: added to $\epsilon$ for every further task; it ends at 1.
        rows: most training rows of a task whose inputs are recorded.
    """

    def __init__(self, setup: Setup, *, threshold: float, threshold_step: float, rows: int) -> None:
        super().__init__(setup)
        within("method.threshold", threshold, 0, 1)
        within("method.threshold_step", threshold_step, 0, 1)
        within("method.rows", rows, 1)
        self.threshold, self.threshold_step, self.rows = threshold, threshold_step, rows
        #: By the names of the adapter's matrices; empty before the first task has ended.
        self.protected: dict[str, Subspace] = {}
        #: The matrices with which the task began, by the same names.
        self.anchor: dict[str, Tensor] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Keeps the matrices that the previous task left."""
        super().begin_task(task, memory)
        self.anchor = {name: weight.detach().clone() for name, weight in self._weights().items()}

    def edit_gradients(self) -> None:
        """Removes the components of each gradient in protected directions; nothing in the first task."""
        weights = self._weights()
        for name, protected in self.protected.items():
            gradient = weights[name].grad
            if gradient is not None:
                weights[name].grad = protected.remove(gradient)

    @torch.no_grad()
    def after_step(self) -> None:
        """Removes the components of each matrix's change since the task began; nothing in the first task."""
        weights = self._weights()
        for name, protected in self.protected.items():
            anchor = self.anchor[name]
            weights[name].copy_(anchor + protected.remove(weights[name] - anchor))

    def end_task(self, task: Task, memory: Memory) -> None:
        """Protects the directions of the task's inputs of each matrix, under the trained adapter."""
        threshold = min(1.0, self.threshold + self.threshold_step * len(memory.past))
        for layer, covariance_II in input_covariances(self, task.train, self.rows).items():
            a_RI, _ = self.pool.pair(layer, self.ADAPTER)
            covariance_RR = a_RI.double() @ covariance_II.double() @ a_RI.double().T
            for name, covariance in ((f"{layer}.A", covariance_II), (f"{layer}.B", covariance_RR)):
                before = self.protected.get(name) or Subspace.empty(len(covariance), covariance.device)
                self.protected[name] = before.grow(covariance, threshold)

    def report(self) -> dict[str, float]:
        """``protected_share_a``, ``_b``: protected directions of A's and B's inputs as shares of all, means of the layers."""
        shares: dict[str, list[float]] = {"a": [], "b": []}
        for name, one in self.protected.items():
            shares[name[-1].lower()].append(one.dimension() / len(one.basis_IK))
        return {f"protected_share_{name}": round(sum(some) / len(some), 4) for name, some in shares.items()}

    def _weights(self) -> dict[str, nn.Parameter]:
        pairs = self.pool.pairs(self.ADAPTER).items()
        return {f"{layer}.{name}": weight for layer, pair in pairs for name, weight in zip("AB", pair, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """A basis for each matrix."""
        return packed(self.protected)

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The bases after the last task replace those before it."""
        self.protected = unpacked(tensors)
