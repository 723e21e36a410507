"""The plan of a run: its stages, and the test queries that are answered after each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from see_lightning.engine.ledger import OOD, REMEMBERED
from see_lightning.tasks.task import Task, merge

OWN = "own"  # the eval set of the run's own tasks


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the sequence.

    Args:
        name: its folder's name, such as ``03-trans``.
        task: the task that is trained; None if none is.
        tests: the tasks evaluated afterwards.
        rows: indices (from 0) of the rows of the results matrix that its scores fill.
    """

    name: str
    task: Task | None
    tests: tuple[Task, ...]
    rows: tuple[int, ...]

    @property
    def tests_own(self) -> bool:
        """Whether the trained task is among ``tests``; merged tasks are not."""
        return self.task is not None and any(task.name == self.task.name for task in self.tests)


@dataclass(frozen=True, slots=True)
class EvalSet:
    """Test queries that are answered under one name.

    Args:
        name: ``own``, ``ood``, ``ood_input_only``, or that of a variant of the run's own prompts.
        tasks: all tasks of the set, with their test splits.
        when: which tasks are answered after which stage. ``seen``: after each stage its ``Stage.tests``, the tasks seen so
            far and the next one. ``each``: all tasks after every stage. ``last``: all tasks after the last stage.
        decide: True: every expert decides on every query, of tasks that are not answered yet too. False: the only
            decisions are those that routing takes on its way to an answer.
    """

    name: str
    tasks: tuple[Task, ...]
    when: Literal["seen", "each", "last"]
    decide: bool

    def answered_after(self, stage: Stage, *, last: bool) -> tuple[Task, ...]:
        """The tasks that are answered after a stage.

        Args:
            stage: that was trained.
            last: whether it is the last of the run.
        """
        if self.when == "seen":
            return stage.tests
        return self.tasks if last or self.when == "each" else ()

    @property
    def digests(self) -> dict[str, str]:
        """Task -> sha256 over everything that determines its answers and scores."""
        return {task.name: task.asked() for task in self.tasks}

    @property
    def answers(self) -> str:
        """The kind of its answers in the ledger."""
        return "answers" if self.name == OWN else self.name

    @property
    def responses(self) -> str:
        """The kind of its cached responses in the ledger."""
        return REMEMBERED if self.name == OWN else f"{self.name}_{REMEMBERED}"


def plan_stages(schedule: str, tasks: Sequence[Task]) -> list[Stage]:
    """The stages of a run.

    Args:
        schedule: ``sequential``: after each task, every task seen so far and the next one are tested. ``joint``: all tasks
            are trained at once, so only the last row is measured. ``frozen``: the model never changes, so one evaluation
            is every row.
        tasks: in their order.
    """
    every = tuple(tasks)
    if schedule == "joint":
        return [Stage("01-all", merge(every), every, (len(every) - 1,))]
    if schedule == "frozen":
        return [Stage("00-base", None, every, tuple(range(len(every))))]
    return [Stage(f"{t + 1:02d}-{task.name}", task, every[: t + 2], (t,)) for t, task in enumerate(every)]


def plan_eval_sets(
    stages: Sequence[Stage], further: Mapping[str, Sequence[Task]], *, decide: bool, ood_after_each: bool
) -> dict[str, EvalSet]:
    """The eval sets of a run by name, in the order in which they are answered.

    Args:
        stages: of the run.
        further: tasks beside the run's own by name of their set: ``ood``, and variants of both. A set without tasks is left
            out.
        decide: whether experts decide on the run's own queries and on ``ood`` ones. Of variants only answers are compared.
        ood_after_each: whether ``ood`` tasks are answered after every stage instead of after the last one alone.
    """
    sets = {OWN: EvalSet(OWN, stages[-1].tests, "seen", decide)}
    for name, tasks in further.items():
        is_ood = name == OOD
        if tasks:
            sets[name] = EvalSet(name, tuple(tasks), "each" if is_ood and ood_after_each else "last", decide and is_ood)
    return sets
