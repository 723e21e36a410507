"""The reconstructed task: own rows accepted with their answer, past rows refused without one."""

from see_lightning.data.example import Example
from see_lightning.tasks.reconstruct import Indicators, reconstruct

OWN = [Example(f"own-{i}", f"mine {i}?", f"answer {i}", "qa", source=f"f:{i}") for i in range(4)]
PAST = [Example(f"old-{i}", f"theirs {i}?", f"secret {i}", "sa") for i in range(3)]


def test_own_rows_come_first_and_begin_with_the_indicator_and_a_space():
    made = reconstruct(OWN, PAST, Indicators("<yes>", "<no>"))
    assert [e.target for e in made] == [f"<yes> answer {i}" for i in range(4)] + ["<no>"] * 3


def test_nothing_else_of_a_row_changes_and_the_rows_given_stay_as_they_were():
    made = reconstruct(OWN, PAST, Indicators())
    assert [(e.id, e.prompt, e.task, e.source) for e in made] == [
        (e.id, e.prompt, e.task, e.source) for e in OWN + PAST
    ]
    assert OWN[0].target == "answer 0"
    assert PAST[0].target == "secret 0"


def test_no_answer_of_a_past_task_is_seen():
    assert not [e for e in reconstruct([], PAST, Indicators()) if "secret" in e.target]


def test_without_past_rows_all_are_accepted():
    assert [e.target for e in reconstruct(OWN[:1], [], Indicators())] == ["<<pos>> answer 0"]
