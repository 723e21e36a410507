"""Embeddings of prompts by the model's hidden states, and distances between them.

Letters: P prompts, T tasks, S tokens, H hidden states.
"""

from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import normalize

from see_lightning.adapters.pool import ExpertPool
from see_lightning.errors import ConfigError
from see_lightning.models.architecture import decoder_layers
from see_lightning.models.sharding import is_sharded

Embedded = tuple[int, tuple[int, ...]]  # a layer's number and a prompt's token ids


def embed_prompts(
    pool: ExpertPool, prompts: Sequence[Sequence[int]], adapter: str | None = None, *, layer: int = 0
) -> Tensor:
    """The mean over a prompt's tokens of the hidden states under one adapter, (P, H), in fp32.

    Each prompt has a forward pass of its own without dropout, so its embedding does not depend on a batch.

    Args:
        pool: the base model and its experts.
        prompts: token ids.
        adapter: an expert's name; None is the base model. An activated expert acts on the prompt's header only.
        layer: number of the decoder layer whose output is averaged, from 1; only this layer and those before it are
            computed, of the base model. 0 for the last hidden states, those behind the final norm.

    Raises:
        ConfigError: the model has no such layer.
    """
    with pool.evaluating():  # also within a step of training: a prompt has one embedding
        return _embed(pool, prompts, adapter, checked_layer(pool, layer))


def _embed(pool: ExpertPool, prompts: Sequence[Sequence[int]], adapter: str | None, layer: int) -> Tensor:
    if layer:
        return torch.stack([_states_behind(pool, prompt, layer).mean(0) for prompt in prompts])
    header = len(pool.header_ids) if adapter is not None else 0
    inner = _base_of(pool)
    means = []
    with torch.no_grad():
        for prompt in prompts:
            ids_1S, states_SH, read = torch.tensor([list(prompt)], device=pool.device()), [], None
            start = len(prompt) - header if header else 0
            for active, part_1S in ((None, ids_1S[:, :start]), (adapter, ids_1S[:, start:])):
                if part_1S.numel():
                    with pool.use_adapter(active):
                        out = inner.base_model(input_ids=part_1S, past_key_values=read, use_cache=bool(header))
                    states_SH.append(out.last_hidden_state[0].float())
                    read = out.past_key_values
            means.append(torch.cat(states_SH).mean(0))
    return torch.stack(means)


def embed_once(
    pool: ExpertPool, prompts: Sequence[Sequence[int]], layer: int, embedded: MutableMapping[Embedded, Tensor]
) -> Tensor:
    """The base model's embeddings of prompts, (P, H), from ``embedded``, or computed and added to it.

    Args:
        pool: has the base model.
        prompts: token ids.
        layer: as in ``embed_prompts``.
        embedded: embeddings by layer and token ids.
    """
    keys = [(layer, tuple(prompt)) for prompt in prompts]
    for key in keys:
        if key not in embedded:
            (embedded[key],) = embed_prompts(pool, [key[1]], layer=layer)
    return torch.stack([embedded[key] for key in keys])


def checked_layer(pool: ExpertPool, layer: float | None) -> int:
    """The number of a decoder layer of the base model, from 1; 0 for the last hidden states.

    Args:
        pool: has the base model.
        layer: this number, or a share of all layers, above 0 and below 1; None is a quarter.

    Raises:
        ConfigError: the model has no such layer.
    """
    number = len(decoder_layers(_base_of(pool))) if layer != 0 else 0
    share = 0.25 if layer is None else layer
    layer = max(1, int(share * number)) if 0 < share < 1 else share
    if not 0 <= layer <= number or layer != int(layer):
        layers = f"between 1 and the {number} of this model" if number else "of which this model's class names none"
        raise ConfigError(
            f"router.layer is the number of a layer, {layers}, a share of them below 1, or 0 for the last hidden states; got"
            f" {layer}."
        )
    return int(layer)


class _LayerReached(Exception):
    """Ends a forward pass behind the layer whose output is wanted."""


def _states_behind(pool: ExpertPool, prompt: Sequence[int], layer: int) -> Tensor:
    """The base model's hidden states behind a layer, (S, H), in fp32; later layers are not computed.

    Every rank must run all of a sharded model, so there the pass goes on.
    """
    inner, states_SH = _base_of(pool), []
    ends = not is_sharded(inner)

    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        states_BSH = output if isinstance(output, Tensor) else output[0]
        states_SH.append(states_BSH[0].float())
        if ends:
            raise _LayerReached

    hook = decoder_layers(inner)[layer - 1].register_forward_hook(keep)
    try:
        with torch.no_grad(), suppress(_LayerReached), pool.use_adapter(None):
            inner.base_model(input_ids=torch.tensor([list(prompt)], device=pool.device()), use_cache=False)
    finally:
        hook.remove()
    return states_SH[0]


