"""Task arithmetic and related rules: each vector is made sparse, and the entries of all become one.

The rules of ``conf/rule`` that this class gives, as pairs of the two: average (none, mean), task arithmetic (none, sum), TIES
(largest, elect), DARE (at_random, sum or elect), magnitude pruning (largest, mean), MagMax (none, largest), and interpolation
with the base model (none, mean, a scale below 1). PAPERS.md has the papers.
"""

import torch

from see_lightning.config.checks import above_zero, one_of
from see_lightning.errors import ConfigError
from see_lightning.merging.changes import Change, dense, scaled, weighted_sum
from see_lightning.merging.consensus import elected_mean, largest_entry
from see_lightning.merging.rule import Gradient, Merged, MergeRule, TaskVector
from see_lightning.merging.sparsify import at_random, largest
from see_lightning.seeds import seed

SPARSIFY, CONSENSUS = ("none", "largest", "at_random"), ("sum", "mean", "elect", "largest")


class Arithmetic(MergeRule):
    """Merges entry by entry. With no sparsity, sums and means are exact on factors, and no matrix is multiplied out.

    Args:
        sparsify: which entries of each vector are kept: ``none`` keeps all, ``largest`` those of largest magnitude in their
            layer, ``at_random`` random ones, scaled up so that their mean stays.
        density: share of the entries that is kept, above 0, at most 1.
        consensus: ``sum``, ``mean``, ``elect``: the mean of the entries with the elected sign, or ``largest``: the entry of
            largest magnitude.
        scale: of the result, above 0.

    Raises:
        ConfigError: a setting is out of its range, or has no effect.
    """

    def __init__(self, *, sparsify: str, density: float, consensus: str, scale: float) -> None:
        one_of("rule.sparsify", sparsify, SPARSIFY)
        one_of("rule.consensus", consensus, CONSENSUS)
        above_zero("rule.density", density, 1)
        above_zero("rule.scale", scale)
        if sparsify == "none" and density != 1:
            raise ConfigError(f"rule.density={density} has no effect with rule.sparsify=none; leave it at 1.")
        self.sparsify, self.density, self.consensus, self.scale = sparsify, density, consensus, scale
        self.bounded = consensus != "elect"

    def add(self, merged: Merged | None, vector: TaskVector, gradient: Gradient | None = None) -> Merged:
        """Adds the vector to the sum, takes its largest entries, or keeps it for the election."""
        if not self.bounded:
            return Merged(1, (vector,)) if merged is None else Merged(merged.number + 1, (*merged.kept, vector))
        new = {layer: self._sparse(vector, layer) for layer in vector.changes}
        if merged is None:
            return Merged(1, (TaskVector(new),))
        old = merged.kept[0].changes
        return Merged(merged.number + 1, (TaskVector({layer: self._joined(old[layer], new[layer]) for layer in new}),))

    def result(self, merged: Merged) -> dict[str, Change]:
        """The scaled sum or mean, or what the vectors elect."""
        vectors = merged.kept
        if not self.bounded:
            return {
                layer: self.scale * elected_mean(torch.stack([dense(self._sparse(one, layer)) for one in vectors]))
                for layer in vectors[0].changes
            }
        factor = self.scale / merged.number if self.consensus == "mean" else self.scale
        return {layer: scaled(change, factor) for layer, change in vectors[0].changes.items()}

    def _sparse(self, vector: TaskVector, layer: str) -> Change:
        change = vector.changes[layer]
        if self.sparsify == "none":
            return change
        delta_OI = dense(change)
        if self.sparsify == "largest":
            return largest(delta_OI, self.density)
        return at_random(delta_OI, self.density, seed(vector.draw, layer, "merge"))

    def _joined(self, old: Change, new: Change) -> Change:
        if self.consensus == "largest":
            return largest_entry(dense(old), dense(new))
        return weighted_sum([old, new], [1.0, 1.0])
