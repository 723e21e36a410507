"""What is seen of training while it runs, and what is counted of it. Removing a callback changes no number."""

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
    """Counts steps and tokens of one stage, and keeps its latest loss, without a method's penalty."""

    def __init__(self) -> None:
        self.steps = self.tokens = self.computed = 0
        self.loss = float("nan")
        self._started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Time runs from the first batch on."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Padding is computed too, but is nobody's token."""
        self.steps += 1
        self.tokens += int(batch.attention_mask_BS.sum())
        self.computed += sum(part.attention_mask_BS.numel() for part in batch.split("examples"))
        self.loss = float(outputs["loss"]) - float(trainer.callback_metrics.get("train/penalty", 0.0))
        if trainer.logger:
            pl_module.log("train/tokens_per_s", self.tokens_per_s())

    def tokens_per_s(self) -> float:
        """Real tokens a second since training began."""
        return self.tokens / max(1e-9, time.monotonic() - self._started)


class StopOnSignal(L.Callback):
    """Ends training after a step that all ranks agree on, and answering after a batch.

    Args:
        stop_signal: this process's flag.
        ranks: of the run.

    Raises:
        Preempted: what is final stays so, and the same command goes on from there.
    """

    def __init__(self, stop_signal: StopSignal, ranks: Ranks) -> None:
        self.stop_signal, self.ranks = stop_signal, ranks

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has put a handler in front by now, which would speak to other ranks in the midst of anything."""
        self.stop_signal.listen()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As above."""
        self.stop_signal.listen()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """A step is wholly done on every rank."""
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
        """No word between ranks: one that was told leaves a note, and the others see it after their next batch."""
        if self.stop_signal.signal is not None:
            self.ranks.tell_to_stop()
        if self.stop_signal.signal is not None or self.ranks.told_to_stop():
            raise Preempted


class StageProgress(L.Callback):
    """How far a stage is: a bar that fits into the terminal, or lines now and then where there is none.

    Args:
        console: where to draw.
        title: such as ``task 2/5 qg``.
        throughput: the counter shown.
    """

    def __init__(self, console: Console, title: str, throughput: Throughput) -> None:
        self.console, self.title, self.throughput = console, title, throughput
        self.drawn = console.is_terminal and not console.is_dumb_terminal
        whole = Column(no_wrap=True)
        self.progress = Progress(
            # A long title gives way, so that the numbers are never cut.
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
        self._started = self._told = time.monotonic()
        self._tenth = 0

    def _advance(self, *shown: str) -> None:
        """One step or batch further."""
        self.done += 1
        self.progress.update(self.bar, advance=1, shown=" ".join(shown))
        now, tenth = time.monotonic(), 10 * self.done // max(1, self.total)
        if not self.drawn and self.done < self.total and is_due(now - self._told, tenth - self._tenth):
            self._told, self._tenth = now, tenth
            left = (now - self._started) / self.done * (self.total - self.done)
            parts = [f"{self.done:,}/{self.total:,} {self.unit} ({self.done / self.total:.0%})", *shown]
            self.console.print(f"{self.title} · {self.verb}: {', '.join(parts)}, {timedelta(seconds=round(left))} left")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A step is a batch."""
        self._start("training", float(trainer.estimated_stepping_batches), "steps")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """One step further."""
        self._advance(f"loss {self.throughput.loss:.3f}", f"{self.throughput.tokens_per_s():,.0f} tokens/s")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The bar goes; the run prints what stays."""
        self.progress.stop()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A batch of queries at a time."""
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
        """One batch further."""
        self._advance()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The bar goes."""
        self.progress.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()


def is_due(seconds: float, tenths: int) -> bool:
    """Whether a line is due where there is no bar: at every tenth of a stage, but not every moment; or every minute.

    Args:
        seconds: since the last line, or since the stage began.
        tenths: of the stage that were done meanwhile.

    >>> is_due(1, 3), is_due(5, 0), is_due(5, 1), is_due(60, 0)
    (False, False, True, True)
    """
    return seconds >= 60 or (seconds >= 5 and tenths > 0)
