"""What an expert adds to a layer's output while it is being trained.

The sum is that of PEFT's LoRA layer, in the precision that the model computes in, as under mixed precision; the weights
themselves stay in full precision.

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
        drop: share of the input's numbers that are left out, each by itself, the rest being scaled up; 0..1.
    """
    x, kept = dropped(x, drop)
    scale /= kept
    low_NR = linear(x.flatten(0, -2), down_RI.to(x.dtype))
    return torch.addmm(y.flatten(0, -2), low_NR, up_OR.to(x.dtype).T, alpha=scale).view_as(y)


def dropped(x: Tensor, drop: float) -> tuple[Tensor, float]:
    """A tensor without a share of its numbers, and what it is yet to be divided by.

    Args:
        x: of any shape.
        drop: share of its numbers that are left out, each by itself; 0..1.
    """
    if not drop:
        return x, 1.0
    if x.device.type == "cpu":
        kept, share = kept_numbers(x, drop)
        return x * kept, share
    return dropout(x, drop), 1.0


def kept_numbers(x: Tensor, drop: float) -> tuple[Tensor, float]:
    """Which numbers of a tensor dropout leaves: 1 and 0, of its shape and type, and the share of ones to expect.

    torch draws each number's fate by itself, one after the other, which takes a tenth of a training step on a CPU. Here
    four of them are cut out of each random integer, so ``drop`` is rounded to a multiple of 2^-16.

    >>> kept, share = kept_numbers(torch.zeros(100, 100), 0.25)
    >>> share, abs(float(kept.mean()) - 0.75) < 0.03
    (0.75, True)
    """
    left_out = round(drop * _LEVELS)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[: x.numel()]
    kept = torch.ge(bits, left_out - _LEVELS // 2, out=torch.empty(x.numel(), dtype=x.dtype))
    return kept.view(x.shape), 1 - left_out / _LEVELS
