"""Calls in a thread of their own, so that a slow or failing tracker does not disturb the run."""

import re
import sys
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from lightning.pytorch.loggers import Logger

from see_lightning.engine.preemption import StopSignal
from see_lightning.errors import with_cause

CREDENTIALS = re.compile(r"//[^/@\s]+@")  # in an address: user, or user and password


class Relay:
    """A thread that makes calls in the order in which they were put.

    After a call that raises, a notice is printed and all later calls are dropped. A call that never returns does not keep
    the process from ending.

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
        """Add a call to the queue."""
        self._calls.put(call)

    def end(self, seconds: float, stop_signal: StopSignal) -> bool:
        """Wait until all calls are made; later calls are dropped.

        Args:
            seconds: to wait at most.
            stop_signal: shortens the wait.

        Returns:
            Whether all calls were made.
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
                    notice(f"{self.name} failed and gets no further reports: {with_cause(error)}; the run goes on")
                self._given_up = True


class Relayed(Logger):
    """A Lightning logger that forwards metrics to a ``Relay`` without waiting.

    Args:
        metrics: called with metrics and their step.
        name: of the kind of logger.
        finalize: called with the status of training at its end.
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
        """Name of the kind of logger."""
        return self._name

    @property
    def version(self) -> str:
        """Empty: each stage has a logger of its own."""
        return ""

    def log_hyperparams(self, *_: object) -> None:
        """Do nothing: the settings are in ``config.yaml``."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Forward the metrics of a step."""
        self._metrics(dict(metrics), step)

    def finalize(self, status: str) -> None:
        """Forward the status at the end of training."""
        self._finalize(status)


def notice(text: str) -> None:
    """Print a notice to standard error, without the passwords of addresses in it."""
    print(f"note: {CREDENTIALS.sub('//', text)}", file=sys.stderr, flush=True)
