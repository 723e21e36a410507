"""Protocols: the metrics of each paper under its own names, with formulas, and their values for a finished run.

All are computed from the results matrix and its last row's statistics, so that a finished run can be summarised by another
protocol without its model.
"""

from collections.abc import Callable, Mapping
from typing import Any

from see_lightning.evaluation import continual
from see_lightning.evaluation.matrix import ResultsMatrix

Results = Mapping[str, Any]

# a[t][j] is the score on task j after task t, and T the number of tasks.
PROTOCOLS: dict[str, dict[str, str]] = {
    "ssr": {
        "AR": "mean over tasks j of a[T][j]; higher is better",
        "FWT": "mean over t ≥ 2 of a[t−1][t], the score before learning; higher is better",
        "BWT": "mean over j < T of a[T][j] − a[j][j]; below 0, old tasks got worse",
        "forgetting": "mean over j < T of max(a[t][j], j ≤ t < T) − a[T][j]; lower is better",
    },
    "trace": {
        "OP": "mean over tasks j of a[T][j], the paper's OP_T; higher is better",
        "BWT": "sum over j < T of a[T][j] − a[j][j], divided by T − 1 as in the paper's tables; below 0, old tasks got worse",
    },
    "olora": {
        "predict_exact_match": (
            "sum over tasks j of n[j] · m[j], divided by the sum of n[j], for n[j] test queries of task j and their exact"
            " match m[j] after the last task: all queries pooled; higher is better"
        ),
        "mean_exact_match": "mean over tasks j of m[j]; the same as above only where all tasks have as many test queries",
    },
    "sapt": {
        "AP": "mean over tasks j of a[T][j]; higher is better",
        "F.Ra": "mean over j < T of max(a[t][j], j ≤ t < T) − a[T][j]; lower is better",
        "FWT + STL": (
            "mean over tasks j of a[j][j]; FWT is this less the mean of single-task models (AR of method=stl), for which"
            " score.py takes 50.94 whatever the tasks; higher is better"
        ),
        "BWT": "sum over j < T of a[T][j] − a[j][j], divided by T as in score.py, not by T − 1; below 0, old tasks got worse",
    },
}


def summaries(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """The metrics of a run by every protocol.

    Args:
        results: content of ``results.json``: ``tasks``, ``matrix`` and, for exact match, ``last_row``.

    Returns:
        For each protocol ``metrics`` and ``formulas``, by the names of `PROTOCOLS`; None where a score was not measured.

    >>> run = {"tasks": ["qa", "qg"], "matrix": [[90.0, 20.0], [50.0, 70.0]]}
    >>> found = summaries(run)
    >>> found["trace"]["metrics"], found["sapt"]["metrics"]
    ({'OP': 60.0, 'BWT': -40.0}, {'AP': 60.0, 'F.Ra': 40.0, 'FWT + STL': 80.0, 'BWT': -20.0})
    """
    matrix_TT = ResultsMatrix.from_list(results["tasks"], results["matrix"]).to_list()
    row = results.get("last_row")
    matches = [(row[task]["n"], row[task]["exact_match_olora"]) for task in results["tasks"]] if row else []
    of_matrix: dict[str, dict[str, Callable[[continual.Matrix], float | None]]] = {
        "ssr": {
            "AR": continual.average,
            "FWT": continual.forward_transfer,
            "BWT": continual.backward_transfer,
            "forgetting": continual.forgetting,
        },
        "trace": {"OP": continual.average, "BWT": continual.backward_transfer},
        "sapt": {
            "AP": continual.average,
            "F.Ra": continual.forgetting,
            "FWT + STL": continual.learned,
            "BWT": continual.backward_transfer_by_all,
        },
    }
    values = {
        protocol: {name: metric(matrix_TT) for name, metric in metrics.items()}
        for protocol, metrics in of_matrix.items()
    }
    values["olora"] = {
        "predict_exact_match": continual.pooled(matches),
        "mean_exact_match": continual.pooled([(1, match) for _, match in matches]),
    }
    return {
        protocol: {
            "metrics": values[protocol],
            "formulas": formulas,
        }
        for protocol, formulas in PROTOCOLS.items()
    }
