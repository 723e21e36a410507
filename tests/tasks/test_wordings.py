"""Training prompts in other wordings: what changes, what stays, and that every kind of wording is drawn alike."""

import random
from collections import Counter

import pytest

from see_lightning.data.example import Body, Example
from see_lightning.tasks.wordings import KINDS, Wordings, cut, noised, reworded

TEXT = "In this task, you are given a question. Write a short answer to it. Use the words of the passage. Be correct."


def rows(task: str, number: int, definition: str = TEXT) -> list[Example]:
    return [Example(f"{task}-{n}", f"{definition}\n\ninput {n}", "yes", task) for n in range(number)]


def kind_of(example: Example) -> str:
    if example.prompt.startswith(f"{TEXT}\n\n"):
        return "as_is"
    return "other" if "\n\n" in example.prompt else "none"


def test_the_input_and_the_answer_stay_whatever_is_drawn():
    for kind in KINDS:
        for number, example in enumerate(Wordings([kind], lambda _: True).vary(rows("qa", 30), {"qa": TEXT}, draw=3)):
            assert example.prompt.rpartition("\n\n")[2] == f"input {number}"
            assert (example.id, example.target, example.task) == (f"qa-{number}", "yes", "qa")


def test_each_kind_is_drawn_equally_often_of_every_task_and_twice_if_it_is_named_twice():
    examples = [row for pair in zip(rows("qa", 40), rows("qg", 40), strict=True) for row in pair]
    varied = Wordings(["as_is", "none", "none", "noised"], lambda _: True).vary(
        examples, {"qa": TEXT, "qg": TEXT}, draw=1
    )
    for task in ("qa", "qg"):
        drawn = Counter(kind_of(example) for example in varied if example.task == task)
        assert drawn == {"as_is": 10, "none": 20, "other": 10}


def test_the_draw_depends_on_the_seed_alone():
    wordings = Wordings(KINDS, lambda _: True)
    first, again, other = (wordings.vary(rows("qa", 20), {"qa": TEXT}, draw) for draw in (5, 5, 6))
    assert first == again != other


def test_a_prompt_without_a_definition_stays_as_it_is():
    bare = [Example("1", "Lea met Dan.", "yes", "qa"), Example("2", "What should I pack?", "none", "general")]
    assert Wordings(["none"], lambda _: True).vary(bare, {"qa": ""}, draw=0) == bare
    general = [Example("3", "Add.\n\n2 and 3", "none", "general")]  # of no task: the text before the first blank line
    assert Wordings(["none"], lambda _: True).vary(general, {"qa": ""}, draw=0)[0].prompt == "2 and 3"


def test_a_prompt_that_would_become_too_long_stays_as_it_is():
    examples = rows("qa", 12)
    wordings = Wordings(["reworded"], lambda example: len(example.prompt) <= len(TEXT))
    wordings.rewordings = {TEXT: ["short", "long " * 40]}
    varied = wordings.vary(examples, {"qa": TEXT}, draw=0)
    assert {example.prompt.partition("\n\n")[0] for example in varied} == {"short", TEXT}


def test_given_rewordings_take_the_place_of_the_rules():
    wordings = Wordings(["reworded"], lambda _: True)
    wordings.rewordings = {TEXT: ["one way", "another way"]}
    varied = wordings.vary([*rows("qa", 20), *rows("qg", 20, "Ask.")], {"qa": TEXT, "qg": "Ask."}, draw=0)
    begun = {task: {e.prompt.partition("\n\n")[0] for e in varied if e.task == task} for task in ("qa", "qg")}
    assert begun["qa"] == {"one way", "another way"}
    assert all("Ask." in text for text in begun["qg"])  # framed by the rules


def test_the_part_that_may_be_cut_moves_with_the_text():
    example = Example("1", f"{TEXT}\n\nan input", "yes", "qa", body=Body(len(TEXT) + 2, len(TEXT) + 10))
    for kind in KINDS:
        (varied,) = Wordings([kind], lambda _: True).vary([example], {"qa": TEXT}, draw=0)
        assert varied.prompt[varied.body.start : varied.body.stop] == "an input"


@pytest.mark.parametrize("change", [reworded, cut, noised])
@pytest.mark.parametrize("text", [TEXT, "Translate.", "a", "Ask me.\nNow: 1. read 2. write"])
def test_no_change_leaves_nothing_and_most_leave_something_else(change, text):
    found = [change(text, random.Random(n)) for n in range(40)]
    assert all(one.strip() for one in found)
    if len(text) > 20:
        assert sum(one != text for one in found) > 30


def test_several_wordings_of_an_example_are_of_different_kinds_and_all_kinds_come_alike():
    kinds = ["as_is", "none", "none", "noised"]
    varied = Wordings(kinds, lambda _: True).vary(rows("qa", 40), {"qa": TEXT}, draw=1, copies=2)
    assert [example.id for example in varied[::2]] == [example.id for example in varied[1::2]]
    pairs = [frozenset(map(kind_of, pair)) for pair in zip(varied[::2], varied[1::2], strict=True)]
    assert all(len(pair) == 2 for pair in pairs)
    drawn = Counter(kind for pair in pairs for kind in pair)
    assert drawn.total() == 80
    assert max(abs(drawn["as_is"] - 20), abs(drawn["none"] - 40), abs(drawn["other"] - 20)) <= 6
