"""What a run is going to do, for each schedule."""

import pytest

from see_lightning.data.example import Example
from see_lightning.engine.stages import Stage, plan_eval_sets, plan_stages
from see_lightning.tasks.task import Task


def task(name: str) -> Task:
    rows = [Example(id=f"{name}-{half}", prompt=f"{name} {half}?", target="x", task=name) for half in ("train", "test")]
    return Task(name=name, train=(rows[0],), test=(rows[1],), score="exact_match", max_new_tokens=4)


A, B, C = task("a"), task("b"), task("c")


def test_one_after_the_other_each_stage_is_tested_on_all_seen_tasks_and_the_next():
    assert plan_stages("sequential", [A, B, C]) == [
        Stage("01-a", A, (A, B), (0,)),
        Stage("02-b", B, (A, B, C), (1,)),
        Stage("03-c", C, (A, B, C), (2,)),
    ]


def test_together_one_stage_trains_all_and_fills_the_last_row():
    (stage,) = plan_stages("joint", [A, B, C])
    assert (stage.name, stage.tests, stage.rows) == ("01-all", (A, B, C), (2,))
    assert stage.task is not None
    assert [example.id for example in stage.task.train] == ["a-train", "b-train", "c-train"]
    assert stage.task.test == ()


def test_untrained_one_evaluation_fills_every_row():
    assert plan_stages("frozen", [A, B, C]) == [Stage("00-base", None, (A, B, C), (0, 1, 2))]


@pytest.mark.parametrize(("schedule", "name"), [("sequential", "01-a"), ("joint", "01-all"), ("frozen", "00-base")])
def test_a_single_task_is_a_sequence_too(schedule, name):
    (stage,) = plan_stages(schedule, [A])
    assert (stage.name, stage.tests, stage.rows) == (name, (A,), (0,))


def test_stages_sort_by_their_names_in_the_order_of_the_tasks():
    names = [stage.name for stage in plan_stages("sequential", [task(f"t{11 - i}") for i in range(11)])]
    assert names == sorted(names)
    assert names[-1] == "11-t1"


STRANGE, OTHER = task("fog"), task("a")


@pytest.mark.parametrize(
    ("ood_after_each", "asked"),
    [
        (True, [["ab", "fog", ""], ["abc", "fog", ""], ["abc", "fog", "a"]]),
        (False, [["ab", "", ""], ["abc", "", ""], ["abc", "fog", "a"]]),
    ],
)
def test_each_eval_set_is_answered_after_its_stages(ood_after_each, asked):
    stages = plan_stages("sequential", [A, B, C])
    further = {"ood": [STRANGE], "input_only": [OTHER]}
    sets = plan_eval_sets(stages, further, decide=True, ood_after_each=ood_after_each)
    answered = [[one.answered_after(stage, last=stage is stages[-1]) for one in sets.values()] for stage in stages]
    assert [["".join(task.name for task in tasks) for tasks in row] for row in answered] == asked


def test_experts_decide_on_own_and_ood_queries_and_not_on_variants():
    further = {"ood": [STRANGE], "input_only": [OTHER]}
    sets = plan_eval_sets(plan_stages("sequential", [A, B]), further, decide=True, ood_after_each=False)
    assert {name: one.decide for name, one in sets.items()} == {"own": True, "ood": True, "input_only": False}
    without = plan_eval_sets(plan_stages("sequential", [A, B]), further, decide=False, ood_after_each=False)
    assert not any(one.decide for one in without.values())


@pytest.mark.parametrize(("schedule", "own"), [("sequential", [True, True]), ("joint", [False]), ("frozen", [False])])
def test_only_a_task_that_is_trained_by_itself_is_tested_by_its_own_stage(schedule, own):
    assert [stage.tests_own for stage in plan_stages(schedule, [A, B])] == own
