"""What a continual-learning method is: what it trains on, its loss, and how it answers.

A method never evaluates, writes results, reads the configuration or knows how many devices there are. One level of
inheritance; a variant is an argument. Adding one takes a module here and a YAML file in ``conf/method``.
"""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from see_lightning.config import OptimConfig
from see_lightning.data.example import Example
from see_lightning.experts.pool import ExpertPool
from see_lightning.methods.loss import answer_loss
from see_lightning.models.decode import Decoded, greedy
from see_lightning.seeds import seed
from see_lightning.tasks.batches import IGNORED, Batch
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task


class Answer(NamedTuple):
    """One query's answer; a tuple, since Lightning takes predictions apart and refuses frozen dataclasses.

    Args:
        id: of the query.
        text: without indicator or special tokens.
        expert: who answered: an expert's name, ``base``, or None where the method has no experts.
        verdicts: ``pos``, ``neg`` or ``neither`` of the experts asked, newest first.
        truncated: whether it was cut at the limit.
    """

    id: str
    text: str
    expert: str | None
    verdicts: tuple[str, ...]
    truncated: bool


class Method(L.LightningModule):
    """The interface, with plain answer-only fine-tuning as its default.

    Args:
        pool: the base model and its experts.
        template: how a query is put to the model.
        optim: how one task is trained.
        run_seed: the run's seed.
    """

    #: ``sequential``: a stage for each task; ``joint``: one stage on all tasks; ``frozen``: nothing is trained.
    schedule: ClassVar[Literal["sequential", "joint", "frozen"]] = "sequential"
    #: Whether a query comes with the name of its task. Only an oracle needs it.
    needs_task_id: ClassVar[bool] = False
    #: Whether answers say which expert gave them, so that routing can be judged.
    has_experts: ClassVar[bool] = False
    #: Whether past examples are trained on as queries to refuse.
    refuses: ClassVar[bool] = False

    def __init__(self, *, pool: ExpertPool, template: PromptTemplate, optim: OptimConfig, run_seed: int) -> None:
        super().__init__()
        self.pool, self.template, self.optim, self.run_seed = pool, template, optim, run_seed
        #: Exact costs of answering: prefills (rows read), decisions, generations (answers written), new_tokens.
        self.counts: Counter[str] = Counter()

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """What the stage of ``task`` trains on, with the targets as they are learned."""
        return list(task.train)

    @abstractmethod
    def begin_task(self, task: str) -> None:
        """Allocate what the task will train, freeze the rest."""

    @abstractmethod
    def answer(self, batch: Batch) -> list[Answer]:
        """Answer queries, in their order. Greedy: a sampled answer would give another result each time."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what the latest task taught, as a PEFT adapter folder."""

    @abstractmethod
    def restore(self, task: str, folder: Path) -> None:
        """Take up what ``save`` wrote after ``task``; called for every past task, oldest first."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss on the answers' tokens alone; the vocabulary head runs only where answers stand."""
        assert batch.labels_BS is not None
        # Answers stand at the right edge: no label lies left of the longest one, so no logit is needed there.
        longest = int((batch.labels_BS != IGNORED).sum(dim=1).max())
        out = self.pool.model(
            input_ids=batch.input_ids_BS,
            attention_mask=batch.attention_mask_BS,
            position_ids=(batch.attention_mask_BS.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=longest + 1,
        )
        loss = answer_loss(out.logits[:, :-1], batch.labels_BS[:, -longest:], self.optim.loss_mean)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} on the examples {', '.join(batch.ids)}.")
        self.log("train/loss", loss, batch_size=len(batch))
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Answer]:
        """Lightning's name for ``answer``."""
        return self.answer(batch)

    def configure_optimizers(self) -> dict[str, Any]:
        """A fresh AdamW for every task: moments left from an earlier one would move what should rest."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer: Optimizer = AdamW(trainable, lr=self.optim.lr, weight_decay=self.optim.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(
            optimizer, lambda step: learning_rate_share(step, steps, self.optim.schedule, self.optim.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def weights_seed(self, task: str) -> int:
        """Draws a new expert's first weights."""
        return seed(self.run_seed, task, "weights")

    def eos_ids(self) -> Collection[int]:
        """Tokens that end an answer: the tokenizer's, and what the model's own generation settings add."""
        configured = self.pool.model.generation_config.eos_token_id
        more = configured if isinstance(configured, list) else [configured]
        return {self.template.tokenizer.eos_token_id, *(token for token in more if token is not None)}

    def generate(self, model: nn.Module, batch: Batch) -> list[Decoded]:
        """Plain greedy answers of one model to a whole batch, counted."""
        decoded = greedy(
            model,
            batch.input_ids_BS,
            batch.attention_mask_BS,
            max_new_tokens=batch.max_new_tokens,
            eos_ids=self.eos_ids(),
        )
        self.counts["prefills"] += len(batch)
        self.counts["generations"] += len(batch)
        self.counts["new_tokens"] += sum(len(row.ids) for row in decoded)
        return decoded

    def to_answer(self, id_: str, decoded: Decoded, expert: str | None) -> Answer:
        """An answer that no verdict stands before."""
        return Answer(id_, self.template.text(decoded.ids).strip(), expert, (), not decoded.ended)


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


