r"""The ranks of one LoRA adapter in groups, each a small expert, which a trained router weighs for each token.

$$\Delta W x = s \sum_e g_e(x)\, B_e A_e x, \qquad g(x) = \mathrm{softmax}(\mathrm{top}_k(G x))$$

Letters: B rows, S tokens of a row, N tokens, E experts, R ranks, I and O the sizes of a layer's input and output.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from see_lightning.adapters.lora import dropped
from see_lightning.adapters.mixture import gates
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.weight_cache import WeightCache
from see_lightning.errors import ConfigError


def imbalance(probabilities_NE: Tensor, rows_N: Tensor, rows: int) -> Tensor:
    r"""$E \sum_e f_e P_e$ of each row: 1 where a row's tokens are spread evenly, E where one expert gets them all, (B,).

    $f_e$ is the share of the row's tokens for which expert $e$ is the most probable, and $P_e$ its mean probability; the
    gradient is that of $P$ (Fedus et al., *Switch Transformers*, arXiv 2101.03961, equation 4, for each row).

    Args:
        probabilities_NE: of each token, softmax over all experts.
        rows_N: the row of each token.
        rows: B. A row without tokens gets 0.

    >>> imbalance(torch.tensor([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([1., 2.])
    """
    experts = probabilities_NE.shape[1]
    chosen_NE = one_hot(probabilities_NE.argmax(1), experts).to(probabilities_NE.dtype)
    count_B1 = torch.bincount(rows_N, minlength=rows)[:, None].clamp_min(1)
    none_BE = probabilities_NE.new_zeros(rows, experts)
    share_BE, mean_BE = (none_BE.index_add(0, rows_N, of_NE) / count_B1 for of_NE in (chosen_NE, probabilities_NE))
    return experts * (share_BE * mean_BE).sum(1)


class RoutedExperts(nn.Module):
    """Groups of an adapter's ranks with a router at each layer, which is trained with them.

    Args:
        pool: holds the adapter.
        adapter: its name; its rank is a multiple of the number of experts.
        routers: $G$ of each layer, (E, I), copied, in fp32.
        top_k: number of experts that act on a token at a layer.
    """

    def __init__(self, pool: ExpertPool, adapter: str, routers: Mapping[str, Tensor], top_k: int) -> None:
        super().__init__()
        self._pool = (pool,)  # in a tuple: the pool is a submodule of the method already
        self.adapters: tuple[str, ...] = (adapter,)
        self.top_k, self._places = top_k, {layer: n for n, layer in enumerate(routers)}
        self.routers = nn.ParameterList(nn.Parameter(router.detach().float().clone()) for router in routers.values())
        #: Of training passes inside ``noting``: its arguments.
        self.of_pass: tuple[Tensor, Tensor] | None = None
        self._noted: list[Tensor] = []
        self._cache = WeightCache()

    def router(self, layer: str) -> Tensor:
        """$G$ of a layer, (E, I)."""
        router: Tensor = self.routers[self._places[layer]]
        return router

    @contextmanager
    def noting(self, mask_BS: Tensor, labels_B: Tensor) -> Iterator[list[Tensor]]:
        """Collects the imbalance of each row at each layer, (B,), in training passes inside the context.

        Args:
            mask_BS: True on tokens.
            labels_B: positions of each row that the vocabulary head gets.
        """
        self.of_pass, self._noted = (mask_BS, labels_B), []
        try:
            yield self._noted
        finally:
            self.of_pass = None

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """A layer's output, (..., O), with the experts added; dropout acts on their input and not on the router's."""
        logits_E = linear(x.float(), self.router(layer))
        if self.of_pass is not None:
            self._note(x, logits_E.softmax(-1), *self.of_pass)
        input_, kept = dropped(x, self._pool[0].dropout())
        a_RI, b_OR = (weight.to(x.dtype) for weight in self._pool[0].pair(layer, self.adapters[0]))
        return y + self._mixed(layer, linear(input_, a_RI) / kept, logits_E, b_OR)

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (..., O), in the dtype of its input ``x``, (..., I)."""

        def make() -> tuple[Tensor, Tensor]:
            a_RI, b_OR = self.pair(layer)
            return a_RI.to(x.dtype), b_OR.to(x.dtype)

        weights = partial(self._pool[0].weights_of, self.adapters, [layer])
        a_RI, b_OR = self._cache.get((layer, x.dtype), weights, make)
        return self._mixed(layer, linear(x, a_RI), linear(x.float(), self.router(layer).detach()), b_OR)

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """A, (R, I), and B, (O, R), of all experts, without gates."""
        a, b = self._pool[0].pair(layer, self.adapters[0])
        return a.detach(), b.detach()

    def weights(self) -> Iterator[Tensor]:
        """A and B of the adapter, and the routers."""
        yield from self._pool[0].weights_of(self.adapters)
        yield from self.routers

    def _mixed(self, layer: str, low_R: Tensor, logits_E: Tensor, b_OR: Tensor) -> Tensor:
        each_E = gates(logits_E, self.top_k).to(low_R.dtype)
        gated_R = low_R * each_E.repeat_interleave(low_R.shape[-1] // each_E.shape[-1], dim=-1)
        mixed_O: Tensor = self._pool[0].scale(layer, self.adapters[0]) * linear(gated_R, b_OR)
        return mixed_O

    def _note(self, x: Tensor, probabilities_E: Tensor, mask_BS: Tensor, labels_B: Tensor) -> None:
        rows = len(labels_B)
        numbers_B = torch.arange(rows, device=x.device)
        if x.dim() == 3 and len(x) == rows:
            own_BS = mask_BS[:, -x.shape[1] :]  # activated experts act on the last tokens alone
            rows_N, chosen_NE = numbers_B[:, None].expand_as(own_BS)[own_BS], probabilities_E[own_BS]
        elif x.dim() == 3 and len(x) == 1 and x.shape[1] == int(labels_B.sum()):  # the vocabulary head
            rows_N, chosen_NE = numbers_B.repeat_interleave(labels_B), probabilities_E[0]
        else:
            raise ConfigError(
                f"an adapted layer got an input of the sizes {tuple(x.shape)} for {rows} rows; the balance of experts is"
                f" measured for each row. Write method.balance=0, or use a base model that keeps rows together."
            )
        self._noted.append(imbalance(chosen_NE, rows_N, rows))
