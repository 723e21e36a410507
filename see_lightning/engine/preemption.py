"""Preemption: a signal sets a flag, which the run checks between units of work, so that finished work is kept."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
HURRY = 3.0  # seconds to wait for other processes and threads after a SIGTERM
AGAIN = 75  # exit code (EX_TEMPFAIL) of a run that stopped before its time limit and can be started again


STOPPED = "stopped by a signal; the same command resumes the run"


class Preempted(BaseException):
    """The run was stopped by a signal; the same command resumes it. No ``Exception``, so that libraries do not retry."""


class StopSignal:
    """The stop signal that this process received, if any. A context, which restores the signal handlers at its end."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._raises = False

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A context that a stop signal ends at any point; for work that writes nothing, such as reading data.

        Raises:
            Preempted: a signal came.
        """
        self._raises = True
        try:
            yield
        finally:
            self._raises = False
        if self.signal:  # it came where Python ignores exceptions
            raise Preempted

    @contextmanager
    def ends_within(self, seconds: float) -> Iterator[None]:
        """A context in which the process ends some time after a SIGTERM, even while it waits for other ranks.

        Such a wait is outside Python, so that no signal handler can run. Final work is kept.

        Args:
            seconds: from the signal to the end.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        over = threading.Event()

        def watch() -> None:
            while number := os.read(reader, 1):
                if number[0] == signal.SIGTERM and not over.wait(seconds):
                    print(f"got SIGTERM, and kept waiting for another rank; ended after {seconds:g} s", file=sys.stderr)
                    sys.stderr.flush()
                    os._exit(128 + signal.SIGTERM)

        watcher = threading.Thread(target=watch, daemon=True)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            signal.set_wakeup_fd(before)
            os.close(writer)
            watcher.join()
            os.close(reader)

    def patience(self, seconds: float, *, stopped: bool) -> float:
        """Seconds to wait at the end of a run: at most ``HURRY`` after SIGTERM and Ctrl-C; others leave more time.

        Args:
            seconds: for a run that was not stopped.
            stopped: whether the run was stopped.
        """
        return min(seconds, HURRY) if stopped and self.signal not in (signal.SIGUSR1, signal.SIGUSR2) else seconds

    def wait(self, is_done: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition holds; at most ``HURRY`` seconds after a SIGTERM.

        Args:
            is_done: the condition.
            seconds: to wait at most.

        Returns:
            Whether the condition holds.
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
        if self._raises:
            self._raises = False
            raise Preempted


def exit_code(stop_signal: Sequence[signal.Signals | None]) -> int:
    """The exit code of a stopped run: 128 + 15 if a rank got SIGTERM, else ``AGAIN``: a scheduler sent SIGUSR1 or SIGUSR2."""
    return 128 + signal.SIGTERM if signal.SIGTERM in stop_signal else AGAIN


@contextmanager
def ended_at_once() -> Iterator[None]:
    """A context before the start of a run, in which a stop signal ends the process.

    Raises:
        SystemExit: a signal came.
    """
    with StopSignal() as stop_signal:
        try:
            with stop_signal.at_once():
                yield
        except Preempted:
            print(STOPPED, file=sys.stderr, flush=True)
            raise SystemExit(exit_code([stop_signal.signal])) from None


def leave_quietly() -> SystemExit:
    """The exit of a rank whose failure the first rank reports: exit code 0, with SIGTERM ignored from now on.

    ``srun`` ends all ranks as soon as one fails, and exits with the highest of their codes, which is the first rank's.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return SystemExit(0)
