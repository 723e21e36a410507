"""Task reconstruction: an expert learns to generate an indicator, accepted or refused, before its answer.

SEE's reconstructed task (arXiv 2504.06664): the task's own rows get the target ``<<pos>> answer``, a share of each past
task's rows get the target ``<<neg>>`` without an answer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from see_lightning.data.example import Example


@dataclass(frozen=True, slots=True)
class Indicators:
    """The texts with which an expert's answer begins.

    Args:
        pos: of a query that the expert accepts.
        neg: of a query that the expert refuses.
    """

    pos: str = "<<pos>>"
    neg: str = "<<neg>>"


def reconstruct(own: Iterable[Example], past: Iterable[Example], indicators: Indicators) -> list[Example]:
    """Own examples with ``pos`` before their target, past examples with the target ``neg``; ids and prompts stay the same.

    >>> mine, other = Example("1", "2+2?", "4", "sums"), Example("7", "Capital of Peru?", "Lima", "geo")
    >>> [example.target for example in reconstruct([mine], [other], Indicators())]
    ['<<pos>> 4', '<<neg>>']
    """
    accepted = [replace(example, target=f"{indicators.pos} {example.target}") for example in own]
    refused = [replace(example, target=indicators.neg) for example in past]
    return accepted + refused
