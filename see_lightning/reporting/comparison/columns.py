"""The columns of a comparison: metrics, and the settings in which its groups differ."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from see_lightning.reporting.comparison.groups import Comparison, MeanStd, concerns, ratio_text, setting
from see_lightning.reporting.runs import ROUTED, TO_BASE, Run
from see_lightning.reporting.words import number


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        names: its head; several settings if they differ between the same rows.
        cells: readable, one for each group.
        values: to sort by, one for each group; None if unknown.
        is_number: whether cells are measured numbers, which are aligned to the right.
    """

    names: tuple[str, ...]
    cells: tuple[str, ...]
    values: tuple[float | str | None, ...]
    is_number: bool = False


def columns(comparison: Comparison) -> list[Column]:
    """The columns of the table: the run, its metrics, and one for each difference of settings.

    Settings that differ between the same rows share a column. A setting that has one value in all rows that have it gets no
    column if another setting differs that is in the same rows; `alike` has it.
    """
    groups = comparison.groups
    first = [group.first for group in groups]
    found = [Column((name,), texts, texts) for name, texts in _origins(first)]
    for name in comparison.measured:
        spreads = [group.metrics.get(name) for group in groups]
        is_share = name.startswith((ROUTED, TO_BASE))
        show = _as_percent if is_share else number
        cells = tuple(reading(one, len(group.runs), show) for one, group in zip(spreads, groups, strict=True))
        head = f"{name}, %" if is_share else name
        found.append(Column((head,), cells, tuple(one.mean if one else None for one in spreads), is_number=True))
    counts = [len(group.runs) for group in groups]
    found.append(Column(("seeds",), tuple(map(str, counts)), tuple(counts), is_number=True))
    found.append(Column(("key",), keys := tuple(run.key for run in first), keys))
    if len({run.ratio for run in first} - {None}) > 1:
        found.append(Column(("ratio",), tuple(map(ratio_text, first)), tuple(run.ratio for run in first)))
    return [*found, *(_settings_column(names, first) for names in differences(comparison))]


def _origins(runs: Sequence[Run]) -> Iterator[tuple[str, tuple[str, ...]]]:
    if len({run.order for run in runs}) > 1:
        yield "order", tuple(run.order for run in runs)
    yield "method", tuple(run.method for run in runs)


def _settings_column(names: tuple[str, ...], runs: Sequence[Run]) -> Column:
    texts = [[setting(run, name) for name in names if name in run.settings] for run in runs]
    cells = tuple(" · ".join(some) or "–" for some in texts)
    raw = [run.settings.get(names[0]) for run in runs]
    numeric = [isinstance(value, int | float) and not isinstance(value, bool) for value in raw]
    pairs = zip(raw, numeric, cells, strict=True)
    return Column(names, cells, tuple(value if is_number else cell for value, is_number, cell in pairs))


def differences(comparison: Comparison) -> list[tuple[str, ...]]:
    """The settings in which rows differ; settings that differ between the same rows are in one tuple."""
    runs = [group.first for group in comparison.groups]
    together: dict[tuple[int, ...], list[str]] = {}
    for name in (*comparison.settings, *comparison.further):
        texts = [setting(run, name) if name in run.settings else None for run in runs]
        together.setdefault(tuple(map(texts.index, texts)), []).append(name)

    def has(name: str) -> tuple[bool, ...]:
        return tuple(name in run.settings for run in runs)

    def varies(name: str) -> bool:
        return len({setting(run, name) for run in runs if name in run.settings}) > 1

    explained = {has(names[0]) for names in together.values() if varies(names[0])}
    return [tuple(names) for names in together.values() if varies(names[0]) or has(names[0]) not in explained]


def alike(comparison: Comparison) -> dict[str, dict[str, str]]:
    """The settings without a column, by name, grouped by the rows that share them: all rows (an empty name), or some.

    Settings of a task concern only the runs that learn it.
    """
    shown = {name for names in differences(comparison) for name in names} | {"order.name"}
    runs = [group.first for group in comparison.groups]
    if len({run.ratio for run in runs} - {None}) > 1:
        shown.add("method.ratio")
    parts: list[Callable[[Run], str]] = [
        lambda run: "",
        lambda run: run.order,
        lambda run: run.method,
        lambda run: f"{run.method} on {run.order}",
    ]
    found: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.settings if name not in shown):
        if name.endswith("_"):  # Hydra's own, such as _target_
            continue
        concerned = [run for run in runs if name in run.settings and concerns(name, run)]
        for part in parts:
            values: dict[str, set[str]] = {}
            for run in concerned:
                values.setdefault(part(run), set()).add(setting(run, name))
            if all(len(some) == 1 for some in values.values()):
                for where, some in values.items():
                    found.setdefault(where, {})[name] = next(iter(some))
                break
    return dict(sorted(found.items()))


def reading(value: MeanStd | None, seeds: int, show: Callable[[float], str] = number) -> str:
    """Mean ± standard deviation, and the number of values if that is not all seeds.

    >>> reading(MeanStd(81.0, 1.4142, 2), seeds=2), reading(MeanStd(81.0, 1.4142, 2), seeds=3)
    ('81.00 ± 1.41', '81.00 ± 1.41 (n = 2)')
    >>> reading(MeanStd(-3.5, None, 1), seeds=1), reading(None, seeds=3)
    ('−3.50', '–')
    """
    if value is None:
        return "–"
    deviation = "" if value.deviation is None else f" ± {show(value.deviation)}"
    return show(value.mean) + deviation + ("" if value.n == seeds else f" (n = {value.n})")


def _as_percent(share: float) -> str:
    return number(100 * share, 1)
