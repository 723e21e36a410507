"""OPCM: each new task vector is projected off the main directions of the merged one, and the sum is scaled to a usual length.

Tang et al., *Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model Merging*,
NeurIPS 2025, arXiv 2501.09522.

Letters: O and I the sizes of a layer's output and input, K singular values of the merged change.
"""

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.merging.changes import (
    Change,
    LowRank,
    Spectrum,
    compact,
    norm,
    scaled,
    spectrum,
    weighted_sum,
)
from see_lightning.merging.rule import Gradient, Merged, MergeRule, TaskVector


def removed(new: Change, known: Spectrum, alpha: float) -> Tensor:
    r"""What a new change loses, in the singular directions of the merged one, (K, K): $C$ of $\Delta W - U C V^\top$.

    It is $Z = U^\top \Delta W V$ at the main directions, a square at the upper left, and on the whole diagonal.

    Args:
        new: the change of a layer.
        known: singular vectors and values of the merged change.
        alpha: the main directions are the first ones whose singular values have this share of the sum of all, 0..1.
    """
    u_OK, s_K, v_IK = known
    z_KK = u_OK.T @ new @ v_IK if isinstance(new, Tensor) else (u_OK.T @ new.b_OR) @ (new.a_RI @ v_IK)
    main = int((s_K.cumsum(0) <= alpha * s_K.sum()).sum())
    c_KK = torch.diag(z_KK.diagonal())
    c_KK[:main, :main] = z_KK[:main, :main]
    return c_KK


def joined(merged: Change, new: Change, scale: float, alpha: float) -> Change:
    r"""$\lambda \Delta W_{merged}$ and what is left of a new change after the projection, as one change.

    Args:
        merged: change of a layer.
        new: change of the same layer.
        scale: $\lambda$ of the merged change.
        alpha: see ``removed``.
    """
    known = spectrum(merged)
    u_OK, s_K, v_IK = known
    core_KK = torch.diag(scale * s_K) - removed(new, known, alpha)
    return weighted_sum([compact(LowRank(u_OK @ core_KK, v_IK.T)), new], [1.0, 1.0])


class Opcm(MergeRule):
    r"""Sequential merging by orthogonal projection; the merged vector is as long as its task vectors are on average.

    Args:
        alpha: share of the sum of singular values that the main directions have, 0..1.
    """

    def __init__(self, *, alpha: float) -> None:
        within("rule.alpha", alpha, 0, 1)
        self.alpha = alpha

    def add(self, merged: Merged | None, vector: TaskVector, gradient: Gradient | None = None) -> Merged:
        """Algorithm 1 of the paper. ``numbers``: ``scale``, the latest lambda, and ``mean_norm`` of the vectors."""
        length = float(norm(vector.changes))
        if merged is None:
            return Merged(1, (vector,), {"scale": 1.0, "mean_norm": length})
        number, old = merged.number + 1, merged.kept[0].changes
        mean_norm = merged.numbers["mean_norm"] + (length - merged.numbers["mean_norm"]) / number
        raw = {
            layer: joined(old[layer], new, merged.numbers["scale"], self.alpha) for layer, new in vector.changes.items()
        }
        scale = float(norm(raw)) / mean_norm if mean_norm else 1.0
        changes = {layer: scaled(change, 1 / scale if scale else 1.0) for layer, change in raw.items()}
        return Merged(number, (TaskVector(changes),), {"scale": scale, "mean_norm": mean_norm})
