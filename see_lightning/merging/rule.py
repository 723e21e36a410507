"""What a merge rule is: it takes task vectors one after the other, and gives one vector for all of them.

Adding one takes a module here and a YAML file in ``conf/rule``; ``docs/merging.md`` has a worked example.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from see_lightning.errors import ConfigError
from see_lightning.merging.changes import Change, Changes, shape


@dataclass(frozen=True, slots=True, eq=False)
class TaskVector:
    r"""What training on a task changed, $\tau = \theta - \theta_0$ (Ilharco et al., 2023).

    Args:
        changes: of all layers.
        draw: seed of what a rule draws at random for this vector.
    """

    changes: Changes
    draw: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """What a rule keeps of the vectors that it has taken.

    Args:
        number: of these vectors.
        kept: what further merging needs: one merged vector, or all vectors that were merged.
        numbers: further numbers that it needs, by name. They are reported.
    """

    number: int
    kept: tuple[TaskVector, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)


#: Derivatives of the loss on stored rows by the merging coefficients of all vectors, (T,), at given ones, (T,).
Gradient = Callable[[Tensor], Tensor]


class MergeRule(ABC):
    """Merges task vectors; a pure function of them, their order and the rule's settings."""

    #: Whether it keeps one merged vector, so that its memory does not grow with the number of vectors beyond dense layers.
    bounded: bool = True

    #: Rows of each task that it needs for ``gradient``; 0 is none.
    rows: int = 0

    @abstractmethod
    def add(self, merged: Merged | None, vector: TaskVector, gradient: Gradient | None = None) -> Merged:
        """Takes one more vector.

        Args:
            merged: what is kept of those before it; None if it is the first.
            vector: has the same layers.
            gradient: of the loss on them, for a rule with ``rows``.
        """

    def restored(self, merged: Merged | None, vector: TaskVector, numbers: Mapping[str, float]) -> Merged:
        """Takes a vector that was added before, as ``add`` did, in a run that goes on.

        Args:
            merged: what is kept of those before it; None if it is the first.
            vector: has the same layers.
            numbers: those of the result then.
        """
        return self.add(merged, vector)

    def result(self, merged: Merged) -> dict[str, Change]:
        """The merged changes, by layer."""
        (vector,) = merged.kept
        return dict(vector.changes)

    def merge(self, vectors: Iterable[TaskVector]) -> dict[str, Change]:
        """The merged changes of vectors, in their order, by a rule without ``rows``.

        Raises:
            ConfigError: there are none, or their layers or shapes differ.
        """
        merged: Merged | None = None
        for vector in vectors:
            if merged is not None:
                check_alike(merged.kept[0].changes, vector.changes)
            merged = self.add(merged, vector)
        if merged is None:
            raise ConfigError("there is nothing to merge.")
        return self.result(merged)


def check_alike(one: Changes, other: Changes) -> None:
    """Refuse vectors that do not change the same layers.

    Raises:
        ConfigError: a layer is in one alone, or its sizes differ.
    """
    if apart := sorted(one.keys() ^ other.keys()):
        raise ConfigError(f"the models to be merged change different layers: only one of two changes {apart[0]}.")
    for layer, change in one.items():
        if (ours := shape(change)) != (theirs := shape(other[layer])):
            raise ConfigError(f"the models to be merged differ in {layer}: {ours} and {theirs}.")
