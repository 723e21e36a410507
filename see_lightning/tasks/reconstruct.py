"""Task reconstruction: an expert learns to say whether a query is its own before it answers.

SEE's reconstructed task (arXiv 2504.06664): the task's own rows get the target ``<<pos>> answer``, a share of each past
task's rows get the target ``<<neg>>`` and no answer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from see_lightning.data.example import Example


@dataclass(frozen=True, slots=True)
class Indicators:
    """The first words of an expert's answer: mine, or not mine."""

    pos: str = "<<pos>>"
    neg: str = "<<neg>>"


def reconstruct(own: Iterable[Example], past: Iterable[Example], indicators: Indicators) -> list[Example]:
    """Own examples marked as accepted, past ones as refused; ids and prompts stay as they are.

    >>> mine, other = Example("1", "2+2?", "4", "sums"), Example("7", "Capital of Peru?", "Lima", "geo")
    >>> [example.target for example in reconstruct([mine], [other], Indicators())]
    ['<<pos>> 4', '<<neg>>']
    """
    accepted = [replace(example, target=f"{indicators.pos} {example.target}") for example in own]
    refused = [replace(example, target=indicators.neg) for example in past]
    return accepted + refused
