"""How a method trains a task: one step, its loss and optimizer, and batches for passes outside the loss.

Lightning calls the step and the hooks. Which of them a method overrides is told in ``docs/add_a_method.md``.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from see_lightning.data.example import Example
from see_lightning.methods.loss import answer_loss
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import Batch, Collator, cut, encode
from see_lightning.tasks.datamodule import pad_id
from see_lightning.tasks.task import Task


class Training(L.LightningModule):
    """Answer-only fine-tuning of the weights that require a gradient.

    Args:
        setup: model, template, optimizer settings and seed of the run.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.pool, self.template, self.optim, self.run_seed = setup.pool, setup.template, setup.optim, setup.seed
        #: Task -> rows that ``batches`` has yielded since the current task began, of all ranks together.
        self.drawn: Counter[str] = Counter()
        #: The different rows among them, by task and id.
        self.drawn_rows: dict[tuple[str, str], Example] = {}
        self._ranks, optim = setup.ranks, setup.optim
        self._collator = Collator(
            pad_id(setup.template), optim.loss_reduction, optim.max_tokens_per_microbatch, setup.rank, setup.ranks
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a whole step; with several micro-batches, the gradients of all but the last are accumulated here."""
        *earlier, last = batch.split(self.optim.loss_reduction)
        done: Tensor | float = 0.0
        for part in earlier:
            loss = part.weight * self.loss(part)
            # Ranks reduce gradients once, in the backward pass of the returned loss.
            self.trainer.strategy.backward(loss, None)
            done += loss.detach()
        loss = last.weight * self.loss(last) + done
        self.log("train/loss", loss.detach() / (batch.weight or 1), batch_size=max(1, len(batch)))
        penalty = self.penalty()
        if penalty is None:
            return loss
        if not torch.isfinite(penalty):
            raise FloatingPointError(f"the penalty is {penalty.item()}.")
        self.log("train/penalty", penalty.detach(), batch_size=1)
        return loss + penalty  # ranks take the mean of their gradients, so it counts once however many there are

    def penalty(self) -> Tensor | None:
        """A term that is added to the loss once a step, whatever the number of micro-batches; None adds none.

        It must be the same on all ranks, so it depends on weights alone and not on a batch.
        """
        return None

    def edit_gradients(self) -> None:
        """Changes the gradients of a step, after the ranks have averaged them and before they are clipped.

        It must do the same on all ranks. A parameter whose gradient is set to None is not updated in this step.
        """

    def after_step(self) -> None:
        """Changes weights after the optimizer's step. AdamW's weight decay also changes weights without a gradient."""

    def loss(self, part: Batch) -> Tensor:
        """Mean loss over answer tokens; the vocabulary head is computed at these positions only."""
        return self.finite(answer_loss(self.logits(part), part.labels_BS, self.optim.loss_reduction), part)

    def finite(self, loss: Tensor, part: Batch) -> Tensor:
        """The same loss.

        Raises:
            FloatingPointError: it is no finite number; the message names the batch's examples.
        """
        if not torch.isfinite(loss):
            named = ", ".join(part.ids[:8]) + (f" and {len(part.ids) - 8} more" if len(part.ids) > 8 else "")
            raise FloatingPointError(f"the loss is {loss.item()} on the examples {named}.")
        return loss

    def logits(self, part: Batch) -> Tensor:
        """Logits of the positions that predict a label, (L, V), row by row, under the trained adapter, with gradients."""
        logits_LV: Tensor = self.pool(part.input_ids_BS, part.attention_mask_BS, part.labels_BS)
        return logits_LV

    # ------------------------------------------------------------------------------------------------------ validation

    def validation_examples(self, task: Task) -> list[Example]:
        """The validation rows of a task, with the targets that are learned. Called as ``training_examples``."""
        return list(task.valid)

    def validation_logits(self, part: Batch) -> Tensor:
        """As ``logits``, under the weights that answer. Called after an epoch, in eval mode and without gradients."""
        return self.logits(part)

    def snapshot(self) -> Callable[[], None]:
        """A function that puts the method back into its present state of training.

        By default the trained weights, from copies on the CPU. A method whose steps change further tensors, of which
        ``end_task``, an answer or a later task reads some, such as a slow adapter or statistics, adds these.
        """
        return copies(self.trained_weights())

    # --------------------------------------------------------------------------------------------- passes outside the loss

    def batches(self, examples: Sequence[Example], size: int) -> Iterator[Batch]:
        """Batches for the method's own passes; rows of past tasks are counted as rehearsed.

        All ranks request the same batches, and each gets its share of the rows: call it in hooks that run on all ranks, not
        in ``training_examples``. A rank without a row gets the longest one of all, with the weight 0 and without an id; so in
        batches of one row, every rank reads every row.

        Args:
            examples: in the order in which they fill the batches.
            size: examples of a batch, of all ranks together; the last batch may have fewer.

        Yields:
            Tokenised and padded rows on the model's device, with weights and parts as in ``training_step``.
        """
        for step in cut(examples, size):
            rows = encode(step, self.template)
            self.drawn.update(example.task for example in step)
            self.drawn_rows |= {(example.task, example.id): example for example in step}
            longest_first = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
            yield self._collator.batch(rows, longest_first).to(self.pool.device())

    def gradients(self, batch: Batch, loss: Callable[[Batch], Tensor] | None = None) -> list[Tensor]:
        """Gradients of the mean loss of a batch from ``batches``, averaged over the ranks; ``.grad`` stays as it is.

        Args:
            batch: this rank's share.
            loss: of a micro-batch, a mean over its answer tokens or rows as ``optim.loss_reduction`` says; None for the
                method's own. A micro-batch without ids has the weight 0.

        Returns:
            One tensor for each trained weight, in the order of ``trained_weights``.
        """
        weights = self.trained_weights()
        total = [torch.zeros_like(weight) for weight in weights]
        for part in batch.split(self.optim.loss_reduction):
            with torch.enable_grad():
                mean = (loss or self.loss)(part)
                found = torch.autograd.grad(part.weight * mean, weights, materialize_grads=True)
            torch._foreach_add_(total, found)
        return [self.average(one) for one in total]

    def average(self, tensor: Tensor) -> Tensor:
        """Mean of a tensor over the ranks; all ranks call it."""
        if self._ranks == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / self._ranks

    def trained_weights(self) -> list[nn.Parameter]:
        """The weights that the current task trains."""
        return [weight for weight in self.parameters() if weight.requires_grad]

    def make_optimizer(self, weights: list[nn.Parameter]) -> Optimizer:
        """A new optimizer of a task's weights; its learning rate is the peak of the schedule."""
        return AdamW(weights, lr=self.optim.lr, weight_decay=self.optim.weight_decay)

    # -------------------------------------------------------------------------------------------------- hooks of Lightning

    def configure_optimizers(self) -> dict[str, Any]:
        """A new AdamW for every task: moments of an earlier one would change frozen weights."""
        weights = self.trained_weights()
        if not weights:
            raise ValueError(
                "the task trains no weight. begin_task must call pool.train_only(NAME), or the base class's begin_task,"
                " after the last adapter is added: adding one freezes all others."
            )
        optimizer = self.make_optimizer(weights)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(
            optimizer, lambda step: learning_rate_share(step, steps, self.optim.schedule, self.optim.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Prefill the prompts of activated experts once for all epochs, and each task's common prefix once."""
        rows: dict[str, list[list[int]]] = {}
        for row in self.trainer.datamodule.rows:
            rows.setdefault(row.example.task, []).append(row.prompt)
        self.pool.keep_prompts(list(rows.values()))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set all gradients to None."""
        self.zero_grad()

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Do nothing: Lightning calls this after ``training_step``, which has accumulated gradients."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Call ``edit_gradients``: after the backward pass, in which ranks average gradients, and before clipping."""
        self.edit_gradients()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Call ``after_step``."""
        self.after_step()

    def on_train_end(self) -> None:
        """Drop the cached prompts of this task."""
        self.pool.prompt_cache.clear()

    def cpu(self) -> Self:
        """Stay on the device: Lightning would move the model to the CPU after every Trainer, and back for the next one."""
        return self


def copies(weights: Sequence[Tensor]) -> Callable[[], None]:
    """A function that sets tensors in place to their present values, which are copied to the CPU.

    >>> weight = torch.ones(2)
    >>> put_back = copies([weight])
    >>> _ = weight.mul_(5)
    >>> put_back()
    >>> weight
    tensor([1., 1.])
    """
    kept = [weight.detach().to("cpu", copy=True) for weight in weights]

    @torch.no_grad()
    def put_back() -> None:
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)

    return put_back


def learning_rate_share(step: int, steps: int, schedule: str, warmup: float) -> float:
    """The learning rate at a step as a share of its peak, 0..1.

    Args:
        step: number of the step, from 0.
        steps: how many there are.
        schedule: ``cosine`` (to zero), ``linear`` (to zero), ``constant``.
        warmup: share of the steps in which the rate rises from 0 to its peak.

    >>> [round(learning_rate_share(step, 4, "cosine", 0.0), 2) for step in range(5)]
    [1.0, 0.85, 0.5, 0.15, 0.0]
    """
    rising = warmup * steps
    if step < rising:
        return step / rising
    done = (step - rising) / max(1.0, steps - rising)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return max(0.0, 1 - done) if schedule == "linear" else 1.0
