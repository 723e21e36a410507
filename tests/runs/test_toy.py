"""The toy must be worth its runs: if its experts always agreed, a walk that went wrong would not show."""

import pytest

from tests.runs import toy


@pytest.mark.parametrize("settings", [(), toy.ACTIVATED], ids=["ordinary", "activated"])
def test_in_the_toy_experts_accept_refuse_and_leave_to_the_base_model(base, settings):
    stages = toy.read_answers(toy.whole(base, "method=see", *settings).directory)
    answers = [answer for answers in stages.values() for answer in answers]
    verdicts = {verdict for answer in answers for verdict in answer["verdicts"]}
    assert verdicts == {"pos", "neg", "neither"}
    assert {"base", "sea"} <= {answer["expert"] for answer in answers}
    assert any(len(answer["verdicts"]) > 1 for answer in answers)
    pairs = {(answer["expert"], answer["id"]) for answer in answers}
    assert len(pairs) < len(answers), "some answers can be remembered"


def test_in_the_toy_some_answers_are_right_and_others_wrong(base):
    answers = [answer for answers in toy.read_answers(toy.whole(base).directory).values() for answer in answers]
    assert {answer["score"] > 0 for answer in answers} == {True, False}
