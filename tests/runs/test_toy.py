"""The toy must be worth its runs: if its experts always agreed, a walk that went wrong would not show."""

from tests.runs import toy


def test_in_the_toy_experts_accept_refuse_and_leave_to_the_base_model(base):
    answers = [answer for answers in toy.read_answers(toy.whole(base).directory).values() for answer in answers]
    verdicts = {verdict for answer in answers for verdict in answer["verdicts"]}
    assert verdicts == {"pos", "neg", "neither"}
    assert {"base", "ice"} <= {answer["expert"] for answer in answers}
    assert any(len(answer["verdicts"]) > 1 for answer in answers)
    assert any(answer["score"] > 0 for answer in answers)
    assert any(answer["score"] == 0 for answer in answers)
