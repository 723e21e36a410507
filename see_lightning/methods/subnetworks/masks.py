"""Masks over weights: the weights that a task uses, learned through scores and stored as bits (WSN, Kang et al., ICML 2022).

Letters: G tensors that are masked apart from each other, X numbers in each.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def top_share(scores_GX: Tensor, share: float, rounding: Callable[[float], int] = math.ceil) -> Tensor:
    r"""The mask $1[\,|s| \text{ in the top } c\,]$ of each row, in which at least one entry is chosen.

    Scores are compared in full precision; equal scores do not add entries to the mask.

    Args:
        scores_GX: s.
        share: c, 0..1.
        rounding: of c times the number of entries. Rounded up as in the authors' code of ExSSNeT, which keeps
            ``n - int((1 - c) * n)`` of n entries, or down (``math.floor``).

    >>> top_share(torch.tensor([[0.1, -0.9, 0.5, 0.2]]), 0.5).int().tolist()
    [[0, 1, 1, 0]]
    >>> scores = torch.arange(576.0 * 8)[None]
    >>> [int(top_share(scores, 0.1, rounding).sum()) for rounding in (math.ceil, math.floor)]
    [461, 460]
    """
    exact = share * scores_GX.shape[-1]
    whole = round(exact)
    chosen = max(1, whole if math.isclose(exact, whole, rel_tol=1e-9) else rounding(exact))  # 0.3 * 10 is 3
    places_GX = scores_GX.detach().float().abs().topk(chosen, dim=-1, sorted=False).indices
    return torch.zeros_like(scores_GX, dtype=torch.bool).scatter(-1, places_GX, True)


def straight_through(scores: Tensor, mask: Tensor) -> Tensor:
    """The mask as numbers whose gradient goes to the scores' size unchanged (WSN, equation 5).

    >>> scores = torch.tensor([-2.0, 1.0], requires_grad=True)
    >>> (straight_through(scores, torch.tensor([True, False])) * torch.tensor([3.0, 5.0])).sum().backward()
    >>> scores.grad.tolist()
    [-3.0, 5.0]
    """
    size = scores.abs()
    return mask.to(size.dtype) + (size - size.detach())


def favouring(scores: Tensor, mask: Tensor) -> Tensor:
    """The same scores permuted so that the entries of a mask have the largest; the order is kept otherwise.

    >>> favouring(torch.tensor([0.9, -0.5, 0.1, 0.2]), torch.tensor([False, False, True, True])).tolist()
    [0.20000000298023224, 0.10000000149011612, -0.5, 0.8999999761581421]
    """
    by_size = scores.flatten().abs().argsort(descending=True, stable=True)
    favoured_first = by_size[mask.flatten()[by_size].byte().argsort(descending=True, stable=True)]
    return torch.empty_like(scores).flatten().index_copy(0, favoured_first, scores.flatten()[by_size]).view_as(scores)


def pack(mask: Tensor) -> Tensor:
    """A mask at a bit a number: bytes, the first number in the lowest bit, in the order of the flat tensor.

    >>> pack(torch.tensor([True, False, True, True, False, False, False, False, True])).tolist()
    [13, 1]
    """
    bits_8B = torch.nn.functional.pad(mask.flatten().byte(), (0, -mask.numel() % 8)).view(-1, 8).T
    return torch.stack([bits << place for place, bits in enumerate(bits_8B)]).sum(0).to(torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """The mask that ``pack`` packed.

    >>> unpack(torch.tensor([13, 1], dtype=torch.uint8), torch.Size([3, 3])).int().tolist()
    [[1, 0, 1], [1, 0, 0], [0, 0, 1]]
    """
    bits_B8 = torch.stack([packed >> place & 1 for place in range(8)], dim=1)
    return bits_B8.flatten()[: shape.numel()].view(shape).bool()