def _base_of(pool: ExpertPool) -> Any:
    """The base model without PEFT's wrapper."""
    return pool.model.get_base_model() if isinstance(pool.model, PeftModel) else pool.model


def direction(states_PH: Tensor) -> Tensor:
    r"""The unit vector with the smallest total cosine distance to some embeddings, (H,).

    $\arg\min_{|k| = 1} \sum_p 1 - \cos(q_p, k)$

    It is the normalised sum of the normalised embeddings, so no gradient descent is needed.

    >>> direction(torch.tensor([[2.0, 0.0], [0.0, 1.0]])).tolist()
    [0.7071067690849304, 0.7071067690849304]
    """
    return normalize(normalize(states_PH, dim=1).sum(0), dim=0)


def cosine(states_PH: Tensor, keys_TH: Tensor) -> Tensor:
    """Cosine distance between embeddings and keys, (P, T).

    >>> cosine(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])).tolist()
    [[0.0, 1.0]]
    """
    return 1 - normalize(states_PH, dim=1) @ normalize(keys_TH, dim=1).T


def mahalanobis(states_PH: Tensor, means_TH: Tensor, covariance_HH: Tensor) -> Tensor:
    """Squared Mahalanobis distances between embeddings and class means, (P, T) (Lee et al., NeurIPS 2018).

    >>> two = torch.tensor([[2.0, 0.0]])
    >>> mahalanobis(two, torch.zeros(1, 2), torch.diag(torch.tensor([4.0, 1.0]))).tolist()
    [[1.0]]
    """
    centred_NH = (states_PH[:, None] - means_TH).flatten(0, 1)  # N = P T
    solved_HN = torch.linalg.solve(covariance_HH, centred_NH.T)
    squared_PT: Tensor = (centred_NH * solved_HN.T).sum(1).view(len(states_PH), len(means_TH))
    return squared_PT


def within(states_of: Sequence[Tensor], shrinkage: float = 0.1) -> Tensor:
    """The covariance of embeddings around the means of their own tasks, (H, H), shrunk towards a multiple of the identity.

    Args:
        states_of: the embeddings of each task.
        shrinkage: weight of the multiple of the identity, 0..1.
    """
    centred_PH = torch.cat([states_PH - states_PH.mean(0) for states_PH in states_of])
    return shrunk(centred_PH.T @ centred_PH / len(centred_PH), shrinkage)


def shrunk(covariance_HH: Tensor, shrinkage: float) -> Tensor:
    """A covariance moved towards the multiple of the identity that has the same trace.

    >>> shrunk(torch.tensor([[4.0, 1.0], [1.0, 2.0]]), 0.5).tolist()
    [[3.5, 0.5], [0.5, 2.5]]
    """
    sphere_HH = covariance_HH.diagonal().mean() * torch.eye(len(covariance_HH)).to(covariance_HH)
    return (1 - shrinkage) * covariance_HH + shrinkage * sphere_HH


def from_the_others(states_PH: Tensor, shrinkage: float = 0.1) -> Tensor:
    r"""Leave-one-out: squared Mahalanobis distance of each embedding from the mean of all others, by their covariance, (P,).

    Without the prompt whose embedding lies $u$ from the mean of all $n$, the covariance is
    $\frac n{n-1}S - \frac n{(n-1)^2}uu^\top$ and the prompt lies $\frac n{n-1}u$ from the mean of the others, so one linear
    solve serves all prompts (Sherman and Morrison): with the shrunk
    $A = (1-s)\frac n{n-1}S + s\tau I$ and $q = u^\top A^{-1}u$, the distance is
    $(\frac n{n-1})^2\, q / (1 - (1-s)\frac n{(n-1)^2}q)$. The sphere $\tau I$ is that of all prompts.

    Args:
        states_PH: embeddings of at least two prompts, in fp64.
        shrinkage: s, 0..1.
    """
    n = len(states_PH)
    centred_PH = states_PH - states_PH.mean(0)
    spread_HH = (1 - shrinkage) * centred_PH.T @ centred_PH / n
    solved_HP = torch.linalg.solve(within([states_PH], shrinkage) + spread_HH / (n - 1), centred_PH.T)
    q_P = (centred_PH * solved_HP.T).sum(1)
    squared_P: Tensor = (n / (n - 1)) ** 2 * q_P / (1 - (1 - shrinkage) * n / (n - 1) ** 2 * q_P)
    return squared_P
