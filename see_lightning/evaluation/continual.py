r"""What a results matrix says about a sequence of tasks: level, transfer and forgetting, as in SSR (arXiv 2403.01244).

Letters: T tasks; $a_{t,j}$ is ``matrix_TT[t, j]``, the score on task j after task t, counted from 1 in the formulas.
Every function returns a scalar in the scores' unit (0..100), NaN if a score that it needs was not measured.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def average(matrix_TT: Tensor) -> Tensor:
    r"""AR, the mean score after the last task: $\frac{1}{T}\sum_{j\le T} a_{T,j}$. Higher is better.

    >>> average(torch.tensor([[90., 20.], [50., 70.]]))
    tensor(60.)
    """
    return _square(matrix_TT)[-1].mean()


def forward_transfer(matrix_TT: Tensor) -> Tensor:
    r"""FWT, the mean score on the next task before it is learned: $\frac{1}{T-1}\sum_{t\ge2} a_{t-1,t}$; NaN if T = 1.

    Higher is better. It is the raw score: nothing is subtracted for what an untrained model would reach.

    >>> forward_transfer(torch.tensor([[90., 20.], [50., 70.]]))
    tensor(20.)
    """
    return _square(matrix_TT).diagonal(offset=1).mean()


def backward_transfer(matrix_TT: Tensor) -> Tensor:
    r"""BWT, the mean change on old tasks: $\frac{1}{T-1}\sum_{j<T}(a_{T,j}-a_{j,j})$; NaN if T = 1.

    Negative if they got worse.

    >>> backward_transfer(torch.tensor([[90., 20.], [50., 70.]]))
    tensor(-40.)
    """
    return (_square(matrix_TT)[-1] - matrix_TT.diagonal())[:-1].mean()


def backward_transfer_by_all(matrix_TT: Tensor) -> Tensor:
    r"""BWT as SAPT's ``score.py`` divides it, by all tasks, not by the old ones: $\frac{1}{T}\sum_{j\le T}(a_{T,j}-a_{j,j})$.

    Nearer to 0 than `backward_transfer` by the factor (T − 1) / T.

    >>> backward_transfer_by_all(torch.tensor([[90., 20.], [50., 70.]]))
    tensor(-20.)
    """
    return (_square(matrix_TT)[-1] - matrix_TT.diagonal()).mean()


def learned(matrix_TT: Tensor) -> Tensor:
    r"""The mean score right after learning: $\frac{1}{T}\sum_{j\le T} a_{j,j}$. Higher is better.

    >>> learned(torch.tensor([[90., 20.], [50., 70.]]))
    tensor(80.)
    """
    return _square(matrix_TT).diagonal().mean()


def pooled(groups: Sequence[tuple[int, float]]) -> float:
    r"""The mean over all queries of all tasks: $\sum_j n_j m_j \big/ \sum_j n_j$; NaN for no groups.

    Args:
        groups: for each task its queries $n_j$ and their mean score $m_j$.

    >>> pooled([(300, 90.0), (100, 10.0)]), pooled([(1, 90.0), (1, 10.0)])
    (70.0, 50.0)
    """
    queries = sum(n for n, _ in groups)
    return sum(n * mean for n, mean in groups) / queries if queries else math.nan


def forgetting(matrix_TT: Tensor) -> Tensor:
    r"""Mean drop on old tasks from their best: $\frac{1}{T-1}\sum_{j<T}\big(\max_{j\le t<T} a_{t,j}-a_{T,j}\big)$.

    Negative if they improved; NaN if T = 1. The best is taken over what was measured since the task was learned,
    without the last row. SAPT's F.Ra is the same: its ``score.py`` has 0 for tasks that were not learned yet.

    >>> forgetting(torch.tensor([[80., 20., 10.], [90., 60., 10.], [50., 70., 30.]]))
    tensor(15.)
    """
    since_learned_TT = torch.ones_like(_square(matrix_TT), dtype=torch.bool).tril()
    since_learned_TT[-1] = False
    best_T = matrix_TT.where(since_learned_TT & ~matrix_TT.isnan(), -torch.inf).amax(dim=0)
    best_T = best_T.where(best_T.isfinite(), torch.nan)
    return (best_T - matrix_TT[-1])[:-1].mean()


def continual_metrics(matrix_TT: Tensor) -> dict[str, float | None]:
    """The four metrics by the names under which ``results.json`` keeps them; None where one is NaN.

    >>> continual_metrics(torch.tensor([[90., 20.], [50., 70.]]))
    {'AR': 60.0, 'FWT': 20.0, 'BWT': -40.0, 'forgetting': 40.0}
    """
    metrics = {
        "AR": average(matrix_TT).item(),
        "FWT": forward_transfer(matrix_TT).item(),
        "BWT": backward_transfer(matrix_TT).item(),
        "forgetting": forgetting(matrix_TT).item(),
    }
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _square(matrix_TT: Tensor) -> Tensor:
    if matrix_TT.ndim != 2 or matrix_TT.shape[0] != matrix_TT.shape[1] or matrix_TT.shape[0] == 0:
        raise ValueError(f"a results matrix has as many rows as columns, at least one; got {tuple(matrix_TT.shape)}.")
    return matrix_TT
