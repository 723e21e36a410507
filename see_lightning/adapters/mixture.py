r"""Mixtures of a pool's experts: $\sum_t w_t\, E_t(x)$, with weights for each token or for a whole query.

Letters: T experts, K directions of each, I and O the sizes of a layer's input and output.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from see_lightning.adapters.pool import ExpertPool
from see_lightning.errors import ConfigError


def gates(logits_N: Tensor, k: int) -> Tensor:
    """Softmax over the k largest of a router's logits, 0 elsewhere; (..., N) to (..., N).

    >>> gates(torch.tensor([0.0, 1.0, 0.0]), 1).tolist()
    [0.0, 1.0, 0.0]
    """
    if k < logits_N.shape[-1]:
        top = logits_N.topk(k, dim=-1)
        logits_N = torch.full_like(logits_N, -torch.inf).scatter(-1, top.indices, top.values)
    return logits_N.softmax(dim=-1)


class Mixture(ABC):
    """A weighted sum of the updates of experts, as an adapter.

    It is not trained and not saved: its file would be those of the experts.

    Args:
        pool: holds the experts.
        experts: their names, at least one.
    """

    adapters: tuple[str, ...] = ()

    def __init__(self, pool: ExpertPool, experts: Sequence[str]) -> None:
        self.pool, self.experts = pool, tuple(experts)

    @abstractmethod
    def gate(self, layer: str, x: Tensor) -> Tensor:
        """The weight of each expert, (..., T) or (T,), for a layer's input, (..., I)."""

    @abstractmethod
    def rule(self) -> Iterable[Tensor]:
        """The tensors that determine the weights."""

    def mix(self, layer: str, x: Tensor, weights_T: Tensor) -> Tensor:
        """The sum of the experts' updates of a layer's output, (..., O), with the given weights."""
        parts = [self.pool.update_of(layer, name, x) for name in self.experts]
        each = weights_T.to(x.dtype).unbind(-1)
        return torch.stack([weight[..., None] * part for weight, part in zip(each, parts, strict=True)]).sum(0)

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (..., O), in the dtype of its input ``x``, (..., I)."""
        return self.mix(layer, x, self.gate(layer, x))

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output with the update added; a mixture is not trained."""
        return y + self.add(layer, x)

    def weights(self) -> list[Tensor]:
        """The digests of the experts, and what determines their weights."""
        digests = [bytes.fromhex(self.pool.digest(name)) for name in self.experts]
        with torch.inference_mode(False):  # tensors of inference mode do not count their changes, which the pool reads
            return [*(torch.tensor(list(digest), dtype=torch.uint8) for digest in digests), *self.rule()]

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """Refuse to give A and B, which a mixture does not have.

        Raises:
            ConfigError: always; the weights of a mixture change with the query.
        """
        raise ConfigError(f"the update of {layer} is a mixture of {', '.join(self.experts)}; no LoRA file holds it.")


class FixedMixture(Mixture):
    """A mixture with the same weights for every token.

    Args:
        pool: holds the experts.
        experts: their names.
        weights_T: $w_t$. Gradients reach them if they require some.
    """

    def __init__(self, pool: ExpertPool, experts: Sequence[str], weights_T: Tensor) -> None:
        super().__init__(pool, experts)
        self.weights_T = weights_T

    def gate(self, layer: str, x: Tensor) -> Tensor:
        """The weights, (T,)."""
        return self.weights_T

    def rule(self) -> Iterator[Tensor]:
        """The weights."""
        yield self.weights_T.detach().clone()


class TokenMixture(Mixture):
    r"""A mixture with a weight of each expert for each token and layer.

    $$s_t = \lVert D_t x \rVert, \qquad w = \mathrm{softmax}(\mathrm{top}_k(s) / \tau)$$

    Args:
        pool: holds the experts.
        experts: their names.
        directions: $D_t$ of all experts by layer, (T, K, I), in fp32.
        top_k: k, the number of experts that act on a token at a layer.
        temperature: $\tau$, above 0.
    """

    def __init__(
        self,
        pool: ExpertPool,
        experts: Sequence[str],
        directions: Mapping[str, Tensor],
        *,
        top_k: int,
        temperature: float,
    ) -> None:
        super().__init__(pool, experts)
        self.directions, self.top_k, self.temperature = dict(directions), top_k, temperature

    def gate(self, layer: str, x: Tensor) -> Tensor:
        """The weights of a layer's tokens, (..., T), in fp32."""
        directions_TKI = self.directions[layer]
        along_TK = linear(x.float(), directions_TKI.flatten(0, 1)).view(*x.shape[:-1], *directions_TKI.shape[:2])
        scores_T = along_TK.norm(dim=-1)
        return gates(scores_T / self.temperature, self.top_k)

    def rule(self) -> Iterator[Tensor]:
        """The directions of every layer, k and the temperature."""
        yield from self.directions.values()
        yield torch.tensor([self.top_k, self.temperature])


class Tally:
    """A mixture that also sums its weights over all tokens and layers that it processes.

    Args:
        mixture: computes the update and the weights.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.total_T = torch.zeros(len(mixture.experts), dtype=torch.float64)

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The mixture's update of a layer's output, (..., O); its weights are added to ``total_T``."""
        weights_T = self.mixture.gate(layer, x)
        self.total_T += weights_T.flatten(0, -2).double().sum(0).cpu()
        return self.mixture.mix(layer, x, weights_T)
