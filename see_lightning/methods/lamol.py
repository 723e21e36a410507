"""LAMOL: one model learns to answer rows and to write them; what it writes of past tasks is trained on with the new one.

Sun, Ho, Lee, *LAMOL: LAnguage MOdeling for Lifelong Language Learning*, ICLR 2020, arXiv 1909.03329. PAPERS.md lists what
differs.

Letters: B rows, S tokens, L labels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from random import Random

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.methods.loss import label_losses, label_mean
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.sampling import sampled_answers
from see_lightning.methods.setup import Setup, Traits
from see_lightning.seeds import seed
from see_lightning.tasks.batches import IGNORED, Batch, cut
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

REQUEST = "Write a query of the task {} and its answer."  # in place of the authors' generation token of a task
ANSWER = "\n<<answer>> "  # between a written query and its answer, in place of their answer token
WRITTEN = " written"  # ends the id of a row that the model learns to write
ROWS = 16  # texts that are generated together

Key = tuple[str, str]  # task and id of a row


def pseudo_rows(size: int, past: int, gamma: float) -> int:
    r"""Rows to write of each past task: $\lceil \gamma n \rceil$ shared evenly, at least one.

    Args:
        size: $n$, rows of the new task.
        past: number of past tasks.
        gamma: $\gamma$; 0 gives none.

    >>> pseudo_rows(100, 2, 0.2), pseudo_rows(100, 3, 0.2), pseudo_rows(4, 3, 0.2), pseudo_rows(100, 0, 0.2)
    (10, 6, 1, 0)
    """
    return max(1, math.ceil(gamma * size) // past) if past and gamma else 0


def read_row(text: str) -> tuple[str, str] | None:
    r"""Query and answer in a written text; None unless it has exactly one mark between two that are not blank.

    >>> read_row("2 + 2?\n<<answer>> 4"), read_row("2 + 2?"), read_row("\n<<answer>> 4")
    (('2 + 2?', '4'), None, None)
    """
    parts = [part.strip() for part in text.split(ANSWER.strip())]
    return (parts[0], parts[1]) if len(parts) == 2 and all(parts) else None


def label_weights(lengths: Mapping[Key, int], weight: float, mean: str) -> dict[Key, float]:
    r"""The weight of each label of a row; an epoch's loss is then that of answering plus ``weight`` times that of writing.

    Of a row with $a$ tokens in its answer and $l$ in its text, a label of the text has the weight $\lambda a / l$, so that
    a long query does not outweigh a short answer. All weights have one factor, the number of all labels over that of answers.
    With ``tokens`` a step's weighted sum is to be divided by the mean number of labels of a step, not by its own: steps of
    texts have many times the labels of steps of answers.

    Args:
        lengths: labels of each row; that of a written row follows from its text.
        weight: $\lambda$.
        mean: the loss is a mean over ``tokens`` or ``examples``.

    >>> lengths = {("qa", "1"): 2, ("qa", "2"): 2, ("qa", "1 written"): 8}
    >>> label_weights(lengths, 0.5, "tokens")
    {('qa', '1'): 3.0, ('qa', '2'): 3.0, ('qa', '1 written'): 0.375}
    >>> label_weights(lengths, 0.5, "examples")
    {('qa', '1'): 1.5, ('qa', '2'): 1.5, ('qa', '1 written'): 0.75}
    """
    sizes = lengths if mean == "tokens" else dict.fromkeys(lengths, 1)
    answered = {key: size for key, size in sizes.items() if not key[1].endswith(WRITTEN)}
    scale = sum(sizes.values()) / sum(answered.values())
    return {
        key: scale * (1.0 if key in answered else weight * sizes[key[0], key[1].removesuffix(WRITTEN)] / size)
        for key, size in sizes.items()
    }


class Lamol(OneAdapterMethod):
    """One adapter that answers queries and, on request, writes a query of a task with its answer.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        gamma: rows that are written of all past tasks together, as a share of the new task's rows, at least 0.
        writing: weight of the loss of writing against that of answering, at least 0.
        top_k: likeliest tokens among which the next one of a written text is drawn, 0 for all.
        max_new_tokens: most tokens of a written text; longer rows are not learned to be written.
    """

    # The model writes before a task, on the first rank alone.
    traits = Traits(shardable=False, one_lora=True, takes_conversations=False)

    def __init__(self, setup: Setup, *, gamma: float, writing: float, top_k: int, max_new_tokens: int) -> None:
        super().__init__(setup)
        within("method.gamma", gamma, 0)
        within("method.writing", writing, 0)
        within("method.top_k", top_k, 0)
        within("method.max_new_tokens", max_new_tokens, 1)
        self.gamma, self.writing, self.top_k, self.max_new_tokens = gamma, writing, top_k, max_new_tokens
        self.ranks = setup.ranks
        self.weights: dict[Key, float] = {}
        self.step_labels = 1.0  # the mean over the steps of an epoch
        self.asked = self.kept = 0

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """The new rows and those that the model writes of past tasks, and all of them as texts to write."""
        number = pseudo_rows(len(task.train), len(memory.past), self.gamma)
        written = [row for past in memory.past for row in self._write(past.name, number, task.name)]
        self.asked, self.kept = number * len(memory.past), len(written)
        rows = [*task.train, *written]
        return [*rows, *self._to_write(rows)] if self.gamma and self.writing else rows

    def _to_write(self, rows: Sequence[Example]) -> Iterator[Example]:
        """The rows as answers to a request; those that are too long are left out."""
        for row in rows:
            asked = Example(
                f"{row.id}{WRITTEN}", REQUEST.format(row.task), f"{row.prompt}{ANSWER}{row.target}", row.task
            )
            tokens = len(self.template.target_ids(asked.target))
            room = self.template.max_length - len(self.template.prompt_ids(asked))
            if tokens <= min(room, self.max_new_tokens):
                yield asked

    def _write(self, past: str, number: int, learner: str) -> list[Example]:
        """Rows of a past task that the model writes before a new one; texts that are no row are left out."""
        prompt, texts = self.template.prompt_ids(REQUEST.format(past)), []
        with torch.no_grad(), self.pool.evaluating():
            for places in cut(range(number), ROWS):
                draws = [Random(seed(self.run_seed, learner, f"row {place} of {past}")) for place in places]
                prompts, limits = [prompt] * len(places), [self.max_new_tokens] * len(places)
                texts += sampled_answers(
                    self.pool, self.ADAPTER, prompts, limits, draws, self.eos_ids(), top_k=self.top_k
                )
        found = [(place, self._row(ids)) for place, ids in enumerate(texts)]
        return [Example(f"{past}-pseudo-{place}", *row, past) for place, row in found if row]

    def _row(self, ids: Sequence[int]) -> tuple[str, str] | None:
        """Query and answer in a text, if it ended and the template takes them."""
        if ids[-1] not in self.eos_ids():
            return None
        row = read_row(self.template.text(list(ids[:-1])))
        try:
            fits = row and len(self.template.prompt_ids(row[0])) + len(self.template.target_ids(row[1]))
        except ConfigError:  # a query that the chat template would change
            return None
        return row if fits and fits <= self.template.max_length else None

    def on_train_start(self) -> None:
        """Weighs the rows of the task."""
        super().on_train_start()
        lengths = {(row.example.task, row.example.id): len(row.target) for row in self.trainer.datamodule.rows}
        self.weights = label_weights(lengths, self.writing, self.optim.loss_reduction)
        self.step_labels = sum(lengths.values()) / math.ceil(len(lengths) / self.optim.global_batch_size)

    def loss(self, part: Batch) -> Tensor:
        """Cross entropy of answering, plus ``writing`` times that of writing."""
        if not part.ids:  # a rank without a row, whose loss has the weight 0
            return super().loss(part)
        logits_LV = self.pool(part.input_ids_BS, part.attention_mask_BS, part.labels_BS)
        chosen_BS = part.labels_BS != IGNORED
        keys = zip(part.tasks, part.ids, strict=True)
        weights_B = torch.tensor([self.weights[key] for key in keys], device=chosen_BS.device)
        weights_L = weights_B[:, None].expand_as(chosen_BS)[chosen_BS]
        weighted_L = weights_L * label_losses(logits_LV, part.labels_BS)
        if self.optim.loss_reduction == "examples":
            return self.finite(label_mean(weighted_L, part.labels_BS, "examples"), part)
        # The part's weight is its share of the step's labels, times the ranks; the mean number of labels takes their place.
        return self.finite(weighted_L.sum() * self.ranks / (part.weight * self.step_labels), part)

    def report(self) -> dict[str, int]:
        """Texts of past tasks that were asked for, and those that were rows."""
        return {"pseudo_rows_asked": self.asked, "pseudo_rows": self.kept}
