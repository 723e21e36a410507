"""More to refuse than past tasks: instructions of all kinds, and one's own inputs under other instructions."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from see_lightning.config import ConfigError
from see_lightning.data.checks import BadRow
from see_lightning.data.example import DataError, Example
from see_lightning.data.general import GENERAL, general_examples
from see_lightning.data.reader import json_lines

BUILT_IN = "built_in"
MOST_OTHER = 250  # instructions that ask for an input


def general_negatives(number: int, source: str, draw: int) -> list[Example]:
    """Instructions that belong to no task.

    Args:
        number: how many.
        source: ``built_in``, see ``general_examples``; or a file of your own, a line ``{"prompt": ..., "answer": ...}``
            each, whose answers are not used.
        draw: seed of the choice.

    Raises:
        ConfigError: the source holds fewer, or there is no such file.
    """
    if source == BUILT_IN:
        return general_examples(number, draw)
    examples = rows_of(source)
    if number > len(examples):
        raise ConfigError(f"method.general_negatives={number}, but {source} has {len(examples)} rows; give fewer.")
    return random.Random(draw).sample(examples, number)


def unseen_general(number: int, source: str, draw: int, *, drawn: int) -> list[Example]:
    """Further instructions than ``general_negatives`` draws.

    Args:
        number: how many.
        source: as there.
        draw: as there.
        drawn: how many are drawn there.

    Raises:
        ConfigError: the source holds fewer.
    """
    if source == BUILT_IN:
        return general_examples(drawn + number, draw)[drawn:]
    seen = {example.id for example in general_negatives(drawn, source, draw)}
    left = [example for example in rows_of(source) if example.id not in seen]
    if number > len(left):
        raise ConfigError(f"method.against={number}, but {source} has {len(left)} rows left; give fewer.")
    return random.Random(draw).sample(left, number)


def rows_of(source: str) -> list[Example]:
    """All instructions of a file.

    Raises:
        DataError: there is no such file, or a row of it holds no instruction.
    """
    rows = json_lines(Path(source), task=GENERAL, prompt_key="prompt", answer_key="answer", id_prefix=f"{GENERAL}-")
    examples = []
    for row in rows:
        if isinstance(row, BadRow):
            raise DataError(f"{row.source}: {row.reason}")
        examples.append(row)
    return examples


def under_other_instructions(own: Sequence[Example], number: int, draw: int) -> list[Example]:
    r"""One's own inputs, each under an instruction that is not one's own.

    What stands before the first blank line of a prompt is taken for its instruction; a prompt without one is all input.

    Args:
        own: of the task.
        number: how many; an input comes twice only if there are not enough.
        draw: seed of the choice.

    >>> mine = Example("1", "Is it kind?\n\nWhat a day!", "yes", "tone")
    >>> under_other_instructions([mine], 1, draw=0)[0].prompt
    'Work the following out step by step.\n\nWhat a day!'
    """
    order = random.Random(draw)
    instructions = [example.prompt.partition("\n\n")[0] for example in general_examples(number, draw, with_input=True)]
    inputs = cycle(order.sample(list(own), len(own)))
    made = []
    for place, (instruction, example) in enumerate(zip(instructions, inputs, strict=False)):
        _, _, content = example.prompt.partition("\n\n")
        made.append(
            replace(
                example,
                id=f"{example.id}-other-{place}",
                prompt=f"{instruction}\n\n{content or example.prompt}",
                task=GENERAL,
                source="",
            )
        )
    return made
