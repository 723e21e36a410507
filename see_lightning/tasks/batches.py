"""From examples to tensors: which examples a step sees, and how they are padded.

Letters: B examples, S tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from see_lightning.data.example import Example
from see_lightning.tasks.prompts import PromptTemplate

T = TypeVar("T")

IGNORED = -100  # label of a token that carries no loss, as torch's cross entropy names it
BUCKET = 16  # batches sorted together by length; more of them pad less but mix the lengths of a step less


@dataclass(slots=True)
class Batch:
    """Left-padded prompts with their answers; each row ends at the right edge.

    Args:
        input_ids_BS: tokens.
        attention_mask_BS: 1 on tokens, 0 on padding.
        labels_BS: answer tokens, ``IGNORED`` elsewhere.
        ids: the examples' ids.
        weight: of its mean loss where several ranks share a step, such that the mean over ranks is that of the whole step.
        parts: in how many it is computed, on every rank in as many.
    """

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    labels_BS: Tensor
    ids: list[str]
    weight: float = 1.0
    parts: int = 1

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""
        return replace(
            self,
            input_ids_BS=self.input_ids_BS.to(device),
            attention_mask_BS=self.attention_mask_BS.to(device),
            labels_BS=self.labels_BS.to(device),
        )

    def split(self, mean: str) -> list["Batch"]:
        """Its parts, with no more padding than each needs, and weights that add up to its own.

        A rank with fewer rows than parts computes a row again, at the weight 0.

        Args:
            mean: what the loss is a mean over, see ``loss_weight``.
        """
        if self.parts == 1:
            return [self]
        targets = (self.labels_BS != IGNORED).sum(1).tolist()
        size, parts = -(-len(targets) // self.parts), []
        for start in range(0, len(targets), size):
            rows = slice(start, start + size)
            padding = int(self.attention_mask_BS[rows].any(0).int().argmax())
            ids_BS, mask_BS, labels_BS = (
                whole_BS[rows, padding:] for whole_BS in (self.input_ids_BS, self.attention_mask_BS, self.labels_BS)
            )
            weight = self.weight * loss_weight(targets[rows], mean) / loss_weight(targets, mean)
            parts.append(Batch(ids_BS, mask_BS, labels_BS, self.ids[rows], weight))
        return parts + [replace(parts[-1], ids=[], weight=0.0)] * (self.parts - len(parts))


def loss_weight(targets: Sequence[int], mean: str) -> int:
    """How much a mean loss stands for.

    Args:
        targets: tokens of each example's target.
        mean: what it is a mean over: ``tokens`` of targets, or ``examples``.
    """
    return sum(targets) if mean == "tokens" else len(targets)


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries to be answered.

    Args:
        prompts: as ids.
        ids: the queries' ids.
        groups: numbers; queries of one group stand together, begin alike and are read together.
        limits: longest answer to generate to each.
        rows: queries read or written together.
        tasks: the queries' tasks; empty where the method is not told.
        only_decide: whether experts shall say only if they accept.
    """

    prompts: list[list[int]]
    ids: list[str]
    groups: list[int]
    limits: list[int]
    rows: int
    tasks: list[str] = field(default_factory=list)
    only_decide: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Queries":
        """Lists of ids, which become tensors as they are read; Lightning asks."""
        return self

    def chunks(self, rows: Sequence[int]) -> list[list[int]]:
        """Row numbers in the portions in which they are read: of one group each, and no more than half of ``rows``.

        So writing goes on beside reading.
        """
        return [
            portion
            for _, group in groupby(rows, key=lambda row: self.groups[row])
            for portion in cut(list(group), max(1, self.rows // 2))
        ]

    def same_group(self, row: int) -> list[list[int]]:
        """The prompts that begin like a query's."""
        return [prompt for prompt, group in zip(self.prompts, self.groups, strict=True) if group == self.groups[row]]

    def select(self, rows: Sequence[int]) -> "Queries":
        """Some of the queries."""
        return replace(
            self,
            prompts=[self.prompts[row] for row in rows],
            ids=[self.ids[row] for row in rows],
            groups=[self.groups[row] for row in rows],
            limits=[self.limits[row] for row in rows],
            tasks=[self.tasks[row] for row in rows] if self.tasks else [],
        )


def cut(whole: Sequence[T], size: int) -> list[list[T]]:
    """Parts of one size, the last one perhaps smaller.

    >>> cut("abcde", 2)
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    return [list(whole[start : start + size]) for start in range(0, len(whole), size)]


def left_pad(rows: Sequence[Sequence[int]], value: int, width: int | None = None) -> Tensor:
    """Rows of ids as one tensor (B, S), padded on the left to ``width``, by default the longest row's.

    >>> left_pad([[5], [6, 7]], 0)
    tensor([[0, 5],
            [6, 7]])
    """
    width = width or max(len(row) for row in rows)
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])


def collate(prompts: Sequence[list[int]], targets: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Padded ids, mask and labels of prompts followed by their targets."""
    rows = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    ids_BS = left_pad(rows, pad)
    # The target stands at the right edge, so padding and prompt are ignored alike.
    return ids_BS, left_pad([[1] * len(row) for row in rows], 0), left_pad(targets, IGNORED, ids_BS.shape[1])


def plan_batches(lengths: Sequence[int], batch_size: int, draw: int) -> list[list[int]]:
    """The row numbers of every step of one epoch: each row once, rows of like length together.

    Rows are shuffled, sorted by length within buckets of ``BUCKET`` batches, cut into batches, and the batches shuffled:
    little padding, in an order that is a pure function of its arguments.

    Args:
        lengths: tokens of each row.
        batch_size: rows per step; the last of an epoch may have fewer.
        draw: seed of the epoch's order.

    >>> plan_batches([3, 9, 4, 8], batch_size=2, draw=0)
    [[2, 0], [1, 3]]
    """
    order = random.Random(draw)
    rows = order.sample(range(len(lengths)), len(lengths))
    bucket = BUCKET * batch_size
    steps = []
    for start in range(0, len(rows), bucket):
        near = sorted(rows[start : start + bucket], key=lambda row: -lengths[row])
        steps += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    return order.sample(steps, len(steps))


def rank_share(step: Sequence[int], lengths: Sequence[int], rank: int, ranks: int) -> list[int]:
    """The rows of a step that one rank computes, such that no rank has much more to compute than another.

    Longest first, each to the rank with the fewest rows, of these to the one with the fewest tokens.

    Args:
        step: row numbers, of ``plan_batches``.
        lengths: tokens of each row.
        rank: from 0.
        ranks: how many there are.

    >>> [rank_share([0, 1, 2, 3, 4], [9, 8, 3, 1, 5], rank, 2) for rank in (0, 1)]
    [[0, 2, 3], [1, 4]]
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted(step, key=lambda row: (-lengths[row], row)):
        min(shares, key=lambda share: (len(share), sum(lengths[r] for r in share))).append(row)
    return [row for row in step if row in shares[rank]]


def microbatches_needed(lengths: Sequence[int], tokens: int) -> int:
    """In how many parts of a like number of rows a step is computed, if none may hold more tokens.

    Args:
        lengths: tokens of each row, the longest first; at least one row.
        tokens: of a part, padding included. A row of more is a part by itself.

    >>> microbatches_needed([9, 8, 2, 1], 36), microbatches_needed([9, 8, 2, 1], 18), microbatches_needed([9, 8, 2, 1], 8)
    (1, 2, 4)
    """
    for parts in range(1, len(lengths)):
        some = cut(lengths, -(-len(lengths) // parts))
        if all(len(part) * part[0] <= tokens for part in some):
            return parts
    return len(lengths)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as ids."""

    example: Example
    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def encode(examples: Sequence[Example], template: PromptTemplate) -> list[Encoded]:
    """Prompts and targets as ids, in the order given."""
    return [Encoded(e, template.prompt_ids(e.prompt), template.target_ids(e.target)) for e in examples]


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes of the rows of a step the batch that one rank computes.

    Args:
        pad: id of the padding token.
        loss_reduction: what the loss is a mean over, see ``loss_weight``.
        max_tokens_per_microbatch: largest number of tokens that a rank computes together, padding included.
        rank: number of this process, from 0.
        ranks: number of processes.
    """

    pad: int
    loss_reduction: str = "tokens"
    max_tokens_per_microbatch: int = 4096
    rank: int = 0
    ranks: int = 1

    def batch(self, rows: Sequence[Encoded], step: Sequence[int]) -> Batch:
        """The padded batch of this rank's share of a step.

        A rank without a row in the step gets one row at the weight 0, since all ranks must compute a step together.

        Args:
            rows: encoded examples.
            step: numbers of the rows that all ranks compute together, the longest row first.
        """
        lengths = [len(row) for row in rows]
        shares = [rank_share(step, lengths, rank, self.ranks) for rank in range(self.ranks)]
        share = shares[self.rank]
        weight = self.ranks * self._loss_weight(rows, share) / self._loss_weight(rows, step)
        computed = [rows[row] for row in share or step[:1]]
        ids, mask, labels = collate([row.prompt for row in computed], [row.target for row in computed], self.pad)
        parts = max(
            microbatches_needed([lengths[row] for row in some], self.max_tokens_per_microbatch)
            for some in shares
            if some
        )
        return Batch(ids, mask, labels, [rows[row].example.id for row in share], weight, parts)

    def _loss_weight(self, rows: Sequence[Encoded], some: Sequence[int]) -> int:
        return loss_weight([len(rows[row].target) for row in some], self.loss_reduction)
