"""Weight changes of layers: low-rank products, which are never multiplied out, and dense matrices.

Letters: O and I the sizes of a layer's output and input, R a rank, K a number of singular values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    r"""A change $\Delta W = B A$ of one layer, LoRA's scale included.

    Args:
        b_OR: B.
        a_RI: A.
    """

    b_OR: Tensor
    a_RI: Tensor


#: The change of one layer: low rank, or dense, (O, I).
Change = LowRank | Tensor
#: The changes of all layers of a model, by name.
Changes = Mapping[str, Change]


class Spectrum(NamedTuple):
    r"""A thin singular value decomposition, $U \operatorname{diag}(s) V^\top$, without singular values that are rounding."""

    u_OK: Tensor
    s_K: Tensor
    v_IK: Tensor


def dense(change: Change) -> Tensor:
    """A change multiplied out, (O, I)."""
    return change if isinstance(change, Tensor) else change.b_OR @ change.a_RI


def size(change: Change) -> int:
    """Numbers that a change takes in memory."""
    return change.numel() if isinstance(change, Tensor) else change.b_OR.numel() + change.a_RI.numel()


def tensors(change: Change) -> tuple[Tensor, ...]:
    """The tensors that hold a change."""
    return (change,) if isinstance(change, Tensor) else (change.a_RI, change.b_OR)


def compact(change: Change) -> Change:
    """A change in the form that takes less memory: a product whose factors are larger than it is multiplied out."""
    if isinstance(change, Tensor):
        return change
    outputs, inputs = change.b_OR.shape[0], change.a_RI.shape[1]
    return change if size(change) < outputs * inputs else dense(change)


def scaled(change: Change, factor: float) -> Change:
    """A change times a number."""
    return factor * change if isinstance(change, Tensor) else LowRank(factor * change.b_OR, change.a_RI)


def weighted_sum(changes: Sequence[Change], weights: Sequence[float]) -> Change:
    r"""$\sum_t w_t \Delta W_t$, exact: factors are concatenated, so ranks add up until a dense matrix is smaller.

    Args:
        changes: of one layer.
        weights: one for each.
    """
    low = [change for change in changes if isinstance(change, LowRank)]
    if len(low) < len(changes):
        first, *others = (w * dense(change) for w, change in zip(weights, changes, strict=True))
        return sum(others, start=first)
    b_OR = torch.cat([w * change.b_OR for w, change in zip(weights, low, strict=True)], dim=1)
    return compact(LowRank(b_OR, torch.cat([change.a_RI for change in low])))


def inner(one: Change, other: Change) -> Tensor:
    r"""The Frobenius inner product $\langle \Delta W, \Delta W' \rangle$ of two changes of a layer, a scalar."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one * other).sum()
    if isinstance(one, Tensor):
        return inner(other, one)
    if isinstance(other, Tensor):
        return ((one.b_OR.T @ other) * one.a_RI).sum()
    return ((one.b_OR.T @ other.b_OR) * (one.a_RI @ other.a_RI.T)).sum()


def norm(changes: Changes) -> Tensor:
    """The Frobenius norm over all layers, a scalar."""
    squares = [inner(change, change) for change in changes.values()]
    return torch.stack(squares).sum().clamp(min=0).sqrt()


def svd(change: Change) -> tuple[Tensor, Tensor, Tensor]:
    r"""$U$, (O, R), singular values, (R,), the largest first, and $V^\top$, (R, I), of a change.

    Of factors, the product is never computed: with $B = Q_B R_B$ and $A^\top = Q_A R_A$ it is $Q_B (R_B R_A^\top) Q_A^\top$,
    so the SVD of the R x R matrix in the middle suffices. The sign of each pair of vectors is arbitrary.
    """
    if isinstance(change, Tensor):
        u_OK, s_K, vh_KI = torch.linalg.svd(change, full_matrices=False)
        return u_OK, s_K, vh_KI
    right_IR, a_RR = torch.linalg.qr(change.a_RI.T)
    left_OR, b_RR = torch.linalg.qr(change.b_OR)
    u_RR, s_R, vh_RR = torch.linalg.svd(b_RR @ a_RR.T, full_matrices=False)
    return left_OR @ u_RR, s_R, vh_RR @ right_IR.T


def spectrum(change: Change) -> Spectrum:
    """The singular values and vectors of a change that are no rounding."""
    u_OK, s_K, vh_KI = svd(change)
    # As numpy's matrix_rank: smaller singular values are rounding, and their vectors are any.
    rounding = max(len(u_OK), vh_KI.shape[1]) * torch.finfo(s_K.dtype).eps * s_K[0]
    kept = int((s_K > rounding).sum())
    return Spectrum(u_OK[:, :kept], s_K[:kept], vh_KI[:kept].T)


def truncated(change: Change, rank: int) -> tuple[LowRank, float]:
    """The nearest change of a rank (Eckart and Young, 1936), and its relative error.

    Args:
        change: of a layer.
        rank: at least 1.

    Returns:
        The change, with the square roots of the singular values in both factors, and the Frobenius norm of what is left out
        as a share of the whole, 0..1.
    """
    u_OK, s_K, v_IK = spectrum(change)
    roots_K = s_K[:rank].sqrt()
    squares_K = s_K.double() ** 2
    error = float((squares_K[rank:].sum() / squares_K.sum()).sqrt()) if len(s_K) else 0.0
    return LowRank(u_OK[:, :rank] * roots_K, (v_IK[:, :rank] * roots_K).T), error


def shape(change: Change) -> tuple[int, int]:
    """The sizes of a layer's output and input."""
    if isinstance(change, LowRank):
        return change.b_OR.shape[0], change.a_RI.shape[1]
    return change.shape[0], change.shape[1]


def as_low_rank(changes: Changes, rank: int | None) -> tuple[dict[str, LowRank], float]:
    """Changes as factors, and the relative error of all layers together.

    Args:
        changes: by layer.
        rank: highest rank of a layer; None truncates nothing.
    """
    found: dict[str, LowRank] = {}
    squares = 0.0  # of the norm of what is left out
    for layer, change in changes.items():
        if isinstance(change, LowRank) and (rank is None or len(change.a_RI) <= rank):
            found[layer] = change
        else:
            found[layer], error = truncated(change, min(shape(change)) if rank is None else rank)
            squares += error**2 * float(inner(change, change))
    whole = float(norm(changes))
    return found, squares**0.5 / whole if whole else 0.0
