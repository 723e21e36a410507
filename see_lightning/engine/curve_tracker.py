"""Trackers that keep points on curves, each once, however often the run is interrupted."""

import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning.pytorch.loggers import Logger

from see_lightning.engine.preemption import StopSignal
from see_lightning.engine.relay import Relayed
from see_lightning.engine.tracked import cells, numbers, of_cell, of_stage, settings
from see_lightning.engine.tracker import ThreadTracker

MOST, LATEST = 500, 5.0  # points, and seconds, after which points are sent


class Point(NamedTuple):
    """A point on a curve.

    Args:
        name: of the curve.
        step: optimizer step of the task from 0, or number of learned tasks from 1.
        value: of the metric.
        when: seconds since the epoch.
    """

    name: str
    step: int
    value: float
    when: float


class CurveTracker(ThreadTracker):
    """A tracker of points on curves; a subclass says where they are kept. Its abstract methods run in the thread.

    A run that goes on trains an unfinished stage again from its own seeds, with the same losses. Points that an earlier start
    has reported are therefore left out, and gaps are filled.
    """

    def __init__(self, name: str, timeout: float) -> None:
        super().__init__(name, timeout)
        self._points: list[Point] = []  # not sent yet
        self._known: dict[str, dict[int, float]] = {}  # values by curve and step
        self._sent = time.monotonic()

    @abstractmethod
    def begin(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Begin or continue the run's record, with its settings by their dotted names."""

    @abstractmethod
    def kept(self, name: str) -> dict[int, float]:
        """The values of a curve that earlier starts of the run have reported, by step."""

    @abstractmethod
    def send(self, points: Sequence[Point]) -> None:
        """Report points."""

    @abstractmethod
    def tell_report(self, results: Mapping[str, Any], report: Path) -> None:
        """Report what a finished run has beside its curves; also when it was finished before."""

    @abstractmethod
    def end(self, code: int, *, goes_on: bool) -> None:
        """End the record; see ``Tracker.close``."""

    def open(self, directory: Path, config: Mapping[str, Any], stop_signal: StopSignal) -> None:
        """Start the thread, and in it the client."""
        super().open(directory, config, stop_signal)
        self.put(lambda: self.begin(directory, settings(config)))

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """A logger whose metrics carry the task's name; the steps of each task begin at 0."""

        def log(metrics: dict[str, float], step: int | None) -> None:
            when = time.time()
            self.put(lambda: self._add(of_stage(task, metrics), step or 0, when))

        return Relayed(log, self.name, lambda _: self.put(self._flush))

    def score(self, *, after: int, task: str, score: float) -> None:
        """Report the score as a point of the task's curve and as a cell of the matrix."""
        when = time.time()

        def tell() -> None:
            self._add(of_cell(after, task, score), after, when)
            self._flush()

        self.put(tell)

    def finish(self, results: Mapping[str, Any], report: Path) -> None:
        """Report metrics and files, and the whole matrix: earlier starts may have been killed before a report."""

        def tell() -> None:
            when = time.time()
            for after, task, score in cells(results):
                self._add(of_cell(after, task, score), after, when)
            self._add(numbers(results), len(results["tasks"]), when, replace=True)
            self._flush()
            self.tell_report(results, report)

        self.put(tell)

    def close(self, code: int, *, goes_on: bool = False) -> None:
        """Wait until all reports are made."""
        self.put(self._flush)
        self.put(lambda: self.end(code, goes_on=goes_on))
        super().close(code, goes_on=goes_on)

    def _add(self, values: Mapping[str, float], step: int, when: float, *, replace: bool = False) -> None:
        """Add points that are not known yet; with ``replace`` also those whose value has changed."""
        for name, value in values.items():
            if name not in self._known:
                self._known[name] = self.kept(name)
            known = self._known[name].get(step)
            # Event files have single precision.
            if known is None or (replace and not math.isclose(known, value, rel_tol=1e-6)):
                self._known[name][step] = value
                self._points.append(Point(name, step, float(value), when))
        if len(self._points) >= MOST or time.monotonic() - self._sent > LATEST:
            self._flush()

    def _flush(self) -> None:
        points, self._points, self._sent = self._points, [], time.monotonic()
        if points:
            self.send(points)
