"""More to refuse than past tasks: instructions of all kinds, and one's own inputs under other instructions."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, cycle, repeat

from see_lightning.data.example import Example
from see_lightning.data.general import GENERAL, draw_evenly, general_rows, instruction_of, split_by_instruction
from see_lightning.errors import ConfigError

MOST_OTHER = 250  # own inputs under other instructions


def general_negatives(number: int, source: str, draw: int) -> list[Example]:
    """Instructions that belong to no task.

    Args:
        number: how many.
        source: ``built_in``, or a file of your own, see ``general_rows``.
        draw: seed of the choice.

    Raises:
        ConfigError: the source holds fewer.
        DataError: there is no such file, or a row of it holds no prompt.
    """
    if not number:
        return []
    rows = general_rows(source)
    if number > len(rows):
        raise ConfigError(f"method.general_negatives={number}, but {source} has {len(rows)} rows; give fewer.")
    return draw_evenly(split_by_instruction(rows, number)[0], number, draw)


def unseen_general(number: int, source: str, draw: int, *, refused: int) -> list[Example]:
    """Further instructions than any expert learns to refuse.

    Args:
        number: how many.
        source: as in ``general_negatives``.
        draw: seed of the choice.
        refused: ``number`` of ``general_negatives``, for all experts.

    Raises:
        ConfigError: the source holds fewer.
    """
    if not number:
        return []
    rows = general_rows(source)
    left = split_by_instruction(rows, refused)[1]
    if number > len(left):
        kinds = len({instruction_of(row.prompt) for row in rows})
        raise ConfigError(
            f"method.ood_examples={number}, but {source} has {len(left)} rows whose instruction no expert learns to refuse,"
            f" of {len(rows)} rows with {kinds} instructions (a prompt's first line is its instruction); give"
            f" method.ood_examples={len(left)} or less, a lower method.general_negatives, or a file with more instructions."
        )
    return draw_evenly(left, number, draw)


def under_other_instructions(
    own: Sequence[Example], number: int, source: str, draw: int, *, refused: int
) -> list[Example]:
    r"""One's own inputs, each under an instruction that is not one's own, out of those that experts learn to refuse.

    What stands before the first blank line of a prompt is taken for its instruction; a prompt without one is all input.

    Args:
        own: of the task.
        number: how many; an input or an instruction comes twice only if there are not enough.
        source: of the instructions, as in ``general_negatives``.
        draw: seed of the choice.
        refused: as in ``unseen_general``.

    Raises:
        ConfigError: no instruction of the source has an input, so none can take one.

    >>> mine = Example("1", "Is it kind?\n\nWhat a day!", "yes", "tone")
    >>> under_other_instructions([mine], 1, "built_in", draw=0, refused=0)[0].prompt
    'Name the design pattern.\n\nWhat a day!'
    """
    if not number:
        return []
    prompts = [row.prompt.partition("\n\n") for row in split_by_instruction(general_rows(source), refused)[0]]
    known = list(dict.fromkeys(instruction for instruction, _, content in prompts if content.strip()))
    if not known:
        raise ConfigError(
            f"method.other_instructions={number}, but no instruction of {source} has an input, a blank line below it; give"
            f" some that have one."
        )
    order = random.Random(draw)
    instructions = chain.from_iterable(order.sample(some, len(some)) for some in repeat(known))
    inputs = cycle(order.sample(list(own), len(own)))
    made = []
    for place, instruction, example in zip(range(number), instructions, inputs, strict=False):
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
