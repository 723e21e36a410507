"""General instructions: what no expert should take for its own.

An expert that only ever saw its own task and a few others has nothing to tell it that there is more in the world. A
handful of these, learned as refusals, does; others, which no expert has seen, help to set thresholds. The two must share
no instruction, so they are dealt by instruction and not by row.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from see_lightning.data.checks import BadRow
from see_lightning.data.example import Example
from see_lightning.data.reader import json_lines
from see_lightning.errors import DataError

GENERAL = "general"  # the task that such examples are said to be of
BUILT_IN = "built_in"  # the instructions of the package, sorted by kind
FILE = Path(__file__).with_name("general.jsonl")


def general_rows(source: str) -> list[Example]:
    """All rows of a source, in its order.

    Args:
        source: ``built_in``, or a file with a line ``{"prompt": ...}`` each.

    Raises:
        DataError: there is no such file, or a row of it holds no prompt.
    """
    path = FILE if source == BUILT_IN else Path(source)
    examples = []
    # An answer is not needed, for the rows are refused: the prompt is read in its place.
    for row in json_lines(path, task=GENERAL, prompt_key="prompt", answer_key="prompt", id_prefix=f"{GENERAL}-"):
        if isinstance(row, BadRow):
            raise DataError(f"{row.source}: {row.reason}")
        examples.append(replace(row, target="none", source="" if source == BUILT_IN else row.source))
    return examples


def instruction_of(prompt: str) -> str:
    r"""What two prompts with one instruction share: the first line, whatever its case and blanks.

    >>> instruction_of("Translate  into German.\n\nGood day!") == instruction_of("translate into german.\nIt rains.")
    True
    """
    return " ".join(prompt.strip().partition("\n")[0].casefold().split())


def split_by_instruction(rows: Sequence[Example], refused: int) -> tuple[list[Example], list[Example]]:
    """Rows that experts may learn to refuse, and rows with other instructions, which none of them sees.

    The first part has half of the instructions, or as many as ``refused`` rows take. Which ones depends on nothing but the
    rows, so that no expert of any run sees what the threshold of another is set by; both parts come from all over the
    source.

    Args:
        rows: of a source, in its order.
        refused: how many the first part must have at least, if there are so many.

    >>> rows = [Example(str(n), f"Do {n // 2}.", "none", GENERAL) for n in range(8)]
    >>> [[example.prompt for example in part] for part in split_by_instruction(rows, refused=5)]
    [['Do 1.', 'Do 1.', 'Do 2.', 'Do 2.', 'Do 3.', 'Do 3.'], ['Do 0.', 'Do 0.']]
    """
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(instruction_of(row.prompt), []).append(row)
    order = _spread_out(list(groups))
    size, learned = 0, 0
    while learned < len(order) and (learned < len(order) // 2 or size < refused):
        size += len(groups[order[learned]])
        learned += 1
    names = set(order[:learned])
    first = [row for name, some in groups.items() if name in names for row in some]  # in the order of the source again
    second = [row for name, some in groups.items() if name not in names for row in some]
    return first, second


def _spread_out(names: list[str]) -> list[str]:
    """An order whose every beginning and end come from all over the list.

    >>> _spread_out(list("abcdefgh"))
    ['h', 'd', 'f', 'b', 'g', 'c', 'e', 'a']
    """
    return names if len(names) < 2 else [*_spread_out(names[1::2]), *_spread_out(names[::2])]


def draw_evenly(rows: Sequence[Example], number: int, draw: int) -> list[Example]:
    """Some rows, one drawn from each of ``number`` stretches of equal length, so that all kinds are among them.

    Args:
        rows: to draw from.
        number: how many; all there are, if there are not so many.
        draw: seed of the choice.

    >>> [example.id for example in draw_evenly([Example(str(n), "?", "none", GENERAL) for n in range(9)], 3, draw=1)]
    ['0', '5', '6']
    """
    order, number = random.Random(draw), min(number, len(rows))
    bounds = [place * len(rows) // number for place in range(number + 1)] if number else []
    return [rows[order.randrange(start, end)] for start, end in pairwise(bounds)]
