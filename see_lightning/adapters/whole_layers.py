r"""Full fine-tuning: trainable copies of whole layers, which take the place of the base model's.

Letters: I and O the sizes of a layer's input and output.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.errors import ConfigError


class WholeLayers(nn.Module):
    r"""Weights $W$ and biases $b$ of the adapted layers, which begin as those of the base model, $W_0$ and $b_0$.

    The base model stays as it is: the update $(W - W_0) x + b - b_0$ is added to a layer's output. So the difference has the
    precision of the copies, fp32, also in a base model in bf16. Weight decay acts on $W$, not on the difference.

    Args:
        layers: of the base model, linear layers by name.
    """

    adapters: tuple[str, ...] = ()

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._base = dict(layers)
        #: Names of the copies in the base model, such as ``model.layers.0.mlp.up_proj.weight``.
        self._names = [f"{name}.{part}" for name, layer in layers.items() for part, _ in layer.named_parameters()]
        of_base = (weight for layer in layers.values() for weight in layer.parameters())
        self._copies = nn.ParameterList(nn.Parameter(weight.detach().float().clone()) for weight in of_base)
        self._cache = WeightCache()

    def named(self) -> dict[str, nn.Parameter]:
        """The copies by their names in the base model, in its layout and order."""
        return dict(zip(self._names, self._copies, strict=True))

    def matrices(self) -> dict[str, nn.Parameter]:
        """The copies of the layers' matrices, by the layers' names: (O, I), of GPT-2's ``Conv1D`` (I, O)."""
        named = self.named()
        return {layer: named[f"{layer}.weight"] for layer in self._base}

    def is_transposed(self, layer: str) -> bool:
        """Whether a layer's matrix is (I, O)."""
        return isinstance(self._base[layer], Conv1D)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the copies with tensors of the same names and sizes."""
        with torch.no_grad():
            for name, copy in self.named().items():
                copy.copy_(tensors[name])

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The output, (..., O), of the copy of a layer for its input, (..., I); gradients reach the copy."""
        return y + linear(x, *(change.to(x.dtype) for change in self.changes(layer)))

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (..., O), in the dtype of its input ``x``, (..., I)."""
        changes = self._cache.get(
            (layer, x.dtype, x.device),
            lambda: [weight for pair in self._pairs(layer) for weight in pair],
            lambda: [change.detach().to(x) for change in self.changes(layer)],
        )
        return linear(x, *changes)

    def weights(self) -> Iterator[Tensor]:
        """The copies, in the order of their names."""
        yield from self._copies

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """Refuse to give A and B, which a whole layer does not have.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{layer} is trained whole (adapter=full), without the A and B of a LoRA adapter.")

    def changes(self, layer: str, matrix: Tensor | None = None) -> list[Tensor]:
        r"""$W - W_0$, (O, I), and, of a layer with biases, $b - b_0$, (O,), in fp32.

        Args:
            layer: its name.
            matrix: $W$ in the layout of the layer, in place of its copy.
        """
        (copy, original), *bias = self._pairs(layer)
        change = (copy if matrix is None else matrix) - original.float()
        return [
            change.T if self.is_transposed(layer) else change,
            *(copy - original.float() for copy, original in bias),
        ]

    def _pairs(self, layer: str) -> list[tuple[nn.Parameter, Tensor]]:
        """Copy and original of each of a layer's parameters, the matrix first."""
        named = self.named()
        return [(named[f"{layer}.{part}"], weight) for part, weight in self._base[layer].named_parameters()]
