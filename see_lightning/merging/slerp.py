"""Spherical interpolation of two task vectors, layer by layer (Shoemake, *Animating rotation with quaternion curves*)."""

import math

from see_lightning.config.checks import within
from see_lightning.merging.changes import Change, inner, weighted_sum
from see_lightning.merging.rule import Gradient, Merged, MergeRule, TaskVector

PARALLEL = 0.9995  # from this cosine on, the arc is straight within rounding


def slerp(one: Change, other: Change, share: float) -> Change:
    r"""$\frac{\sin((1 - t)\theta)}{\sin \theta} \Delta W + \frac{\sin(t \theta)}{\sin \theta} \Delta W'$, at angle $\theta$.

    Of changes that are all but parallel, or one of which is zero, it is the straight line. Exact on factors.

    Args:
        one: change of a layer.
        other: change of the same layer.
        share: t, from 0, the one, to 1, the other.
    """
    lengths = math.sqrt(float(inner(one, one)) * float(inner(other, other)))
    cosine = float(inner(one, other)) / lengths if lengths else 1.0
    if abs(cosine) > PARALLEL:
        return weighted_sum([one, other], [1 - share, share])
    angle = math.acos(cosine)
    weights = [math.sin((1 - share) * angle), math.sin(share * angle)]
    return weighted_sum([one, other], [weight / math.sin(angle) for weight in weights])


class Slerp(MergeRule):
    """The point on the arc between two vectors; each further vector is met on the arc from the merged one.

    Args:
        share: t of ``slerp``, of the new vector, 0..1; None is 1/2 for the second vector, 1/3 for the third, and so on.
    """

    def __init__(self, *, share: float | None) -> None:
        within("rule.share", share, 0, 1)
        self.share = share

    def add(self, merged: Merged | None, vector: TaskVector, gradient: Gradient | None = None) -> Merged:
        """Moves the merged vector along the arc towards the new one."""
        if merged is None:
            return Merged(1, (vector,))
        number, old = merged.number + 1, merged.kept[0].changes
        share = 1 / number if self.share is None else self.share
        changes = {layer: slerp(old[layer], new, share) for layer, new in vector.changes.items()}
        return Merged(number, (TaskVector(changes),))
