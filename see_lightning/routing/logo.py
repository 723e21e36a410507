r"""LoGo (Lee, Das, Gupta, Gummadi, *LoRA on the Go*, ACL 2026, arXiv 2511.07129): the updates themselves tell who fits.

One pass over the prompt gives the input $x$ of one layer at the last token, and each expert's output $o_t = s_t B_t A_t x$
there. The signal of an expert is $\lVert o_t \rVert$, or the inverse entropy of $\mathrm{softmax}(o_t)$. The k experts with
the largest signals answer together, with weights that are proportional to the signals.

Letters: T experts, I and O the sizes of the layer's input and output.
"""

import torch
from torch import Tensor

from see_lightning.adapters.mixture import FixedMixture
from see_lightning.adapters.weight_cache import sha256
from see_lightning.config.checks import one_of, within
from see_lightning.errors import ConfigError, listed
from see_lightning.routing.router import Routed
from see_lightning.routing.scoring import PromptRouter
from see_lightning.tasks.batches import Queries


def norm(outputs_TO: Tensor) -> Tensor:
    r"""$\lVert o_t \rVert_2$, (T,).

    >>> norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [5.0, 1.0]
    """
    norms_T: Tensor = outputs_TO.norm(dim=-1)
    return norms_T


def inverse_entropy(outputs_TO: Tensor) -> Tensor:
    r"""$1 / (H(\mathrm{softmax}(o_t)) + 10^{-6})$, (T,), in 1/nats.

    >>> [round(float(one), 1) for one in inverse_entropy(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))]
    [1.4, 809.8]
    """
    log_p_TO = outputs_TO.log_softmax(dim=-1)
    return 1 / (1e-6 - (log_p_TO.exp() * log_p_TO).sum(dim=-1))


def weights_of(signals_T: Tensor, k: int) -> tuple[list[int], Tensor]:
    """Places of the k largest signals, the largest first, and their weights, (k,), which add up to 1.

    >>> weights_of(torch.tensor([1.0, 3.0, 0.5]), 2)
    ([1, 0], tensor([0.7500, 0.2500]))
    """
    top = signals_T.topk(min(k, len(signals_T)))
    return top.indices.tolist(), top.values / top.values.sum()


SIGNALS = {"norm": norm, "entropy": inverse_entropy}


class Logo(PromptRouter):
    """Mixes the k experts with the largest signals at one layer, with weights for each query.

    ``route`` names the expert with the largest signal. A query whose weights no other query has is answered by itself, which
    is slower than in a batch; with ``top_k=1`` the expert answers as under other routers.

    Args:
        method: whose queries are routed.
        layer: the last adapted layer of this name, or whose name ends in it, such as ``layers.7.self_attn.q_proj``.
        signal: ``norm`` of the expert's output, or inverse ``entropy``.
        top_k: number of experts that answer a query, at least 1.
        target_recall: least share of a task's held-out rows that its threshold accepts; 0: the base model is never chosen.

    Raises:
        ConfigError: there is no such adapted layer, or a setting is unknown or out of range.
    """

    needs = frozenset({"has_experts", "adds_updates"})

    def __init__(
        self,
        method: Routed,
        *,
        layer: str = "q_proj",
        signal: str = "norm",
        top_k: int = 3,
        target_recall: float = 0.0,
    ) -> None:
        super().__init__(method, target_recall=target_recall)
        one_of("router.signal", signal, SIGNALS)
        within("router.top_k", top_k, 1)
        self.signal, self.top_k = SIGNALS[signal], top_k
        layers = [name for name in method.pool.layers if f".{name}".endswith(f".{layer}")]
        if not layers:
            kinds = sorted({name.rpartition(".")[2] for name in method.pool.layers})
            raise ConfigError(
                f"router.layer={layer} is no adapted layer; give one of {listed(kinds)}, or a layer's name."
            )
        self.layer = layers[-1]
        self._inputs: dict[tuple[int, ...], Tensor] = {}

    def score(self, prompt: tuple[int, ...]) -> Tensor:
        """The signal of each expert, (T,)."""
        pool, x_I = self.method.pool, self._input(prompt)
        with torch.no_grad():
            outputs_TO = torch.stack([pool.update_of(self.layer, name, x_I) for name in pool.names])
        return self.signal(outputs_TO.double()).cpu()

    def adapters(self, queries: Queries, routes: list[str | None]) -> list[str | None]:
        """The mixture of the best k for each query, the expert itself if k is 1, and the base model where it is routed to."""
        if self.top_k == 1 or len(self.method.pool.names) == 1:
            return routes
        prompts = [tuple(prompt) for prompt in queries.prompts]
        return [route and self._mixture(prompt) for prompt, route in zip(prompts, routes, strict=True)]

    def _mixture(self, prompt: tuple[int, ...]) -> str:
        """The name of a prompt's mixture, which is registered in the pool; its name is its content's."""
        pool = self.method.pool
        places, weights_k = weights_of(self.score(prompt), self.top_k)
        mixture = FixedMixture(pool, [pool.names[place] for place in places], weights_k.to(pool.device()))
        name = f"(logo {sha256(mixture.weights())[:16]})"
        if name not in pool.composites:
            pool.register(name, mixture, is_expert=False)
        return name

    def _input(self, prompt: tuple[int, ...]) -> Tensor:
        """The layer's input at the last token of a prompt, (I,), under the base model; computed once in a process."""
        if prompt not in self._inputs:
            pool, last = self.method.pool, {}

            def keep(layer: str, x_BSI: Tensor) -> None:
                if layer == self.layer:
                    last[layer] = x_BSI[0, -1]

            with torch.no_grad(), pool.observe(keep):
                pool.prefill(None, [list(prompt)])
            self._inputs[prompt] = last[self.layer]
        return self._inputs[prompt]
