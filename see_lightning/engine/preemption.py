"""Being told to stop: one flag for the whole run, set by a signal, read where nothing half done is lost."""

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
HURRY = 3.0  # seconds that others get to end once this process is to end at once
AGAIN = 75  # exit code of a run that stopped before its time was up and wants to be started again (EX_TEMPFAIL)


STOPPED = "stopped when told to; the same command goes on from here"


class Preempted(BaseException):
    """The run ends here, in good order; the same command goes on from the ledger. No failure that a library may try again."""


class StopSignal:
    """Whether this process was told to stop, and by which signal. A context: afterwards signals do what they did before."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._raises = False

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

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this nothing is half done, such as while data are read, and a signal ends it wherever it is.

        Raises:
            Preempted: one came.
        """
        self._raises = True
        try:
            yield
        finally:
            self._raises = False
        if self.signal:  # in a place where Python raises nothing
            raise Preempted

    @contextmanager
    def ends_within(self, seconds: float) -> Iterator[None]:
        """Within this a SIGTERM ends the process after some time if it is still there, even while it waits for other ranks.

        Such a wait hears no signal, for it is not in Python. Nothing is lost but what was not final.

        Args:
            seconds: from the signal on.
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
                    print(
                        f"told to stop, and kept waiting for another rank; ended after {seconds:g} s", file=sys.stderr
                    )
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
        if self._raises:
            self._raises = False
            raise Preempted


def exit_code(stop_signal: Sequence[signal.Signals | None]) -> int:
    """128 + 15 if a rank got SIGTERM; ``AGAIN`` after SIGUSR1 and SIGUSR2, by which a scheduler announces the end."""
    return 128 + signal.SIGTERM if signal.SIGTERM in stop_signal else AGAIN


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Within this nothing is begun yet, and a signal to stop ends the process.

    Raises:
        SystemExit: one came.
    """
    with StopSignal() as stop_signal:
        try:
            with stop_signal.at_once():
                yield
        except Preempted:
            print(STOPPED, file=sys.stderr, flush=True)
            raise SystemExit(exit_code([stop_signal.signal])) from None


def leave_quietly() -> SystemExit:
    """How a rank ends that leaves the last word to the first one.

    ``srun`` ends all ranks as soon as one has an exit code, and takes the highest of their codes for its own: so this one
    has none, and does not hear that it is to be ended.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return SystemExit(0)
