"""Estimates of transferability: the earlier expert from which a new one is best initialised.

Letters: P examples, H hidden states.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

KNOWN = 0.66  # share of the examples whose labels are known; the others are predicted (KKT, Yadav and Bansal)


def neighbours_accuracy(features_PH: Tensor, labels: Sequence[int], k: int) -> float:
    """Share of the last 34 % of examples whose label is that of most of their k nearest among the others, 0..1.

    Ties go to the label of the nearest neighbour. With no known or no predicted example the accuracy is 0.

    Args:
        features_PH: features of each example; distances are Euclidean.
        labels: of each.
        k: how many neighbours vote.

    >>> near = torch.tensor([[0.0], [0.1], [5.0], [5.1], [0.2], [5.2]])
    >>> neighbours_accuracy(near, [7, 7, 8, 8, 7, 7], k=1)
    0.6666666666666666
    """
    known = int(KNOWN * len(labels))
    if not 0 < known < len(labels):
        return 0.0
    distances = torch.cdist(
        features_PH[known:], features_PH[:known], compute_mode="donot_use_mm_for_euclid_dist"
    )  # its faster way loses the small differences of large numbers
    right = 0
    for label, near in zip(labels[known:], distances.argsort(dim=1, stable=True)[:, :k].tolist(), strict=True):
        votes = [labels[place] for place in near]
        right += max(votes, key=votes.count) == label
    return right / (len(labels) - known)


def above_chance(accuracies: Mapping[str, float], labels: Sequence[int]) -> str | None:
    """The expert with the highest accuracy, the oldest of equals; None if no accuracy is above chance.

    >>> above_chance({"qa": 0.4, "sa": 0.6}, [1, 2, 2]), above_chance({"qa": 0.4}, [1, 2, 2])
    ('sa', None)
    """
    best = max(accuracies, key=lambda name: accuracies[name])
    return best if accuracies[best] > 1 / len(set(labels)) else None


def below(losses: Mapping[str, float], base: float) -> str | None:
    """The expert with the lowest loss, the oldest of equals; None if it is not below the base model's.

    >>> below({"qa": 2.0, "sa": 1.5}, base=1.8), below({"qa": 2.0}, base=1.8)
    ('sa', None)
    """
    best = min(losses, key=lambda name: losses[name])
    return best if losses[best] < base else None


def mean_loss(sums: Sequence[float], tokens: Sequence[int], mean: str) -> float:
    """The mean loss of ``answer_loss``, from the sum over each answer's tokens.

    Args:
        sums: negative log-likelihood of each answer.
        tokens: of each answer.
        mean: ``tokens`` or ``examples``.

    >>> mean_loss([6.0, 1.0], [3, 1], "tokens"), mean_loss([6.0, 1.0], [3, 1], "examples")
    (1.75, 1.5)
    """
    if mean == "tokens":
        return sum(sums) / sum(tokens)
    return sum(one / size for one, size in zip(sums, tokens, strict=True)) / len(sums)
