"""General instructions: queries that no expert should accept.

An expert that has seen only its own task and a few others may accept unrelated queries. It learns to refuse some of these
instructions; others, which no expert has seen, serve to set thresholds. The two parts must not share an instruction, so rows
are split by instruction.
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

GENERAL = "general"  # the name of the task of these examples
BUILT_IN = "built_in"  # the instructions of the package, sorted by kind
FILE = Path(__file__).with_name("general.jsonl")


def general_rows(source: str) -> list[Example]:
    """All rows of a source, in its order.

    Args:
        source: ``built_in``, or a file with a line ``{"prompt": ...}`` for each instruction.

    Raises:
        DataError: there is no such file, or a row of it has no prompt.
    """
    path = FILE if source == BUILT_IN else Path(source)
    examples = []
    # The rows need no answer, since experts refuse them: the prompt is read in its place.
    for row in json_lines(path, task=GENERAL, prompt_key="prompt", answer_key="prompt", id_prefix=f"{GENERAL}-"):
        if isinstance(row, BadRow):
            raise DataError(f"{row.source}: {row.reason}")
        examples.append(replace(row, target="none", source="" if source == BUILT_IN else row.source))
    return examples


def instruction_of(prompt: str) -> str:
    r"""A prompt's instruction: its first line, case-folded and with single spaces.

    >>> instruction_of("Translate  into German.\n\nGood day!") == instruction_of("translate into german.\nIt rains.")
    True
    """
    return " ".join(prompt.strip().partition("\n")[0].casefold().split())


def split_by_instruction(rows: Sequence[Example], refused: int) -> tuple[list[Example], list[Example]]:
    """Rows that experts may learn to refuse, and rows with other instructions, which no expert is trained on.

    The first part has half of the instructions, or more if ``refused`` needs more. The split depends on the rows alone, so no
    expert of any run is trained on rows that set the threshold of another. Both parts are spread over the whole source.

    Args:
        rows: of a source, in its order.
        refused: least number of rows in the first part, if there are so many.

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
    first = [row for name, some in groups.items() if name in names for row in some]  # in the order of the source
    second = [row for name, some in groups.items() if name not in names for row in some]
    return first, second


def _spread_out(names: list[str]) -> list[str]:
    """An order in which every prefix and every suffix is spread over the whole list.

    >>> _spread_out(list("abcdefgh"))
    ['h', 'd', 'f', 'b', 'g', 'c', 'e', 'a']
    """
    return names if len(names) < 2 else [*_spread_out(names[1::2]), *_spread_out(names[::2])]


def draw_evenly(rows: Sequence[Example], number: int, draw: int) -> list[Example]:
    """Draw one row from each of ``number`` sections of equal length, so that all kinds are represented.

    Args:
        rows: sorted by kind.
        number: of rows to draw; all rows if there are not so many.
        draw: seed of the choice.

    >>> [example.id for example in draw_evenly([Example(str(n), "?", "none", GENERAL) for n in range(9)], 3, draw=1)]
    ['0', '5', '6']
    """
    order, number = random.Random(draw), min(number, len(rows))
    bounds = [place * len(rows) // number for place in range(number + 1)] if number else []
    return [rows[order.randrange(start, end)] for start, end in pairwise(bounds)]
