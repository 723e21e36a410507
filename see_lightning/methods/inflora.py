"""InfLoRA: a LoRA adapter for each task whose A is designed before training, so that earlier tasks' inputs pass it unchanged.

Liang and Li, *InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning*, CVPR 2024, arXiv 2404.00228. The paper
calls the designed factor B and the trained one A; here they have PEFT's names. The sum of all adapters answers.

Letters: R rank, I and O the sizes of a layer's input and output.
"""

import math

import torch
from torch import Tensor

from see_lightning.methods.subspace import Subspace, SubspaceMethod, input_covariances, principal
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


class InfLora(SubspaceMethod, SummedMethod):
    r"""Trains B of each task's adapter alone; the update $B A$ is orthogonal to the protected inputs of earlier tasks.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        threshold: $\epsilon$ of the first task, 0..1: share of its inputs' energy that becomes protected.
        threshold_step: added to $\epsilon$ for every further task; it ends at 1.
        rows: most training rows of a task whose inputs are recorded, before and after its training.
    """

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Adds an adapter, designs its A from the task's inputs, and freezes it."""
        super().begin_task(task, memory)
        for layer, covariance_II in input_covariances(self, task.train, self.rows).items():
            a_RI, _ = self.pool.pair(layer, task.name)
            with torch.no_grad():
                a_RI.copy_(design(covariance_II, self.subspace(layer, covariance_II), len(a_RI)))
            a_RI.requires_grad_(False)

    def end_task(self, task: Task, memory: Memory) -> None:
        """Protects the directions of the task's inputs under the trained adapters."""
        for layer, covariance_II in input_covariances(self, task.train, self.rows).items():
            self.protect(layer, covariance_II, memory)

    def report(self) -> dict[str, float]:
        """``protected_share``: protected directions as a share of all, 0..1, the mean of the layers."""
        shares = [one.dimension() / len(one.basis_IK) for one in self.protected.values()]
        return {"protected_share": round(sum(shares) / len(shares), 4)}
