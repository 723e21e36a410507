"""The two signals of ``router=joint``: samples of them, their scale, and the weights of samples.

Letters: N samples (a text under one expert).
"""

import random
from typing import NamedTuple

import torch
from torch import Tensor

from see_lightning.tasks.bodies import has_definition
from see_lightning.tasks.variants import BLANK_LINE
from see_lightning.tasks.wordings import noised, reworded

OWN, GENERAL, OTHER = 0, 1, 2  # kinds of samples
BARE = 3  # wording of a row's input without its definition; ``worded`` has those before it


class Sample(NamedTuple):
    """A text whose log-odds under an expert are kept.

    Args:
        text: the query.
        expert: the number of its task, in the order of learning.
        kind: ``OWN``, which the expert must accept; ``GENERAL``, a general instruction, and ``OTHER``, a query of another
            task, which it must refuse.
        wording: number of the wording, in which every held-out row comes once: of ``worded``, or ``BARE``.
    """

    text: str
    expert: int
    kind: int
    wording: int


class Measured(NamedTuple):
    """Samples of one expert, (N,) each.

    Args:
        log_odds_N: of acceptance, in nats.
        bodies_N: scores of the bodies.
        proposals_N: scores by which the expert is proposed.
        kind_N: see ``Sample``.
        defined_N: 1 for a text with a definition.
        wording_N: see ``Sample``.
    """

    log_odds_N: Tensor
    bodies_N: Tensor
    proposals_N: Tensor
    kind_N: Tensor
    defined_N: Tensor
    wording_N: Tensor


class Typical(NamedTuple):
    """Where scores of a task's own queries lie.

    Args:
        middle: their median.
        spread: their standard deviation.
    """

    middle: float
    spread: float

    @classmethod
    def of(cls, scores_N: Tensor) -> "Typical":
        """Median and spread of scores."""
        return cls(float(scores_N.median()), max(float(scores_N.std(correction=0)), 1e-6))

    def below(self, scores_N: Tensor) -> Tensor:
        """How far scores lie below the median, (N,), in standard deviations and at most 0: nearer is not surer."""
        return ((scores_N.double() - self.middle) / self.spread).clamp(max=0)


class Scale(NamedTuple):
    """The scale of one expert's signals: 0 is a typical own query, and log-odds of -1 a typical general instruction.

    Args:
        own: median of own log-odds, in nats.
        gap: of the median of general instructions below it, at least 1 nat.
        body: scores of own bodies.
        proposal: scores by which the expert is proposed for its own queries.
    """

    own: float
    gap: float
    body: Typical
    proposal: Typical

    @classmethod
    def of(cls, one: Measured) -> "Scale":
        """The scale of an expert's samples."""
        is_own_N, general_N = one.kind_N == OWN, one.log_odds_N[one.kind_N == GENERAL]
        own = float(one.log_odds_N[is_own_N].median())
        scores = Typical.of(one.bodies_N[is_own_N]), Typical.of(one.proposals_N[is_own_N])
        return cls(own, max(own - float(general_N.median()), 1.0), *scores)

    def signals(self, log_odds_N: Tensor, bodies_N: Tensor, proposals_N: Tensor) -> Tensor:
        """The log-odds, and the less typical one of both scores, (N, 2)."""
        near_N = torch.minimum(self.body.below(bodies_N), self.proposal.below(proposals_N))
        return torch.stack([(log_odds_N.double() - self.own) / self.gap, near_N], dim=1)


def even_weights(kind_N: Tensor, defined_N: Tensor) -> Tensor:
    """Weights of samples, (N,), in fp64: those to accept sum to 1, and so do those to refuse.

    Within each side, the groups by kind and by whether there is a definition weigh alike.

    Args:
        kind_N: see ``Sample``.
        defined_N: 1 for a text with a definition.

    >>> even_weights(torch.tensor([0, 0, 0, 1, 2]), torch.tensor([1, 1, 0, 1, 1])).tolist()
    [0.25, 0.25, 0.5, 0.5, 0.5]
    """
    group_N, weight_N = 2 * kind_N + defined_N, torch.zeros(len(kind_N), dtype=torch.float64)
    for side_N in (kind_N == OWN, kind_N != OWN):
        groups = sorted(set(group_N[side_N].tolist()))
        for group in groups:
            weight_N[group_N == group] = 1 / int((group_N == group).sum()) / len(groups)
    return weight_N


def worded(query: str, order: random.Random) -> list[str]:
    r"""A query as it stands, and if it has a definition also reworded by rules and with errors.

    >>> worded("12 and 3", random.Random(0))
    ['12 and 3']
    >>> worded("Write the sum.\n\n12 and 3", random.Random(0))[1]
    'I would like you to help me with this. Write the sum.\n\n12 and 3'
    """
    if not has_definition(query):
        return [query]
    definition, _, body = query.partition(BLANK_LINE)
    return [
        f"{text}{BLANK_LINE}{body}" for text in (definition, reworded(definition, order), noised(definition, order))
    ]
