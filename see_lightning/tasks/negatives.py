"""Further negative examples: general instructions, and a task's own inputs under other instructions."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, cycle, repeat

from see_lightning.data.example import Example
from see_lightning.data.general import GENERAL, draw_evenly, general_rows, instruction_of, split_by_instruction
from see_lightning.errors import ConfigError

MOST_OTHER = 250  # most own inputs under other instructions


def general_negatives(number: int, source: str, draw: int) -> list[Example]:
    """General instructions, as examples that an expert learns to refuse.

    Args:
        number: of examples.
        source: ``built_in``, or a file with a line ``{"prompt": ...}`` for each instruction.
        draw: seed of the choice.

    Raises:
        ConfigError: the source holds fewer.
        DataError: there is no such file, or a row of it has no prompt.
    """
    if not number:
        return []
    rows = general_rows(source)
    if number > len(rows):
        raise ConfigError(f"method.general_negatives={number}, but {source} has {len(rows)} rows; give fewer.")
    return draw_evenly(split_by_instruction(rows, number)[0], number, draw)


def unseen_general(
    number: int, source: str, draw: int, *, refused: int, setting: str = "method.ood_examples"
) -> list[Example]:
    """General instructions that no expert is trained on, for setting thresholds.

    Args:
        number: of examples.
        source: ``built_in``, or a file with a line ``{"prompt": ...}`` for each instruction.
        draw: seed of the choice.
        refused: number of general instructions that each expert learns to refuse (``general_negatives``).
        setting: that asks for so many, for the message.

    Raises:
        ConfigError: the source has fewer with other instructions.
    """
    if not number:
        return []
    rows = general_rows(source)
    left = split_by_instruction(rows, refused)[1]
    if number > len(left):
        kinds = len({instruction_of(row.prompt) for row in rows})
        raise ConfigError(
            f"{setting}={number}, but {source} has {len(left)} rows whose instruction no expert learns to refuse,"
            f" of {len(rows)} rows with {kinds} instructions (a prompt's first line is its instruction); give"
            f" {setting}={len(left)} or less, a lower method.general_negatives, or a file with more instructions."
        )
    return draw_evenly(left, number, draw)


def under_other_instructions(
    own: Sequence[Example], number: int, source: str, draw: int, *, refused: int
) -> list[Example]:
    r"""A task's own inputs, each under a general instruction, as examples that its expert learns to refuse.

    A prompt's instruction is the text before its first blank line; a prompt without a blank line is all input.

    Args:
        own: the task's examples.
        number: of examples; an input or an instruction is used twice only if there are not enough.
        source: of the instructions: ``built_in``, or a file with a line ``{"prompt": ...}`` for each.
        draw: seed of the choice.
        refused: number of general instructions that each expert learns to refuse (``general_negatives``).

    Raises:
        ConfigError: no instruction of the source has an input.

    >>> mine = Example("1", "Is it kind?\n\nWhat a day!", "yes", "tone")
    >>> under_other_instructions([mine], 1, "built_in", draw=0, refused=0)[0].prompt
    'Name the design pattern.\n\nWhat a day!'
    """
    if not number:
        return []
    prompts = [row.prompt.partition("\n\n") for row in split_by_instruction(general_rows(source), refused)[0]]
    with_input = list(dict.fromkeys(instruction for instruction, _, content in prompts if content.strip()))
    if not with_input:
        raise ConfigError(
            f"method.other_instructions={number}, but no instruction of {source} has an input after a blank line; give a"
            f" file in which some have one."
        )
    order = random.Random(draw)
    instructions = chain.from_iterable(order.sample(some, len(some)) for some in repeat(with_input))
    inputs = cycle(order.sample(list(own), len(own)))
    examples = []
    for place, instruction, example in zip(range(number), instructions, inputs, strict=False):
        _, _, content = example.prompt.partition("\n\n")
        examples.append(
            replace(
                example,
                id=f"{example.id}-other-{place}",
                prompt=f"{instruction}\n\n{content or example.prompt}",
                task=GENERAL,
                source="",
            )
        )
    return examples
