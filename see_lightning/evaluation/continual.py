r"""Metrics of continual learning from a results matrix: mean score, transfer and forgetting, as in SSR (arXiv 2403.01244).

Letters: T tasks; $a_{t,j}$ is ``matrix_TT[t][j]``, the score on task j after task t, counted from 1 in the formulas.
Every function returns a number in the scores' unit (0..100), or None if a score that it needs was not measured.
"""

from collections.abc import Iterable, Sequence

#: T rows of T scores, None where nothing was measured.
Matrix = Sequence[Sequence[float | None]]


def average(matrix_TT: Matrix) -> float | None:
    r"""AR, the mean score after the last task: $\frac{1}{T}\sum_{j\le T} a_{T,j}$. Higher is better.

    >>> average([[90., 20.], [50., 70.]])
    60.0
    """
    return _mean(_square(matrix_TT)[-1])


def forward_transfer(matrix_TT: Matrix) -> float | None:
    r"""FWT, the mean score on the next task before it is learned: $\frac{1}{T-1}\sum_{t\ge2} a_{t-1,t}$; None if T = 1.

    Higher is better. It is the raw score; the score of an untrained model is not subtracted.

    >>> forward_transfer([[90., 20.], [50., 70.]])
    20.0
    """
    return _mean(row[t + 1] for t, row in enumerate(_square(matrix_TT)[:-1]))


def backward_transfer(matrix_TT: Matrix) -> float | None:
    r"""BWT, the mean change on old tasks: $\frac{1}{T-1}\sum_{j<T}(a_{T,j}-a_{j,j})$; None if T = 1.

    Negative if they got worse.

    >>> backward_transfer([[90., 20.], [50., 70.]])
    -40.0
    """
    return _mean(_changes(matrix_TT)[:-1])


def backward_transfer_by_all(matrix_TT: Matrix) -> float | None:
    r"""BWT as SAPT's ``score.py`` divides it, by all tasks, not by the old ones: $\frac{1}{T}\sum_{j\le T}(a_{T,j}-a_{j,j})$.

    Nearer to 0 than `backward_transfer` by the factor (T − 1) / T.

    >>> backward_transfer_by_all([[90., 20.], [50., 70.]])
    -20.0
    """
    return _mean(_changes(matrix_TT))


def learned(matrix_TT: Matrix) -> float | None:
    r"""The mean score right after learning: $\frac{1}{T}\sum_{j\le T} a_{j,j}$. Higher is better.

    >>> learned([[90., 20.], [50., 70.]])
    80.0
    """
    return _mean(_diagonal(matrix_TT))


def pooled(groups: Sequence[tuple[int, float]]) -> float | None:
    r"""The mean over all queries of all tasks: $\sum_j n_j m_j \big/ \sum_j n_j$; None for no groups.

    Args:
        groups: for each task its queries $n_j$ and their mean score $m_j$.

    >>> pooled([(300, 90.0), (100, 10.0)]), pooled([(1, 90.0), (1, 10.0)])
    (70.0, 50.0)
    """
    queries = sum(n for n, _ in groups)
    return sum(n * mean for n, mean in groups) / queries if queries else None


def forgetting(matrix_TT: Matrix) -> float | None:
    r"""Mean drop on old tasks from their best: $\frac{1}{T-1}\sum_{j<T}\big(\max_{j\le t<T} a_{t,j}-a_{T,j}\big)$.

    Negative if they improved; None if T = 1. The best is taken over the scores since the task was learned,
    without the last row. SAPT's F.Ra is the same: its ``score.py`` has 0 for tasks that were not learned yet.

    >>> forgetting([[80., 20., 10.], [90., 60., 10.], [50., 70., 30.]])
    15.0
    """
    *before, last = _square(matrix_TT)
    drops = []
    for j in range(len(before)):
        measured = [score for row in before[j:] if (score := row[j]) is not None]
        drops.append(_difference(max(measured, default=None), last[j]))
    return _mean(drops)


def continual_metrics(matrix_TT: Matrix) -> dict[str, float | None]:
    """The four metrics by their names in ``results.json``.

    >>> continual_metrics([[90., 20.], [50., 70.]])
    {'AR': 60.0, 'FWT': 20.0, 'BWT': -40.0, 'forgetting': 40.0}
    """
    return {
        "AR": average(matrix_TT),
        "FWT": forward_transfer(matrix_TT),
        "BWT": backward_transfer(matrix_TT),
        "forgetting": forgetting(matrix_TT),
    }


def _changes(matrix_TT: Matrix) -> list[float | None]:
    """For each task, its last score less the one right after learning it."""
    return [_difference(end, own) for end, own in zip(_square(matrix_TT)[-1], _diagonal(matrix_TT), strict=True)]


def _diagonal(matrix_TT: Matrix) -> list[float | None]:
    return [row[t] for t, row in enumerate(_square(matrix_TT))]


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; None of no values, or if one is None."""
    # Added one by one: `sum` compensates for rounding from Python 3.12 on, and a result would depend on the version.
    total, count = 0.0, 0
    for value in values:
        if value is None:
            return None
        total, count = total + value, count + 1
    return total / count if count else None


def _square(matrix_TT: Matrix) -> Matrix:
    lengths = [len(row) for row in matrix_TT]
    if not lengths or lengths != [len(lengths)] * len(lengths):
        raise ValueError(f"a results matrix has as many rows as columns, at least one; got rows of length {lengths}.")
    return matrix_TT
