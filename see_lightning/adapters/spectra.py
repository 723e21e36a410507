"""The singular values and directions of an adapter's update, from its factors.

Letters: R ranks, I and O the sizes of a layer's input and output.
"""

from torch import Tensor

from see_lightning.adapters.pool import ExpertPool
from see_lightning.merging.changes import LowRank, svd


def spectrum(a_RI: Tensor, b_OR: Tensor) -> tuple[Tensor, Tensor]:
    r"""Singular values $\Sigma$, (R,), the largest first, and right singular vectors $V^\top$, (R, I), of $BA$, in fp32.

    Exact up to rounding and without random numbers, see ``svd``; the sign of each vector is arbitrary.

    Args:
        a_RI: A.
        b_OR: B.

    >>> import torch
    >>> sigma_R, v_RI = spectrum(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    >>> sigma_R.tolist(), v_RI.abs().tolist()
    ([10.0], [[0.0, 1.0]])
    """
    _, sigma_R, v_RI = svd(LowRank(b_OR.double(), a_RI.double()))
    return sigma_R.float(), v_RI.float()


def expert_spectrum(pool: ExpertPool, expert: str, layer: str) -> tuple[Tensor, Tensor]:
    r"""``spectrum`` of an expert's update at a layer, its scale included.

    Of a composite it is that of the LoRA adapter which is saved for it, so gates count as 1.

    Args:
        pool: holds the expert.
        expert: its name.
        layer: name of an adapted layer.

    Raises:
        ConfigError: the expert is no LoRA adapter, such as a prefix.
    """
    composite = pool.composites.get(expert)
    a, b = composite.pair(layer) if composite else pool.pair(layer, expert)
    scale = pool.scale(layer, composite.adapters[0] if composite else expert)
    return spectrum(a.detach(), scale * b.detach())
