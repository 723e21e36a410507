"""Signals to stop: noted, never acted on, and nobody else's once the run is over."""

import os
import signal
import threading

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from see_lightning.engine.callbacks import StopOnSignal
from see_lightning.engine.distributed import Ranks
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


def test_a_trainer_leaves_the_handlers_of_signals_as_they_are(tmp_path):
    """Lightning's own handler broadcasts between ranks, at whatever moment a signal comes."""
    found = {}

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            found.update({number: signal.getsignal(number) for number in SIGNALS})

    with StopSignal() as told:
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=1,
            default_root_dir=tmp_path, callbacks=[Look(), StopOnSignal(told, Ranks())],
        )  # fmt: skip
        before = {number: signal.getsignal(number) for number in SIGNALS}
        trainer.fit(BoringModel())
        assert found == before
        assert {number: signal.getsignal(number) for number in SIGNALS} == before


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
