"""Being told to stop: one flag for the whole run, set by a signal, read where nothing half done is lost."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
HURRY = 3.0  # seconds that others get to end once this process is to end at once
AGAIN = 75  # exit code of a run that stopped before its time was up and wants to be started again (EX_TEMPFAIL)


class Stopped(Exception):
    """The run ends here, in good order; the same command goes on from the ledger."""


class Told:
    """Whether this process was told to stop, and by which signal. A context: afterwards signals do what they did before."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals; called again where a library has put itself in front."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def patience(self, seconds: float, *, stopped: bool) -> float:
        """Seconds to wait at the end: few after SIGTERM and Ctrl-C, for a scheduler's announcement leaves some time.

        Args:
            seconds: at the end of a run that was not stopped.
            stopped: whether it was.
        """
        return min(seconds, HURRY) if stopped and self.signal not in (signal.SIGUSR1, signal.SIGUSR2) else seconds

    def wait(self, is_done: Callable[[], bool], seconds: float) -> bool:
        """Wait for something, but no longer than ``HURRY`` seconds once a SIGTERM came.

        Args:
            is_done: whether it has happened.
            seconds: to wait at most.

        Returns:
            whether it has happened.
        """
        until, hurried = time.monotonic() + seconds, False
        while not is_done():
            if self.signal == signal.SIGTERM and not hurried:
                until, hurried = min(until, time.monotonic() + HURRY), True
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)


def exit_code(told: Sequence[signal.Signals | None]) -> int:
    """128 + 15 if a rank got SIGTERM; ``AGAIN`` after SIGUSR1 and SIGUSR2, by which a scheduler announces the end."""
    return 128 + signal.SIGTERM if signal.SIGTERM in told else AGAIN


def leave_quietly() -> SystemExit:
    """How a rank ends that leaves the last word to the first one.

    ``srun`` ends all ranks as soon as one has an exit code, and takes the highest of their codes for its own: so this one
    has none, and does not hear that it is to be ended.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return SystemExit(0)
