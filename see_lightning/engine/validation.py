"""The validation loss of a task after each epoch, and the end of its training once the loss falls no more."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import lightning as L
import torch

from see_lightning.data.example import Example
from see_lightning.engine.context import RunContext
from see_lightning.engine.run_data import RunData
from see_lightning.methods.loss import label_losses
from see_lightning.methods.method import Method
from see_lightning.tasks.batches import Collator, cut, encode
from see_lightning.tasks.datamodule import pad_id
from see_lightning.tasks.task import Task


class Validation(L.Callback):
    """Computes the loss on a task's validation rows after each epoch; it changes nothing that training depends on.

    With a patience, training ends when the loss has not fallen for so many epochs, and ``keep_best`` puts the method back
    into the state after the epoch with the lowest loss; of equal ones the earliest.

    Args:
        context: of the run.
        examples: the rows, with their targets as the method learns them; the same on every rank, at least one.
    """

    def __init__(self, context: RunContext, examples: Sequence[Example]) -> None:
        self.method, self.ranks, self.patience = context.method, context.ranks, context.settings.early_stopping
        #: By epoch, the mean over all target tokens, in nats.
        self.losses: list[float] = []
        self.stopped = False
        self.seconds, self.tokens = 0.0, 0  # tokens of all ranks together, padding excluded
        settings, rows = context.settings, encode(examples, self.method.template)
        self._mean = settings.loss_reduction  # of a micro-batch; the loss itself is always a mean over tokens
        collator = Collator(
            pad_id(self.method.template),
            settings.loss_reduction,
            settings.max_tokens_per_microbatch,
            self.ranks.rank,
            self.ranks.size,
        )
        longest_first = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        self._batches = [collator.batch(rows, step) for step in cut(longest_first, settings.global_batch_size)]
        self._prompts = [row.prompt for row in rows]
        self._put_back: Callable[[], None] | None = None

    @classmethod
    def of(cls, context: RunContext, task: Task) -> Self | None:
        """The validation of a task; None if it has no validation rows."""
        if not task.valid:
            return None
        return cls(context, context.ranks.share(lambda: context.method.validation_examples(task)))

    @property
    def best_epoch(self) -> int:
        """The first epoch with the lowest loss, from 1."""
        return self.losses.index(min(self.losses)) + 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute the loss of the epoch; with a patience, note the state if it is the lowest, or end the training.

        Raises:
            FloatingPointError: the loss is no finite number.
        """
        started = time.monotonic()
        with _between_steps(self.method), trainer.precision_plugin.val_step_context():
            self.losses.append(self._loss())
        if self.patience and self.best_epoch == len(self.losses):
            self._put_back = self.method.snapshot()
        if self.patience and len(self.losses) - self.best_epoch >= self.patience:
            self.stopped = trainer.should_stop = True
        if trainer.logger:
            trainer.logger.log_metrics({"val/loss": self.losses[-1]}, step=trainer.global_step - 1)
        self.seconds += time.monotonic() - started

    def _loss(self) -> float:
        """The mean loss over the target tokens of all ranks, the same on every rank."""
        self.method.pool.keep_prompts([self._prompts])  # of activated experts, once for all epochs
        total, labels, tokens = 0.0, 0, 0
        for batch in self._batches:
            for part in batch.to(self.method.pool.device()).split(self._mean):
                loss_L = label_losses(self.method.validation_logits(part), part.labels_BS)
                if part.ids:  # else a rank without a row, which takes part in the forward pass alone
                    total += loss_L.sum().item()
                    labels += len(loss_L)
                    tokens += int(part.attention_mask_BS.sum())
        shares = self.ranks.gather((total, labels, tokens))  # summed in the same order on every rank
        loss = sum(share[0] for share in shares) / sum(share[1] for share in shares)
        self.tokens += sum(share[2] for share in shares)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the validation loss is {loss}.")
        return loss

    def keep_best(self) -> None:
        """Put the method back into its state after the best epoch; without a patience the last epoch is kept."""
        if self._put_back and self.best_epoch < len(self.losses):
            self._put_back()
        self._put_back = None

    def summary(self) -> str:
        """The losses in words, for the console; ends with a comma."""
        best = f"validation loss {min(self.losses):.3f} in epoch {self.best_epoch}"
        return f"{best}, which is kept after {len(self.losses)}, " if self.patience else f"{best}, "

    def facts(self) -> dict[str, Any]:
        """The facts that the ledger keeps; epochs count from 1."""
        best, epochs = self.best_epoch, len(self.losses)
        return {
            "loss": [round(loss, 6) for loss in self.losses],
            "best_epoch": best,
            "kept_epoch": best if self.patience else epochs,
            "epochs": epochs,
            "rows": len(self._prompts),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }


@contextmanager
def _between_steps(method: Method) -> Iterator[None]:
    """A context without gradients and dropout, after which modes and random numbers of training go on as before."""
    modes = [(module, module.training) for module in method.modules()]
    device = method.pool.device()
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        method.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def validation_of(run: RunData) -> dict[str, Any]:
    """The section ``validation`` of the results, by stage, null where nothing was trained; empty without validation."""
    noted = [stage.get("validation") for stage in run.trained]
    names = ("loss", "best_epoch", "kept_epoch", "epochs", "rows")
    if not any(noted):
        return {}
    return {"validation": {name: [stage and stage[name] for stage in noted] for name in names}}


def validation_costs(run: RunData, unit: str) -> list[Any] | None:
    """By stage, the ``seconds`` or ``tokens`` of validation; None without validation."""
    noted = [stage.get("validation") for stage in run.trained]
    return [stage and stage[unit] for stage in noted] if any(noted) else None
