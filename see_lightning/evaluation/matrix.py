"""The results matrix: the score after each task on every task, None where it was not measured.

Letters: T tasks, in the order in which they are learned.
"""

from collections.abc import Sequence


class ResultsMatrix:
    """Scores in 0..100; row t holds the scores after the t-th task, column j belongs to task j.

    Args:
        tasks: names in the order in which they are learned; all different.

    >>> matrix = ResultsMatrix(["qa", "qg"])
    >>> matrix.set(1, "qa", 81.5)
    >>> matrix.to_list()
    [[81.5, None], [None, None]]
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"a results matrix needs at least one task and a different name for each; got {tasks!r}.")
        self.tasks = tuple(tasks)
        self._rows: list[list[float | None]] = [[None] * len(tasks) for _ in tasks]

    @classmethod
    def from_list(cls, tasks: Sequence[str], rows: Sequence[Sequence[float | None]]) -> "ResultsMatrix":
        """The matrix with rows from `to_list`.

        Raises:
            ValueError: `rows` are not T rows of T scores, or a score lies outside 0..100.
        """
        matrix = cls(tasks)
        if [len(row) for row in rows] != [len(tasks)] * len(tasks):
            raise ValueError(
                f"{len(tasks)} tasks need {len(tasks)} rows of {len(tasks)} scores; "
                f"got rows of length {[len(row) for row in rows]}."
            )
        for after, row in enumerate(rows, start=1):
            for task, score in zip(tasks, row, strict=True):
                if score is not None:
                    matrix.set(after, task, score)
        return matrix

    def set(self, after: int, task: str, score: float) -> None:
        """Set a score.

        Args:
            after: number of tasks learned so far, 1..T.
            task: name of the tested task.
            score: in 0..100.
        """
        if task not in self.tasks:
            raise ValueError(f"there is no task {task!r} in this matrix; its tasks are {', '.join(self.tasks)}.")
        if not 0.0 <= score <= 100.0:
            raise ValueError(f"a score lies in 0..100; got {score} on {task!r} after {after} tasks.")
        self._rows[self._index(after)][self.tasks.index(task)] = float(score)

    def row(self, after: int) -> dict[str, float]:
        """The score of each tested task after `after` tasks (1..T)."""
        scores = zip(self.tasks, self._rows[self._index(after)], strict=True)
        return {task: score for task, score in scores if score is not None}

    def to_list(self) -> list[list[float | None]]:
        """The rows, for JSON and for metrics; None for scores that were not measured."""
        return [list(row) for row in self._rows]

    def _index(self, after: int) -> int:
        if not 1 <= after <= len(self.tasks):
            raise ValueError(f"`after` counts the tasks learned so far, 1..{len(self.tasks)}; got {after}.")
        return after - 1
