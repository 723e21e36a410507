"""Instructions that no expert should take for its own."""

from collections import Counter

import pytest

from see_lightning.data.example import DataError
from see_lightning.data.general import general_examples


@pytest.mark.parametrize("draw", range(20))
def test_instructions_are_all_different_and_of_all_kinds_before_any_kind_comes_again(draw):
    examples = general_examples(94, draw)
    assert len({example.prompt for example in examples}) == len({example.id for example in examples}) == 94
    instructions = [example.prompt.split("\n\n")[0] for example in examples]
    assert len(set(instructions[:47])) == 47
    assert max(Counter(instructions).values()) <= 3


def test_the_draw_decides_alone_and_fewer_are_the_beginning_of_more():
    assert general_examples(30, 5) == general_examples(30, 5) == general_examples(90, 5)[:30]
    assert {e.prompt for e in general_examples(30, 5)} != {e.prompt for e in general_examples(30, 6)}
    assert general_examples(0, 5) == []


@pytest.mark.parametrize("draw", range(5))
def test_more_than_there_are_is_refused_with_how_many_there_are(draw):
    with pytest.raises(DataError, match="258 general instructions were asked for, but there are 257"):
        general_examples(258, draw)
    assert len(general_examples(257, draw)) == 257
