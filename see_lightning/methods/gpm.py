"""GPM: one adapter, whose matrices change only orthogonally to the inputs that they had in earlier tasks.

Saha et al., *Gradient Projection Memory for Continual Learning*, ICLR 2021, arXiv 2103.09762, applied to both matrices of a
LoRA adapter. The inputs of A are those of the layer, $x$; the inputs of B are $A x$.

Letters: R rank, I and O the sizes of a layer's input and output.
"""

import torch
from torch import Tensor

from see_lightning.methods.setup import Setup
from see_lightning.methods.subspace import SubspaceMethod, input_covariances
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class Gpm(SubspaceMethod):
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
        super().__init__(setup, threshold=threshold, threshold_step=threshold_step, rows=rows)
        #: The matrices with which the task began, by their names.
        self.anchor: dict[str, Tensor] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Keeps the matrices that the previous task left."""
        super().begin_task(task, memory)
        self.anchor = {name: weight.detach().clone() for name, weight in self.pool.matrices(self.ADAPTER).items()}

    def edit_gradients(self) -> None:
        """Removes the components of each gradient in protected directions; nothing in the first task."""
        weights = self.pool.matrices(self.ADAPTER)
        for name, protected in self.protected.items():
            gradient = weights[name].grad
            if gradient is not None:
                weights[name].grad = protected.remove(gradient)

    @torch.no_grad()
    def after_step(self) -> None:
        """Removes the components of each matrix's change since the task began; nothing in the first task."""
        weights = self.pool.matrices(self.ADAPTER)
        for name, protected in self.protected.items():
            anchor = self.anchor[name]
            weights[name].copy_(anchor + protected.remove(weights[name] - anchor))

    def end_task(self, task: Task, memory: Memory) -> None:
        """Protects the directions of the task's inputs of each matrix, under the trained adapter."""
        for layer, covariance_II in input_covariances(self, task.train, self.rows).items():
            a_RI, _ = self.pool.pair(layer, self.ADAPTER)
            covariance_RR = a_RI.double() @ covariance_II.double() @ a_RI.double().T
            self.protect(f"{layer}.A", covariance_II, memory)
            self.protect(f"{layer}.B", covariance_RR, memory)

    def report(self) -> dict[str, float]:
        """``protected_share_a``, ``_b``: protected directions of A's and B's inputs as shares of all, means of the layers."""
        shares: dict[str, list[float]] = {"a": [], "b": []}
        for name, one in self.protected.items():
            shares[name[-1].lower()].append(one.dimension() / len(one.basis_IK))
        return {f"protected_share_{name}": round(sum(some) / len(some), 4) for name, some in shares.items()}
