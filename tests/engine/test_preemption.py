"""Signals to stop: noted, never acted on, and nobody else's once the run is over."""

import os
import signal
import threading

import pytest

from see_lightning.engine.preemption import AGAIN, SIGNALS, StopSignal, exit_code


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_afterwards_does_what_it_did_before(number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(1))
    try:
        with StopSignal() as told:
            assert told.signal is None
            os.kill(os.getpid(), number)
            assert told.signal is number
            assert heard == []
        os.kill(os.getpid(), number)
        assert heard == [1]
    finally:
        signal.signal(number, before)


def test_who_puts_itself_in_front_is_put_behind_again():
    with StopSignal() as told:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        told.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.signal is signal.SIGTERM


def test_a_run_in_another_thread_leaves_signals_alone():
    found = []

    def work() -> None:
        with StopSignal():
            found.append(signal.getsignal(signal.SIGUSR1))

    before = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_the_exit_code_says_whether_to_start_again():
    assert exit_code([None, signal.SIGUSR1]) == exit_code([signal.SIGUSR2]) == AGAIN == 75
    assert exit_code([signal.SIGUSR1, signal.SIGTERM]) == 143
