"""How entries of several task vectors become one.

Letters: T task vectors, O and I the sizes of a layer's output and input.
"""

import torch
from torch import Tensor


def elected_mean(deltas_TOI: Tensor) -> Tensor:
    r"""The mean of the entries that have the elected sign, that of the sum (TIES-Merging, algorithm 1: elect and merge).

    Zeros take no part. A sum of zero elects the positive sign.

    Args:
        deltas_TOI: the changes of a layer, trimmed.

    >>> elected_mean(torch.tensor([[[3.0, -1.0]], [[-1.0, -3.0]], [[1.0, 0.0]]]))
    tensor([[ 2., -2.]])
    """
    signs_OI = torch.where(deltas_TOI.sum(0) >= 0, 1.0, -1.0)
    agree_TOI = deltas_TOI.sign() == signs_OI
    return (deltas_TOI * agree_TOI).sum(0) / agree_TOI.sum(0).clamp(min=1)


def largest_entry(one_OI: Tensor, other_OI: Tensor) -> Tensor:
    """Of each pair of entries the one of larger magnitude, the first of equal ones (MagMax, Marczak et al., ECCV 2024).

    >>> largest_entry(torch.tensor([[1.0, -3.0]]), torch.tensor([[-2.0, 3.0]]))
    tensor([[-2., -3.]])
    """
    return torch.where(other_OI.abs() > one_OI.abs(), other_OI, one_OI)
