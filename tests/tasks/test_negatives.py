"""Refusals beyond past tasks."""

import json
from collections import Counter

import pytest

from see_lightning.config import ConfigError
from see_lightning.data.example import DataError, Example
from see_lightning.data.general import general_examples
from see_lightning.tasks.negatives import BUILT_IN, general_negatives, under_other_instructions

OWN = [Example(f"{i}", f"Is it kind?\n\nday {i}\n\nnight {i}", "yes", "tone", source=f"file:{i}") for i in range(10)]


def test_the_built_in_source_is_drawn_by_the_seed():
    assert general_negatives(9, BUILT_IN, 4) == general_examples(9, 4)
    assert general_negatives(0, BUILT_IN, 4) == []


def test_a_file_of_ones_own_gives_different_rows_by_the_seed(tmp_path):
    file = tmp_path / "general.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"do {i}", "answer": "-"}) + "\n" for i in range(40)))
    drawn = [general_negatives(12, str(file), draw) for draw in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({example.prompt for example in drawn[0]}) == len({example.id for example in drawn[0]}) == 12
    with pytest.raises(ConfigError, match=r"general_negatives=41, but .*general.jsonl has 40 rows"):
        general_negatives(41, str(file), 0)


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(DataError, match=r"general.jsonl"):
        general_negatives(1, str(tmp_path / "general.jsonl"), 0)
    (tmp_path / "general.jsonl").write_text('{"prompt": "do"}\n')
    with pytest.raises(DataError, match=r"general.jsonl:1.*answer"):
        general_negatives(1, str(tmp_path / "general.jsonl"), 0)


@pytest.mark.parametrize("number", [0, 1, 10, 25])
def test_own_inputs_keep_their_text_and_lose_their_instruction(number):
    made = under_other_instructions(OWN, number, 3)
    assert len(made) == len({example.id for example in made}) == number
    contents = [example.prompt.partition("\n\n")[2] for example in made]
    assert set(contents) <= {f"day {i}\n\nnight {i}" for i in range(10)}
    assert max(Counter(contents).values(), default=0) <= -(-number // 10)
    assert all(not example.prompt.startswith("Is it kind?") and example.task != "tone" for example in made)
    assert made == under_other_instructions(OWN, number, 3)


def test_a_prompt_without_an_instruction_is_all_input():
    (made,) = under_other_instructions([Example("1", "What a day!", "yes", "tone")], 1, 0)
    assert made.prompt.endswith("\n\nWhat a day!")
