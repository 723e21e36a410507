"""Times that can be believed on a shared machine: contenders in turn, noisy samples known as such, ratios pair by pair.

A sample during which other processes used more than ``QUIET`` of the machine is noisy. A ratio needs ``ENOUGH`` rounds in
which both of its sides were quiet; with fewer there is no conclusion, and its value is null.
"""

import gc
import json
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

QUIET = 0.05  # share of the machine's CPU time
ENOUGH = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds used up to now.

    Args:
        machine: by everybody, the hypervisor's other guests included; None where it cannot be read.
        capacity: what all cores together could have given.
        own: by this process with all its threads, and by those it started: running ones, and ones it waited for.
    """

    machine: float | None
    capacity: float
    own: float


def parse_stat(text: str, ticks: int) -> tuple[float, float]:
    """Seconds that all cores worked, and could have worked, out of the text of ``/proc/stat``.

    Args:
        text: its first line names user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user.
        ticks: per second.
    """
    columns = [int(column) for column in text.splitlines()[0].split()[1:9]]
    idle = columns[3] + columns[4]
    return (sum(columns) - idle) / ticks, sum(columns) / ticks


def read_usage(stat: Path = Path("/proc/stat")) -> Usage:
    """The machine's CPU seconds and our own; without ``/proc`` only the latter."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = time.process_time() + children.ru_utime + children.ru_stime + _running_children()
    try:
        machine, capacity = parse_stat(stat.read_text(), os.sysconf("SC_CLK_TCK"))
    except OSError:
        return Usage(None, 0.0, own)
    return Usage(machine, capacity, own)


def _running_children() -> float:
    """CPU seconds of the processes that this one started and that still run, such as a server that is measured."""
    seconds = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended, and counts as one that was waited for
            times = child.cpu_times()
            seconds += times.user + times.system
    return seconds


def others_share(before: Usage, after: Usage) -> float | None:
    """Share of the machine that other processes used in between, 0..1; None if unknown."""
    if before.machine is None or after.machine is None or after.capacity <= before.capacity:
        return None
    others = (after.machine - before.machine) - (after.own - before.own)
    return max(0.0, others) / (after.capacity - before.capacity)


class Clock:
    """Adds up the time spent inside ``with clock``.

    Args:
        sync: waits until the device has done its work; called before the clock is read.
    """

    def __init__(self, sync: Callable[[], None]) -> None:
        self.sync, self.seconds = sync, 0.0

    def __enter__(self) -> None:
        self.sync()
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.sync()
        self.seconds += time.perf_counter() - self._started


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Args:
        seconds: on the clock.
        others: share of the machine that others used meanwhile; None if unknown.
    """

    seconds: float
    others: float | None

    @property
    def clean(self) -> bool:
        """Whether the machine was this process's own."""
        return self.others is not None and self.others <= QUIET


#: What is measured: prepares as it likes, and does inside ``with clock`` what counts.
Contender = Callable[[Clock], object]
Round = dict[str, Sample]


def take(contender: Contender, sync: Callable[[], None]) -> Sample:
    """One sample of a contender."""
    gc.collect()
    clock = Clock(sync)
    before = read_usage()
    contender(clock)
    return Sample(clock.seconds, others_share(before, read_usage()))


def alternate(
    contenders: Mapping[str, Contender],
    *,
    repeats: int,
    sync: Callable[[], None],
    tell: Callable[[str], None] = lambda line: None,
) -> list[Round]:
    """Rounds in which every contender is measured once, in turn: A B A B.

    Args:
        contenders: by name.
        repeats: clean rounds wanted; given up after twice as many rounds.
        sync: see ``Clock``.
        tell: is given a line on every sample.
    """
    rounds: list[Round] = []
    while len(rounds) < 2 * repeats and sum(clean_round(r, *r) for r in rounds) < repeats:
        taken: Round = {}
        for name, contender in contenders.items():
            sample = taken[name] = take(contender, sync)
            others = "unknown" if sample.others is None else f"{sample.others:.1%}"
            tell(f"round {len(rounds) + 1}: {name} {sample.seconds:.2f} s, others used {others} of the machine")
        rounds.append(taken)
    return rounds


