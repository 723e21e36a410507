"""Refusals beyond past tasks."""

import json
from collections import Counter

import pytest

from see_lightning.data.example import Example
from see_lightning.data.general import BUILT_IN, instruction_of
from see_lightning.errors import ConfigError
from see_lightning.tasks.negatives import general_negatives, under_other_instructions, unseen_general

OWN = [Example(f"{i}", f"Is it kind?\n\nday {i}\n\nnight {i}", "yes", "tone", source=f"file:{i}") for i in range(10)]


def file_of(path, *prompts):
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "-"}) + "\n" for prompt in prompts))
    return str(path)


def test_refusals_are_drawn_by_the_seed():
    drawn = [general_negatives(9, BUILT_IN, draw) for draw in (4, 4, 5)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert general_negatives(0, "no such file", 4) == unseen_general(0, "no such file", 4, refused=0) == []


def test_a_file_of_ones_own_gives_different_rows_by_the_seed(tmp_path):
    file = file_of(tmp_path / "general.jsonl", *(f"do {i}" for i in range(40)))
    drawn = [general_negatives(12, file, draw) for draw in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({example.prompt for example in drawn[0]}) == len({example.id for example in drawn[0]}) == 12
    with pytest.raises(ConfigError, match=r"general_negatives=41, but .*general.jsonl has 40 rows"):
        general_negatives(41, file, 0)


@pytest.mark.parametrize("own_file", [False, True])
@pytest.mark.parametrize(
    ("refused", "against", "other"), [(1, 60, 0), (48, 60, 40), (200, 200, 250), (350, 63, 9), (0, 9, 9)]
)
def test_no_expert_of_any_run_learns_an_instruction_that_any_threshold_looks_at(
    tmp_path, own_file, refused, against, other
):
    source = BUILT_IN
    if own_file:
        source = file_of(tmp_path / "mine.jsonl", *(f"Do {n // 3}.\n\nWith {n}." for n in range(413)))
        against = min(against, 60)
    learned, looked_at = set(), set()
    for draw in range(12):
        examples = general_negatives(refused, source, draw)
        examples += under_other_instructions(OWN, other, source, draw, refused=refused)
        assert len(examples) == refused + other
        learned |= {instruction_of(example.prompt) for example in examples}
        examples = unseen_general(against, source, draw, refused=refused)
        assert len({example.id for example in examples}) == against
        looked_at |= {instruction_of(example.prompt) for example in examples}
    assert learned
    assert looked_at
    assert not learned & looked_at


def test_too_few_instructions_are_refused_with_how_many_there_are(tmp_path):
    file = file_of(tmp_path / "mine.jsonl", *(f"Do {n // 4}.\n\nWith {n}." for n in range(40)))
    assert len(unseen_general(20, file, 0, refused=20)) == 20
    told = r"method.ood_examples=21, but .*mine.jsonl has 20 rows whose instruction .* of 40 rows with 10 instructions .*ood_examples=20"
    with pytest.raises(ConfigError, match=told):
        unseen_general(21, file, 0, refused=20)
    with pytest.raises(ConfigError, match="ood_examples=17, but .* has 16 rows"):
        unseen_general(17, file, 0, refused=21)
    one = file_of(tmp_path / "one.jsonl", *(f"Translate.\n\n{n}" for n in range(9)))
    with pytest.raises(ConfigError, match="ood_examples=1, but .* has 0 rows whose .* of 9 rows with 1 instructions"):
        unseen_general(1, one, 0, refused=1)


def test_own_inputs_need_instructions_that_take_one(tmp_path):
    file = file_of(tmp_path / "mine.jsonl", "Tell a joke.", "Sing.")
    with pytest.raises(ConfigError, match=r"other_instructions=3, but no instruction of .*mine.jsonl has an input"):
        under_other_instructions(OWN, 3, file, 0, refused=0)


@pytest.mark.parametrize("number", [0, 1, 10, 25])
def test_own_inputs_keep_their_text_and_lose_their_instruction(number):
    made = under_other_instructions(OWN, number, BUILT_IN, 3, refused=0)
    assert len(made) == len({example.id for example in made}) == number
    contents = [example.prompt.partition("\n\n")[2] for example in made]
    assert set(contents) <= {f"day {i}\n\nnight {i}" for i in range(10)}
    assert max(Counter(contents).values(), default=0) <= -(-number // 10)
    assert all(not example.prompt.startswith("Is it kind?") and example.task != "tone" for example in made)
    assert made == under_other_instructions(OWN, number, BUILT_IN, 3, refused=0)


def test_a_prompt_without_an_instruction_is_all_input():
    (made,) = under_other_instructions([Example("1", "What a day!", "yes", "tone")], 1, BUILT_IN, 0, refused=0)
    assert made.prompt.endswith("\n\nWhat a day!")
