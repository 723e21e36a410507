"""The update of a LoRA adapter in training, with dropout.

It computes what PEFT's LoRA layer computes under mixed precision: products in the dtype of the model, weights in fp32.

Letters: N tokens of all rows, I and O the sizes of a layer's input and output, R rank.
"""

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear

_LEVELS = 2**16


def update(y: Tensor, x: Tensor, down_RI: Tensor, up_OR: Tensor, *, scale: float, drop: float) -> Tensor:
    r"""$y + s\,B A\,\mathrm{dropout}(x)$, LoRA's equation 3 (Hu et al., 2021) with the dropout of its code.

    Args:
        y: the frozen layer's output, (..., O).
        x: its input, (..., I).
        down_RI: A.
        up_OR: B.
        scale: s.
        drop: probability with which an element of the input is zeroed; the others are scaled up. 0..1.
    """
    x, kept = dropped(x, drop)
    scale /= kept
    low_NR = linear(x.flatten(0, -2), down_RI.to(x.dtype))
    return torch.addmm(y.flatten(0, -2), low_NR, up_OR.to(x.dtype).T, alpha=scale).view_as(y)


def dropped(x: Tensor, drop: float) -> tuple[Tensor, float]:
    """A tensor after dropout, and the number by which it must still be divided.

    Args:
        x: of any shape.
        drop: probability with which an element is zeroed, 0..1.

    Returns:
        The tensor, and 1.0 where it is scaled up already, else the expected share of the elements that are kept.
    """
    if not drop:
        return x, 1.0
    if x.device.type == "cpu":
        kept, share = kept_numbers(x, drop)
        return x * kept, share
    return dropout(x, drop), 1.0


def kept_numbers(x: Tensor, drop: float) -> tuple[Tensor, float]:
    """A dropout mask of ones and zeros in a tensor's shape and dtype, and the expected share of ones.

    On a CPU, torch draws one random number per element, which takes 10 % of a training step. Here each random 64-bit integer
    gives the mask of four elements, so ``drop`` is rounded to a multiple of 2^-16.

    Args:
        x: of any shape.
        drop: probability of a zero, 0..1.

    >>> kept, share = kept_numbers(torch.zeros(100, 100), 0.25)
    >>> share, abs(float(kept.mean()) - 0.75) < 0.03
    (0.75, True)
    """
    left_out = round(drop * _LEVELS)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[: x.numel()]
    kept = torch.ge(bits, left_out - _LEVELS // 2, out=torch.empty(x.numel(), dtype=x.dtype))
    return kept.view(x.shape), 1 - left_out / _LEVELS


def parallel_update(x: Tensor, down_EIR: Tensor, up_ERO: Tensor, tokens: int) -> Tensor:
    """The updates of E adapters, each of its part of every row's tokens, one after the other; (rows, E, tokens of a part, O).

    Args:
        x: of a layer, (B, S, I), where S is E times the size of a part; or the tokens of all rows as one list, (B S, I).
        down_EIR: A of each adapter, transposed.
        up_ERO: B of each adapter, transposed, times its scale.
        tokens: of a part, which a list of all tokens does not tell.

    >>> one = torch.ones(1, 4, 1)
    >>> parallel_update(one, torch.tensor([[[1.0]], [[2.0]]]), torch.ones(2, 1, 1), 2).flatten().tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    experts = len(down_EIR)
    part = x.shape[1] // experts if x.dim() == 3 else tokens
    parts = x.reshape(-1, experts, part, x.shape[-1]).transpose(0, 1)
    rows = parts.shape[1]
    added = (parts.reshape(experts, rows * part, -1) @ down_EIR) @ up_ERO
    return added.view(experts, rows, part, -1).transpose(0, 1)
