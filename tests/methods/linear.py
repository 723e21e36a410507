"""A pool whose model is one linear layer, W x: methods run on it with the numbers that were given to their authors' code.

Letters: N inputs, F features, V classes, B rows.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from see_lightning.data.example import Example
from see_lightning.tasks.batches import Batch

INPUTS = torch.tensor([[1.0, -0.5, 0.25], [0.5, 0.75, -1.0], [-1.25, 0.5, 0.5], [0.25, 1.0, 0.75]])
LABELS = torch.tensor([2, 0, 3, 1])
#: As a first and a second task leave the layer, and as it is in the third one.
FIRST, SECOND, THIRD = torch.tensor(
    [
        [[0.5, -1.0, 0.25], [1.5, 0.5, -0.5], [-0.75, 0.25, 1.0], [0.2, 0.8, -0.6]],
        [[0.25, -0.5, 0.5], [1.0, 0.75, -0.25], [-0.5, 0.5, 0.75], [0.6, 0.3, -0.9]],
        [[0.75, -0.75, 0.0], [1.25, 1.0, -0.75], [-1.0, 0.0, 1.25], [0.1, 0.5, -0.2]],
    ]
)


class LinearPool(nn.Module):
    """One adapter, which is the whole layer; a batch's tokens are numbers of inputs, each row with one label."""

    def __init__(self, weight_VF: Tensor, inputs_NF: Tensor = INPUTS) -> None:
        super().__init__()
        self.weight, self.inputs_NF, self.names = nn.Parameter(weight_VF.clone()), inputs_NF, ["shared"]

    def forward(self, input_ids_BS: Tensor, mask_BS: Tensor, labels_BS: Tensor) -> Tensor:
        return self.inputs_NF[input_ids_BS[:, 0]] @ self.weight.T

    def weights_of(self, names: Sequence[str]) -> list[Tensor]:
        return [self.weight]

    def matrices(self, name: str) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def train_only(self, name: str) -> None:
        """It is trained anyway."""


def rows(*numbers: int) -> list[Example]:
    return [Example(str(number), "", "", "task") for number in numbers]


def batch_of(examples: Sequence[Example], labels_N: Tensor = LABELS) -> Batch:
    ids_B1 = torch.tensor([[int(example.id)] for example in examples])
    return Batch(ids_B1, torch.ones_like(ids_B1), labels_N[ids_B1], [example.id for example in examples])


def on_linear(method: Any, weight_VF: Tensor, inputs_NF: Tensor = INPUTS, labels_N: Tensor = LABELS) -> Any:
    """The method with this layer in place of its model."""

    def batches(examples: Sequence[Example], size: int) -> Iterator[Batch]:
        for start in range(0, len(examples), size):
            yield batch_of(examples[start : start + size], labels_N)

    method.pool, method.batches = LinearPool(weight_VF, inputs_NF), batches
    return method


def through_two_tasks(method: Any) -> Any:
    """The method in its third task; the first two ended with ``FIRST`` and ``SECOND``, on two rows each."""
    on_linear(method, FIRST)
    for weight_VF, numbers in ((FIRST, (0, 1)), (SECOND, (2, 3)), (THIRD, ())):
        method.begin_task(None, None)
        method.pool.weight.data.copy_(weight_VF)
        if numbers:
            with torch.no_grad():
                method.end_task(SimpleNamespace(train=rows(*numbers)), None)
    return method
