"""What is seen of a stage while it runs: a bar in a terminal, lines now and then in a pipe."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
from types import SimpleNamespace

import pytest
from rich.console import Console

from see_lightning.engine import callbacks
from see_lightning.engine.callbacks import StageProgress, Throughput

LONG = "task 12/15 task1590_diplomacy_text_generation"


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now.seconds)
    return now


def train(progress, clock, *, steps, seconds):
    """A stage of so many steps, each of which takes so long."""
    progress.throughput.on_train_start(None, None)
    progress.on_train_start(SimpleNamespace(estimated_stepping_batches=steps), None)
    for _ in range(steps):
        clock.seconds += seconds
        progress.throughput.tokens += 1000
        progress.throughput.loss = 1.25
        progress.on_train_batch_end(None, None, None, None, 0)
    progress.on_train_end(None, None)


def lines(clock, **how):
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    train(StageProgress(console, "task 1/5 qa", Throughput()), clock, **how)
    return console.file.getvalue().splitlines()


def test_a_pipe_gets_a_line_at_every_tenth(clock):
    told = lines(clock, steps=200, seconds=2)
    assert len(told) == 9, "what is done has a line of the run's own"
    assert told[0] == "task 1/5 qa · training: 20/200 steps (10%), loss 1.250, 500 tokens/s, 0:06:00 left"
    assert [re.search(r"\((\d+)%\)", line)[1] for line in told] == [str(10 * tenth) for tenth in range(1, 10)]


def test_a_pipe_gets_a_line_every_minute_of_a_stage_that_takes_hours(clock):
    told = lines(clock, steps=100, seconds=90)
    assert len(told) == 99
    assert told[0].endswith("1/100 steps (1%), loss 1.250, 11 tokens/s, 2:28:30 left")


def test_a_stage_of_moments_is_not_told_of(clock):
    assert lines(clock, steps=100, seconds=0.04) == []


def test_queries_are_counted_in_batches(clock):
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    progress = StageProgress(console, "task 1/5 qa · qg", Throughput())
    progress.on_predict_start(SimpleNamespace(num_predict_batches=[3, 1]), None)
    clock.seconds += 8
    progress.on_predict_batch_end(None, None, None, None, 0)
    assert console.file.getvalue() == "task 1/5 qa · qg · answering: 1/4 batches (25%), 0:00:24 left\n"


def test_another_rank_says_nothing(clock):
    console = Console(file=io.StringIO(), quiet=True)
    train(StageProgress(console, "task 1/5 qa", Throughput()), clock, steps=100, seconds=90)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("width", [80, 100, 140])
def test_in_a_terminal_no_number_is_cut(width, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = pty.openpty()
    seen = ""
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        console = Console(
            file=terminal, width=None if "COLUMNS" in os.environ else os.get_terminal_size(theirs).columns
        )
        assert console.is_terminal
        progress = StageProgress(console, LONG, Throughput())
        progress.on_train_start(SimpleNamespace(estimated_stepping_batches=12000), None)
        progress.throughput.loss, progress.throughput.tokens = 12.345, 10**9
        progress.throughput.tokens_per_s = lambda: 123456.0
        for _ in range(20):
            progress.on_train_batch_end(None, None, None, None, 0)
        progress.progress.refresh()
        terminal.flush()
        drawn: list[str] = []
        while not any("20/12000" in line and "tokens/s" in line for line in drawn[:-1]):  # a terminal gives parts, late
            seen += os.read(ours, 1 << 16).decode()
            drawn = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen))
        progress.on_train_end(None, None)
    os.close(ours)
    assert all(len(line) <= width for line in drawn)
    *_, bar = [line.rstrip() for line in drawn[:-1] if "20/12000" in line]
    assert bar.startswith("training · task 12/15")
    assert re.search(r" 20/12000 loss 12\.345 123,456 tokens/s (\d|--)[\d:-]*$", bar), bar
