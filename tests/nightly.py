"""Of many cases of one kind, ``make test`` runs some; the others bear the mark ``nightly`` and wait for ``make test-all``."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def all_but(daily: Callable[[Any], bool] | Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``: all cases, of which only the daily ones are not nightly."""
    chosen = daily if callable(daily) else list(daily).__contains__
    return [case if chosen(case) else pytest.param(case, marks=pytest.mark.nightly) for case in cases]


def first_of_each_kind(names: Iterable[str]) -> list[str]:
    """Of names that begin with the word for their kind, the first of each.

    >>> first_of_each_kind(["link a", "link b", "pipe a"])
    ['link a', 'pipe a']
    """
    return list({name.split(" ")[0]: name for name in reversed(list(names))}.values())[::-1]
