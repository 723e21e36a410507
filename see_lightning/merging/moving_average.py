"""An exponential moving average: each merged model is a mean of the one before it and of the new task's.

In continual pretraining of vision-language models, Roth et al. (*A Practitioner's Guide to Continual Multimodal Pretraining*,
NeurIPS 2024) found it strong.
"""

from see_lightning.config.checks import above_zero
from see_lightning.merging.changes import weighted_sum
from see_lightning.merging.rule import Gradient, Merged, MergeRule, TaskVector


class MovingAverage(MergeRule):
    r"""$\tau \leftarrow (1 - w)\, \tau + w\, \tau_t$, from the first task's vector on; exact on factors.

    Args:
        weight: $w$ of the new vector, above 0, at most 1.
    """

    def __init__(self, *, weight: float) -> None:
        above_zero("rule.weight", weight, 1)
        self.weight = weight

    def add(self, merged: Merged | None, vector: TaskVector, gradient: Gradient | None = None) -> Merged:
        """Moves the merged vector towards the new one."""
        if merged is None:
            return Merged(1, (vector,))
        old, weights = merged.kept[0].changes, (1 - self.weight, self.weight)
        changes = {layer: weighted_sum([old[layer], new], weights) for layer, new in vector.changes.items()}
        return Merged(merged.number + 1, (TaskVector(changes),))