class OneAdapterMethod(Method):
    """A method that holds one adapter and trains it on, stage after stage."""

    ADAPTER: ClassVar[str] = "shared"

    def begin_task(self, task: str) -> None:
        """The first task makes the adapter; later ones go on with it."""
        if self.ADAPTER not in self.pool.names:
            self.pool.attach(self.ADAPTER, self.weights_seed(self.ADAPTER))
        self.pool.train_only(self.ADAPTER)

    def answer(self, batch: Batch) -> list[Answer]:
        """The adapted model answers everything."""
        with self.pool.active(self.ADAPTER) as model:
            decoded = self.generate(model, batch)
        return [self.to_answer(id_, row, None) for id_, row in zip(batch.ids, decoded, strict=True)]

    def save(self, folder: Path) -> None:
        """The adapter as it stands."""
        self.pool.save(self.ADAPTER, folder)

    def restore(self, task: str, folder: Path) -> None:
        """The latest call wins."""
        self.pool.load(self.ADAPTER, folder)


class ExpertMethod(Method):
    """A method that trains a new expert for every task and never touches an old one."""

    has_experts = True

    def begin_task(self, task: str) -> None:
        """A new expert on the base model, never a continued one."""
        self.pool.attach(task, self.weights_seed(task))

    def answer_by_base(self, batch: Batch) -> list[Answer]:
        """The base model, adapters off: word for word what it would say without any expert."""
        with self.pool.base() as model:
            decoded = self.generate(model, batch)
        return [self.to_answer(id_, row, "base") for id_, row in zip(batch.ids, decoded, strict=True)]

    def save(self, folder: Path) -> None:
        """The newest expert; the others have not moved."""
        self.pool.save(self.pool.names[-1], folder)

    def restore(self, task: str, folder: Path) -> None:
        """An expert comes back under its task's name."""
        self.pool.load(task, folder)


def select(batch: Batch, rows: list[int]) -> Batch:
    """Some of a batch's queries, with the padding that they all share cut off."""
    chosen = torch.tensor(rows, device=batch.input_ids_BS.device)
    mask_BS = batch.attention_mask_BS[chosen]
    start = int(mask_BS.argmax(dim=1).min())  # argmax finds the first 1, where a row begins
    return Batch(
        batch.input_ids_BS[chosen, start:],
        mask_BS[:, start:],
        None,
        [batch.ids[row] for row in rows],
        [batch.tasks[row] for row in rows] if batch.tasks else [],
        batch.max_new_tokens,
    )
