"""Batches: which examples a training step gets, how they are padded, and queries for generation.

Letters: B examples, S tokens.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from see_lightning.data.example import Example
from see_lightning.tasks.prompts import PromptTemplate

T = TypeVar("T")

IGNORED = -100  # label of a token without a loss, the default of torch's cross entropy
BUCKET = 16  # batches that are sorted together by length; more give less padding, and less variety of lengths in a step


@dataclass(slots=True)
class Batch:
    """Prompts followed by their answers, padded on the left.

    Args:
        input_ids_BS: tokens.
        attention_mask_BS: 1 on tokens, 0 on padding.
        labels_BS: answer tokens, ``IGNORED`` elsewhere.
        ids: the examples' ids.
        weight: factor of the batch's mean loss, such that the mean over ranks is the mean loss of the whole step.
        parts: number of micro-batches, the same on every rank.
        tasks: the examples' tasks; empty if the batch was not made of examples.
    """

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    labels_BS: Tensor
    ids: list[str]
    weight: float = 1.0
    parts: int = 1
    tasks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def prompts(self) -> list[list[int]]:
        """The token ids of each row's prompt, without padding and answer."""
        own_BS = self.attention_mask_BS.bool() & (self.labels_BS == IGNORED)
        return [ids_S[own_S].tolist() for ids_S, own_S in zip(self.input_ids_BS, own_BS, strict=True)]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""
        return replace(
            self,
            input_ids_BS=self.input_ids_BS.to(device),
            attention_mask_BS=self.attention_mask_BS.to(device),
            labels_BS=self.labels_BS.to(device),
        )

    def split(self, mean: str) -> list["Batch"]:
        """Split into ``parts`` micro-batches without needless padding; their weights add up to this batch's weight.

        A batch with fewer rows than parts repeats its last micro-batch with the weight 0.

        Args:
            mean: the loss is a mean over ``tokens`` or ``examples``.
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
            parts.append(Batch(ids_BS, mask_BS, labels_BS, self.ids[rows], weight, tasks=self.tasks[rows]))
        return parts + [replace(parts[-1], ids=[], weight=0.0, tasks=[])] * (self.parts - len(parts))


def loss_weight(targets: Sequence[int], mean: str) -> int:
    """The number of items that a mean loss averages over.

    Args:
        targets: tokens of each example's target.
        mean: the loss is a mean over ``tokens`` of targets, or over ``examples``.
    """
    return sum(targets) if mean == "tokens" else len(targets)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the answer to one query is decoded. The verdicts of experts are the most probable ones in every case.

    Args:
        temperature: logits are divided by it, 0 or more; 0 takes the most probable token.
        top_p: tokens are drawn from the fewest most probable ones whose probabilities add up to at least this, above 0 and at
            most 1.
        seed: of the draws.
        watch: called after each token with the answer so far; True ends the answer.
        routed: called as soon as it is known who answers, with the answer as far as it is known then.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    watch: Callable[[str], bool] | None = None
    routed: Callable[[Any], None] | None = None


GREEDY = Decoding()


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries to be answered.

    Args:
        prompts: token ids of each query.
        ids: the queries' ids.
        groups: group number of each query. The queries of a group are adjacent, share a prefix, and are prefilled together.
        limits: most tokens to generate for each.
        rows: most queries that are decoded together.
        tasks: the queries' tasks; empty if the method does not get them.
        only_decide: whether experts only decide on acceptance and generate no answer.
        decoding: of each answer; empty: the most probable tokens.
        exact: whether every answer is the one that its query has in a batch of its own: in bf16 an answer with two nearly
            equal tokens is then generated again, alone. The base model's answers are so in every case.
    """

    prompts: list[list[int]]
    ids: list[str]
    groups: list[int]
    limits: list[int]
    rows: int
    tasks: list[str] = field(default_factory=list)
    only_decide: bool = False
    decoding: list[Decoding] = field(default_factory=list)
    exact: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Queries":
        """The same queries: they hold lists, not tensors. Lightning calls this."""
        return self

    def chunks(self, rows: Sequence[int]) -> list[list[int]]:
        """Split row numbers into chunks that are prefilled together: each of one group, at most half of ``self.rows``.

        Half, so that the other half can be decoded in the meantime.

        Args:
            rows: row numbers, those of a group adjacent.
        """
        return [
            chunk
            for _, group in groupby(rows, key=lambda row: self.groups[row])
            for chunk in cut(list(group), max(1, self.rows // 2))
        ]

    def same_group(self, row: int) -> list[list[int]]:
        """The prompts of the group of a query, its own included."""
        return [prompt for prompt, group in zip(self.prompts, self.groups, strict=True) if group == self.groups[row]]

    def select(self, rows: Sequence[int]) -> "Queries":
        """The queries of some rows, in the order given."""
        return replace(
            self,
            prompts=[self.prompts[row] for row in rows],
            ids=[self.ids[row] for row in rows],
            groups=[self.groups[row] for row in rows],
            limits=[self.limits[row] for row in rows],
            tasks=[self.tasks[row] for row in rows] if self.tasks else [],
            decoding=[self.decoding[row] for row in rows] if self.decoding else [],
        )

    def decoding_of(self, row: int) -> Decoding:
        """How the answer to a query is decoded."""
        return self.decoding[row] if self.decoding else GREEDY


def cut(whole: Sequence[T], size: int) -> list[list[T]]:
    """Split a sequence into parts of one size; the last may be smaller.

    >>> cut("abcde", 2)
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    return [list(whole[start : start + size]) for start in range(0, len(whole), size)]


def left_pad(rows: Sequence[Sequence[int]], value: int, width: int | None = None) -> Tensor:
    """Rows of ids as one tensor (B, S), padded on the left to ``width``, by default to the longest row.

    >>> left_pad([[5], [6, 7]], 0)
    tensor([[0, 5],
            [6, 7]])
    """
    width = width or max(len(row) for row in rows)
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])


def collate(prompts: Sequence[list[int]], targets: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Padded ids, mask and labels, (B, S) each, of prompts followed by their targets.

    Args:
        prompts: token ids.
        targets: token ids of the answers.
        pad: id of the padding token.
    """
    rows = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    ids_BS = left_pad(rows, pad)
    # The target is at the right edge, so padding the labels on the left also ignores the prompt.
    return ids_BS, left_pad([[1] * len(row) for row in rows], 0), left_pad(targets, IGNORED, ids_BS.shape[1])


def plan_batches(lengths: Sequence[int], batch_size: int, draw: int) -> list[list[int]]:
    """The row numbers of every step of one epoch: each row once, rows of similar length in one step.

    Rows are shuffled, sorted by length within buckets of ``BUCKET`` batches, cut into batches, and the batches are shuffled.
    Padding is low, and the order is a pure function of the arguments.

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
    """The rows of a step that one rank computes, balanced over ranks.

    The longest row first, each row goes to the rank with the fewest rows, among these to the one with the fewest tokens.

    Args:
        step: row numbers, from ``plan_batches``.
        lengths: tokens of each row.
        rank: number of the rank, from 0.
        ranks: number of ranks.

    >>> [rank_share([0, 1, 2, 3, 4], [9, 8, 3, 1, 5], rank, 2) for rank in (0, 1)]
    [[0, 2, 3], [1, 4]]
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted(step, key=lambda row: (-lengths[row], row)):
        min(shares, key=lambda share: (len(share), sum(lengths[r] for r in share))).append(row)
    return [row for row in step if row in shares[rank]]


def microbatches_needed(lengths: Sequence[int], tokens: int) -> int:
    """The least number of micro-batches, equal in rows, such that none has more tokens than allowed.

    Args:
        lengths: tokens of each row, the longest first; at least one row.
        tokens: most tokens of a micro-batch, padding included. A longer row is a micro-batch by itself.

    >>> microbatches_needed([9, 8, 2, 1], 36), microbatches_needed([9, 8, 2, 1], 18), microbatches_needed([9, 8, 2, 1], 8)
    (1, 2, 4)
    """
    for parts in range(1, len(lengths)):
        microbatches = cut(lengths, -(-len(lengths) // parts))
        if all(len(rows) * rows[0] <= tokens for rows in microbatches):
            return parts
    return len(lengths)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example with its prompt and target as token ids."""

    example: Example
    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def encode(examples: Sequence[Example], template: PromptTemplate) -> list[Encoded]:
    """Tokenise the prompts and targets of examples, in the order given."""
    return [Encoded(e, template.prompt_ids(e), template.target_ids(e.target)) for e in examples]


@dataclass(frozen=True, slots=True)
class Collator:
    """Builds the batch that one rank computes from the rows of a step.

    Args:
        pad: id of the padding token.
        loss_reduction: the loss is a mean over ``tokens`` or ``examples``.
        max_tokens_per_microbatch: most tokens of a micro-batch, padding included.
        rank: number of this rank, from 0.
        ranks: number of ranks.
    """

    pad: int
    loss_reduction: str = "tokens"
    max_tokens_per_microbatch: int = 4096
    rank: int = 0
    ranks: int = 1

    def batch(self, rows: Sequence[Encoded], step: Sequence[int]) -> Batch:
        """The padded batch of this rank's rows of a step.

        A rank without rows gets one row with the weight 0, since every rank must take part in every step.

        Args:
            rows: encoded examples.
            step: numbers of the rows of all ranks, the longest row first.
        """
        lengths = [len(row) for row in rows]
        shares = [rank_share(step, lengths, rank, self.ranks) for rank in range(self.ranks)]
        share = shares[self.rank]
        weight = self.ranks * self._loss_weight(rows, share) / self._loss_weight(rows, step)
        computed = [rows[row] for row in share or step[:1]]
        ids, mask, labels = collate([row.prompt for row in computed], [row.target for row in computed], self.pad)
        parts = max(
            microbatches_needed([lengths[n] for n in own], self.max_tokens_per_microbatch) for own in shares if own
        )
        examples = [rows[row].example for row in share]
        return Batch(ids, mask, labels, [one.id for one in examples], weight, parts, [one.task for one in examples])

    def _loss_weight(self, rows: Sequence[Encoded], numbers: Sequence[int]) -> int:
        return loss_weight([len(rows[n].target) for n in numbers], self.loss_reduction)
