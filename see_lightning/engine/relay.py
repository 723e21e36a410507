"""What must not disturb a run: calls made in a thread of their own, a failure of which is a notice."""

import sys
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from lightning.pytorch.loggers import Logger

from see_lightning.engine.preemption import StopSignal
from see_lightning.errors import with_cause


class Relay:
    """Makes calls one after the other, in the order in which they were put.

    The first that raises is told in one line, and those after it are dropped. One that never returns keeps its thread, which
    nobody waits for when the process ends.

    Args:
        name: of the tracker, for the notice.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], object]) -> None:
        """Let a call be made; returns at once."""
        self._calls.put(call)

    def end(self, seconds: float, stop_signal: StopSignal) -> bool:
        """Wait until all calls are made, and make no more.

        Args:
            seconds: to wait at most.
            stop_signal: by which the wait ends earlier.

        Returns:
            whether they were made.
        """
        self._calls.put(None)
        try:
            return stop_signal.wait(lambda: not self._thread.is_alive(), seconds)
        finally:
            self._given_up = True

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._given_up:
                continue
            try:
                call()
            except Exception as error:
                if not self._given_up:
                    notice(f"{self.name} failed and is told no more: {with_cause(error)}; the run goes on")
                self._given_up = True


class Relayed(Logger):
    """What a Trainer reports to; each report is passed on and not waited for.

    Args:
        metrics: takes metrics and their step.
        name: of the kind of logger.
        finalize: takes how training ended.
    """

    def __init__(
        self,
        metrics: Callable[[dict[str, float], int | None], None],
        name: str,
        finalize: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self._metrics, self._name, self._finalize = metrics, name, finalize

    @property
    def name(self) -> str:
        """As Lightning wants it."""
        return self._name

    @property
    def version(self) -> str:
        """A stage has one logger."""
        return ""

    def log_hyperparams(self, *_: object) -> None:
        """They are in the run's ``config.yaml``."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of a step."""
        self._metrics(dict(metrics), step)

    def finalize(self, status: str) -> None:
        """Training ended."""
        self._finalize(status)


def notice(text: str) -> None:
    """A line beside the run's own."""
    print(f"note: {text}", file=sys.stderr, flush=True)