def clean_round(taken: Round, *names: str) -> bool:
    """Whether these contenders' samples of a round are all clean."""
    return all(taken[name].clean for name in names)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long one contender took as another.

    Args:
        value: the median over rounds; None where nothing can be concluded.
        low: the smallest.
        high: the largest.
        pairs: rounds that it was taken from.
        busy: whether too few rounds were clean.
    """

    value: float | None
    low: float | None
    high: float | None
    pairs: int
    busy: bool


UNMEASURED = Ratio(None, None, None, 0, False)


def compare(rounds: Sequence[Round], slower: str, faster: str, *, force: bool = False) -> Ratio:
    """The time of ``slower`` over that of ``faster``, round by round.

    Args:
        rounds: of ``alternate``.
        slower: name of the contender whose time is divided.
        faster: name of the contender whose time it is divided by.
        force: where too few rounds are clean, take them all.
    """
    clean = [taken for taken in rounds if clean_round(taken, slower, faster)]
    busy = len(clean) < ENOUGH
    if busy and not force:
        return Ratio(None, None, None, len(clean), busy)
    used = rounds if busy else clean
    ratios = [taken[slower].seconds / taken[faster].seconds for taken in used]
    return Ratio(median(ratios), min(ratios), max(ratios), len(ratios), busy)


def seconds_of(rounds: Sequence[Round], name: str) -> tuple[list[float], int]:
    """A contender's times, of clean samples if there are any; and how many of its samples are clean."""
    samples = [taken[name] for taken in rounds]
    clean = [sample.seconds for sample in samples if sample.clean]
    return clean or [sample.seconds for sample in samples], len(clean)


def print_times(
    title: str,
    rounds: Sequence[Round],
    *,
    unit: str,
    amount: float,
    per_second: bool = True,
    notes: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """A table of all contenders: median, spread, and how many samples were clean.

    Args:
        title: above the table.
        rounds: of ``alternate``.
        unit: of what a sample does ``amount`` of, such as ``examples``.
        amount: per sample.
        per_second: show units per second, else milliseconds per unit.
        notes: further columns: heading -> contender -> text.
    """
    notes = notes or {}
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    speed = f"{unit}/s" if per_second else f"ms, of {amount:g} {unit} each"
    for heading in ("", speed, "median s", "max/min", "clean", *notes):
        table.add_column(heading, justify="right" if heading else "left")
    for name in rounds[0] if rounds else ():
        seconds, clean = seconds_of(rounds, name)
        middle = median(seconds)
        shown = amount / middle if per_second else 1000 * middle / amount
        table.add_row(
            name,
            f"{shown:.2f}" if per_second else f"{shown:.0f}",
            f"{middle:.2f}",
            f"{max(seconds) / min(seconds):.2f}",
            f"{clean}/{len(rounds)}",
            *(column.get(name, "") for column in notes.values()),
        )
    Console(width=110).print(table)


def print_ratios(ratios: Mapping[str, Ratio]) -> None:
    """A line for every ratio, or why there is none."""
    for name, ratio in ratios.items():
        if ratio.value is None:
            why = f"the machine was busy: no conclusion ({ratio.pairs} clean pairs)" if ratio.busy else "not measured"
            print(f"{name}: {why}")
        else:
            doubt = ", though the machine was busy" if ratio.busy else ""
            print(f"{name}: {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f} in {ratio.pairs} pairs{doubt})")


def result_line(counts: Mapping[str, object], ratios: Mapping[str, Ratio], *, forced: bool) -> str:
    """The last line that a benchmark prints: one JSON object.

    Args:
        counts: exact numbers, which no noise touches.
        ratios: by key; null where nothing can be concluded.
        forced: whether ratios were to be reported from a busy machine too.
    """
    values = {name: None if ratio.value is None else round(ratio.value, 3) for name, ratio in ratios.items()}
    spread = {
        name: [round(ratio.low, 3), round(ratio.high, 3)]
        for name, ratio in ratios.items()
        if ratio.low is not None and ratio.high is not None
    }
    busy = any(ratio.busy for ratio in ratios.values())
    return json.dumps({**values, **counts, "spread": spread, "busy": busy, "forced": forced}, allow_nan=False)
