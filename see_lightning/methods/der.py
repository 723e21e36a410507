"""Dark Experience Replay: past rows are replayed with the logits that the model gave on them, and not with answers alone.

Buzzega et al., *Dark Experience for General Continual Learning: a Strong, Simple Baseline*, NeurIPS 2020, arXiv 2004.07211.
PAPERS.md lists what differs for language models, of whose logits only the largest are kept.

Letters: L answer tokens, V vocabulary, K kept logits of a token, B rows, S tokens.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from see_lightning.config.checks import check_ratio, one_of, within
from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.batches import IGNORED, Batch
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

DISTANCES = ("mse", "kl")


class Kept(NamedTuple):
    """Logits of answer tokens.

    Args:
        logits_LK: the largest of each token, in fp32.
        tokens_LK: the tokens that have them.
        rest_L: log of the summed exponentials of all other logits, in fp32.
    """

    logits_LK: Tensor
    tokens_LK: Tensor
    rest_L: Tensor


def largest(logits_LV: Tensor, number: int) -> Kept:
    """The largest logits of each token; at most all but one, so that there is a rest.

    >>> kept = largest(torch.tensor([[0.0, 3.0, 1.0, 0.0]]), 2)
    >>> kept.logits_LK.tolist(), kept.tokens_LK.tolist(), kept.rest_L.exp().round().tolist()
    ([[3.0, 1.0]], [[1, 2]], [2.0])
    """
    logits_LV = logits_LV.float()
    logits_LK, tokens_LK = logits_LV.topk(min(number, logits_LV.shape[1] - 1))
    return Kept(logits_LK, tokens_LK, logits_LV.scatter(1, tokens_LK, -torch.inf).logsumexp(1))


def distance(logits_LV: Tensor, kept: Kept, kind: str) -> Tensor:
    r"""How far logits lie from kept ones, (L,).

    Both are of $K + 1$ classes: the kept tokens, and all others as one, whose logit is the log of their summed exponentials.
    ``mse``: $\frac1{K+1} \sum_k (z_k - z'_k)^2$ of the logits. ``kl``: $\sum_k p'_k \log \frac{p'_k}{p_k}$ of the
    probabilities, in nats. Without the others any of them could become the likeliest at no cost.

    Args:
        logits_LV: the present ones, $z$.
        kept: the earlier ones, of the same answer tokens.
        kind: ``mse`` or ``kl``.

    >>> kept = largest(torch.tensor([[0.0, 3.0, 1.0, 0.0]]), 2)
    >>> distance(torch.tensor([[9.0, 1.0, 1.0, 9.0]]), kept, "mse")
    tensor([28.3333])
    """
    now_LK = logits_LV.gather(1, kept.tokens_LK).float()
    now_L1 = logits_LV.float().scatter(1, kept.tokens_LK, -torch.inf).logsumexp(1, keepdim=True)
    now_LC = torch.cat([now_LK, now_L1], dim=1)  # C = K + 1 classes
    then_LC = torch.cat([kept.logits_LK, kept.rest_L[:, None]], dim=1)
    if kind == "mse":
        return (now_LC - then_LC).square().mean(1)
    now_LC, then_LC = now_LC.log_softmax(1), then_LC.log_softmax(1)
    return (then_LC.exp() * (then_LC - now_LC)).sum(1)


def answer_mean(values_L: Tensor, labels_BS: Tensor, mean: str) -> Tensor:
    """The mean of one value for each answer token over ``tokens``, or over ``examples`` of their own means.

    >>> labels = torch.tensor([[IGNORED, 5], [5, 5]])
    >>> [answer_mean(torch.tensor([1.0, 4.0, 6.0]), labels, mean).item() for mean in ("tokens", "examples")]
    [3.6666667461395264, 3.0]
    """
    if mean == "tokens":
        return values_L.mean()
    rows = torch.split(values_L, (labels_BS != IGNORED).sum(1).tolist())
    return torch.stack([row.mean() for row in rows]).mean()


class Der(OneAdapterMethod):
    r"""Adds to a step $\alpha$ times the distance from kept logits and $\beta$ times the loss, of drawn past rows.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's rows in the memory, 0..1; they are drawn once.
        logit_weight: $\alpha$.
        answer_weight: $\beta$; 0 is DER, above 0 DER++.
        logits_per_token: largest logits kept of each answer token, at least 1.
        distance: ``mse`` or ``kl``, see the function.
        replay_batch: rows drawn for each of the two terms of a step, of all ranks together.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        ratio: float,
        logit_weight: float,
        answer_weight: float,
        logits_per_token: int,
        distance: str,
        replay_batch: int,
    ) -> None:
        super().__init__(setup)
        check_ratio("method.ratio", ratio)
        within("method.logit_weight", logit_weight, 0)
        within("method.answer_weight", answer_weight, 0)
        within("method.logits_per_token", logits_per_token, 1)
        one_of("method.distance", distance, DISTANCES)
        within("method.replay_batch", replay_batch, 1)
        self.ratio, self.logit_weight, self.answer_weight = ratio, logit_weight, answer_weight
        self.logits_per_token, self.distance, self.replay_batch = logits_per_token, distance, replay_batch
        self.ranks = setup.ranks
        #: By past task, the kept logits of its rows in the memory, one row after the other.
        self.kept: dict[str, Kept] = {}
        self.past: list[Example] = []

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Takes the memory of past tasks and its logits, and seeds the draws."""
        super().begin_task(task, memory)
        self.past = memory.rehearse(task, ratio=self.ratio, resample="once")
        if self.past:
            kept = [self.kept[past.name] for past in memory.past]
            self.kept_of_all = Kept(*(torch.cat(parts) for parts in zip(*kept, strict=True)))
        self.starts = self._starts(self.past)
        self.draw = random.Random(seed(self.run_seed, task.name, "replay batches"))

    def edit_gradients(self) -> None:
        """Adds the gradients of both terms, each of rows drawn by itself; nothing in the first task."""
        if self.logit_weight:
            self._add(self._drawn(), self.logit_weight, self.mean_distance)
        if self.answer_weight:
            self._add(self._drawn(), self.answer_weight, self.loss)

    def _drawn(self) -> list[Example]:
        """Rows of the memory, with their places in it as ids."""
        places = self.draw.sample(range(len(self.past)), min(self.replay_batch, len(self.past)))
        return [replace(self.past[place], id=str(place)) for place in places]

    def _add(self, rows: Sequence[Example], factor: float, loss: Callable[[Batch], Tensor]) -> None:
        for batch in self.batches(rows, self.replay_batch):
            for weight, gradient in zip(self.trained_weights(), self.gradients(batch, loss), strict=True):
                weight.grad = factor * gradient + (0 if weight.grad is None else weight.grad)

    def mean_distance(self, part: Batch) -> Tensor:
        """Mean distance of the logits of a micro-batch from the kept ones; its ids are places in the memory."""
        logits_LV: Tensor = self.pool(part.input_ids_BS, part.attention_mask_BS, part.labels_BS)
        if not part.ids:  # a rank without rows, which has the weight 0
            return 0 * logits_LV.sum()
        places_L = self._places(part, self.starts)
        kept = Kept(*(tensor[places_L] for tensor in self.kept_of_all))
        mean = answer_mean(distance(logits_LV, kept, self.distance), part.labels_BS, self.optim.loss_reduction)
        if not torch.isfinite(mean):
            raise FloatingPointError(f"the distance from kept logits is {mean.item()}.")
        return mean

    def _starts(self, rows: Sequence[Example]) -> list[int]:
        """The place of each row's first answer token among those of all rows; behind the last row, their number."""
        return [0, *accumulate(len(self.template.target_ids(row.target)) for row in rows)]

    @staticmethod
    def _places(part: Batch, starts: Sequence[int]) -> Tensor:
        """The places of a micro-batch's answer tokens, (L,)."""
        rows = [torch.arange(starts[int(id_)], starts[int(id_) + 1]) for id_ in part.ids]
        return torch.cat(rows).to(part.labels_BS.device)

    def end_task(self, task: Task, memory: Memory) -> None:
        """Keeps the logits of the task's rows that are in the memory from now on, at the weights with which it ends."""
        own = Memory(self.run_seed)
        own.add(task)
        rows = own.rehearse(task, ratio=self.ratio, resample="once")
        if rows:
            self.kept[task.name] = self._kept_of(rows)

    def _kept_of(self, rows: Sequence[Example]) -> Kept:
        starts = self._starts(rows)
        numbered = [replace(row, id=str(place)) for place, row in enumerate(rows)]
        total: list[Tensor] = []
        for batch in self.batches(numbered, self.replay_batch):
            for part in batch.split(self.optim.loss_reduction):
                found = largest(self.pool.logits(part, self.ADAPTER), self.logits_per_token)
                # Each rank fills in its own rows; the sum over ranks has all. In fp32, token ids below 2**24 are exact.
                total = total or [one.new_zeros(starts[-1], *one.shape[1:], dtype=torch.float32) for one in found]
                if part.ids:
                    places_L = self._places(part, starts)
                    for whole, one in zip(total, found, strict=True):
                        whole[places_L] = one.float()
        logits_LK, tokens_LK, rest_L = (self.average(whole) * self.ranks for whole in total)
        return Kept(logits_LK, tokens_LK.round().long(), rest_L)

    def state(self) -> dict[str, Tensor]:
        """The kept logits of all past tasks; token ids as int32."""
        return {
            f"{field.rpartition('_')[0]} {task}": tensor.int() if field == "tokens_LK" else tensor
            for task, kept in self.kept.items()
            for field, tensor in kept._asdict().items()
        }

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The logits kept after a task, those of earlier tasks included."""
        tasks = [name.removeprefix("rest ") for name in tensors if name.startswith("rest ")]
        self.kept = {
            one: Kept(tensors[f"logits {one}"], tensors[f"tokens {one}"].long(), tensors[f"rest {one}"])
            for one in tasks
        }
