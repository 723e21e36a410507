"""Callbacks: progress on the terminal, counts of steps and tokens, and the stop on a signal. None changes a result."""

import time
from datetime import timedelta
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from see_lightning.engine.distributed import Ranks
from see_lightning.engine.preemption import Preempted, StopSignal
from see_lightning.tasks.batches import Batch


class Throughput(L.Callback):
    """Counts steps and tokens of one stage, and keeps the loss of its latest step, without a method's penalty."""

    def __init__(self) -> None:
        self.steps = self.tokens = self.computed = 0
        self.loss = float("nan")
        self._started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the tokens of a step, with padding and without."""
        self.steps += 1
        self.tokens += int(batch.attention_mask_BS.sum())
        self.computed += sum(part.attention_mask_BS.numel() for part in batch.split("examples"))
        self.loss = float(outputs["loss"]) - float(trainer.callback_metrics.get("train/penalty", 0.0))
        if trainer.logger:
            pl_module.log("train/tokens_per_s", self.tokens_per_s())

    def tokens_per_s(self) -> float:
        """Tokens per second since training began, padding excluded."""
        return self.tokens / max(1e-9, time.monotonic() - self._started)


class StopOnSignal(L.Callback):
    """Ends training after a step, and prediction after a batch, once a rank received a stop signal.

    Args:
        stop_signal: of this process.
        ranks: of the run.

    Raises:
        Preempted: on every rank.
    """

    def __init__(self, stop_signal: StopSignal, ranks: Ranks) -> None:
        self.stop_signal, self.ranks = stop_signal, ranks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep Lightning from installing its signal handler.

        It broadcasts between ranks at whatever moment the signal comes, while another rank waits in another exchange.
        """
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Stop all ranks after the same step."""
        if self.ranks.any_rank(self.stop_signal.signal is not None):
            raise Preempted

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop after this batch, without a synchronisation of ranks: the other ranks see a flag after their next batch."""
        if self.stop_signal.signal is not None:
            self.ranks.tell_to_stop()
        if self.stop_signal.signal is not None or self.ranks.told_to_stop():
            raise Preempted


class StageProgress(L.Callback):
    """Shows the progress of a stage: a bar in a terminal, else a line from time to time.

    Args:
        console: of the run.
        title: of the stage, such as ``task 2/5 qg``.
        throughput: loss and rate that are shown.
    """

    def __init__(self, console: Console, title: str, throughput: Throughput) -> None:
        self.console, self.title, self.throughput = console, title, throughput
        self.drawn = console.is_terminal and not console.is_dumb_terminal
        whole = Column(no_wrap=True)
        self.progress = Progress(
            # A long title is cut, and the numbers never are.
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            BarColumn(bar_width=max(4, min(40, console.width - 90))),
            MofNCompleteColumn(table_column=whole),
            TextColumn("{task.fields[shown]}", table_column=whole),
            TimeRemainingColumn(compact=True, table_column=whole),
            console=console,
            disable=not self.drawn,
            transient=True,
            expand=console.width < 140,
        )

    def _start(self, verb: str, total: float, unit: str) -> None:
        self.verb, self.total, self.unit, self.done = verb, int(total), unit, 0
        self.bar = self.progress.add_task(f"{verb} · {self.title}", total=total, shown="")
        self.progress.start()
        self._started = self._printed = time.monotonic()
        self._tenth = 0

    def _advance(self, *shown: str) -> None:
        """Count a step or batch."""
        self.done += 1
        self.progress.update(self.bar, advance=1, shown=" ".join(shown))
        now, tenth = time.monotonic(), 10 * self.done // max(1, self.total)
        if not self.drawn and self.done < self.total and is_due(now - self._printed, tenth - self._tenth):
            self._printed, self._tenth = now, tenth
            left = (now - self._started) / self.done * (self.total - self.done)
            parts = [f"{self.done:,}/{self.total:,} {self.unit} ({self.done / self.total:.0%})", *shown]
            self.console.print(f"{self.title} · {self.verb}: {', '.join(parts)}, {timedelta(seconds=round(left))} left")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show a bar of steps."""
        self._start("training", float(trainer.estimated_stepping_batches), "steps")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Show the step, its loss and the rate."""
        self._advance(f"loss {self.throughput.loss:.3f}", f"{self.throughput.tokens_per_s():,.0f} tokens/s")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self.progress.stop()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show a bar of batches."""
        self._start("answering", float(sum(trainer.num_predict_batches)), "batches")

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the batch."""
        self._advance()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self.progress.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self.progress.stop()


def is_due(seconds: float, tenths: int) -> bool:
    """Whether a line of progress is due without a bar: every minute, or at a tenth of the stage after at least 5 s.

    Args:
        seconds: since the last line, or since the stage began.
        tenths: tenths of the stage that were finished since then.

    >>> is_due(1, 3), is_due(5, 0), is_due(5, 1), is_due(60, 0)
    (False, False, True, True)
    """
    return seconds >= 60 or (seconds >= 5 and tenths > 0)
