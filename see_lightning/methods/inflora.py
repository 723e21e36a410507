"""InfLoRA: a LoRA adapter for each task whose A is designed before training, so that earlier tasks' inputs pass it unchanged.

Liang and Li, *InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning*, CVPR 2024, arXiv 2404.00228. The paper
calls the designed factor B and the trained one A; here they have PEFT's names. The sum of all adapters answers.

Letters: R rank, I and O the sizes of a layer's input and output.
"""

import math

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.methods.setup import Setup
from see_lightning.methods.subspace import Subspace, input_covariances, packed, principal, unpacked
from see_lightning.methods.summed import SummedMethod
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def design(covariance_II: Tensor, protected: Subspace, rank: int) -> Tensor:
    r"""A: the directions in which the task's inputs have most energy, among those that are not protected, (R, I).

    They are the first principal directions of $(I - M M^\top) X$, for inputs $X$ and a basis $M$ of the protected subspace.
    Each row has the length $1/\sqrt3$, about that of a row of LoRA's usual random A. If the inputs have fewer directions, the
    last rows are zeros.

    Args:
        covariance_II: $X X^\top$ of the task's inputs.
        protected: directions that a change must not touch.
        rank: R.

    >>> design(torch.diag(torch.tensor([9.0, 4.0, 1.0])), Subspace(torch.eye(3)[:, :1], is_free=False), 1)
    tensor([[0.0000, 0.5774, 0.0000]])
    """
    covariance_II = covariance_II.double()
    values_I, vectors_II = principal(protected.free_part(covariance_II))
    found = (values_I[:rank] > 1e-9 * covariance_II.trace()).double()
    a_RI = protected.remove(vectors_II[:, :rank].T)
    a_RI = a_RI / a_RI.norm(dim=1, keepdim=True).clamp_min(1e-12) * found[:, None]
    whole_RI = torch.nn.functional.pad(a_RI, (0, 0, 0, rank - len(a_RI)))  # a rank above the size of the input
    return (whole_RI / math.sqrt(3)).float()


class InfLora(SummedMethod):
    r"""Trains B of each task's adapter alone; the update $B A$ is orthogonal to the protected inputs of earlier tasks.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        threshold: $\epsilon$ of the first task, 0..1: share of its inputs' energy that becomes protected.
        threshold_step: added to $\epsilon$ for every further task; it ends at 1.
        rows: most training rows of a task whose inputs are recorded, before and after its training.
    """

    def __init__(self, setup: Setup, *, threshold: float, threshold_step: float, rows: int) -> None:
        super().__init__(setup)
        within("method.threshold", threshold, 0, 1)
        within("method.threshold_step", threshold_step, 0, 1)
        within("method.rows", rows, 1)
        self.threshold, self.threshold_step, self.rows = threshold, threshold_step, rows
        #: By layer; empty before the first task has ended.
        self.protected: dict[str, Subspace] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Adds an adapter, designs its A from the task's inputs, and freezes it."""
        super().begin_task(task, memory)
        for layer, covariance_II in input_covariances(self, task.train, self.rows).items():
            a_RI, _ = self.pool.pair(layer, task.name)
            with torch.no_grad():
                a_RI.copy_(design(covariance_II, self._protected(layer, covariance_II), len(a_RI)))
            a_RI.requires_grad_(False)

    def end_task(self, task: Task, memory: Memory) -> None:
        """Protects the directions of the task's inputs under the trained adapters."""
        threshold = min(1.0, self.threshold + self.threshold_step * len(memory.past))
        for layer, covariance_II in input_covariances(self, task.train, self.rows).items():
            self.protected[layer] = self._protected(layer, covariance_II).grow(covariance_II, threshold)

    def _protected(self, layer: str, covariance_II: Tensor) -> Subspace:
        return self.protected.get(layer) or Subspace.empty(len(covariance_II), covariance_II.device)

    def report(self) -> dict[str, float]:
        """``protected_share``: protected directions as a share of all, 0..1, the mean of the layers."""
        shares = [one.dimension() / len(one.basis_IK) for one in self.protected.values()]
        return {"protected_share": round(sum(shares) / len(shares), 4)}

    def state(self) -> dict[str, Tensor]:
        """A basis for each layer."""
        return packed(self.protected)

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The bases after the last task replace those before it."""
        self.protected = unpacked(tensors)
