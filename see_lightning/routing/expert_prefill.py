"""Prefill of prompts under experts; the verdict is decoded from the same forward pass.

Letters: B rows, C checked positions, K columns of a cache, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from see_lightning.adapters.activated import check_header
from see_lightning.adapters.pool import ExpertPool
from see_lightning.inference.forward import READING, extend, one_by_one
from see_lightning.inference.kv_cache import NO_PREFIX, CommonPrefix, KVCache, Tree
from see_lightning.routing.indicator_trie import DecodedVerdict, IndicatorTrie
from see_lightning.tasks.batches import Queries

# In bf16 logits of 16 to 32 have steps of 1/8, so the order of two tokens within two steps can depend on the other rows of
# the batch. Such queries are decided again in a batch of their own; so are the base model's answers with such a token.
MIN_MARGIN = 0.25
# Activated experts that decide in one pass; more of them would also decide on queries that a newer expert accepts.
EXPERTS_PER_PASS = 8


@dataclass(frozen=True, slots=True)
class Prefilled:
    """An expert's verdict on one query, and the KV cache from which its answer continues.

    Args:
        decision: the decoded verdict.
        read: the KV cache of the batch.
        row: the query's row in it.
        mask_K: the row's columns up to the verdict's last token, which has not been processed yet.
    """

    decision: DecodedVerdict
    read: KVCache
    row: int
    mask_K: Tensor


class ExpertPrefill(ABC):
    """Prefills a batch of queries under the experts of a pool, and under the base model.

    Args:
        pool: the experts.
        trie: the tokens of their indicators.
        queries: the batch.
        counts: prefills and rechecked decisions are added to it.
    """

    def __init__(self, pool: ExpertPool, trie: IndicatorTrie, queries: Queries, counts: Counter[str]) -> None:
        self.pool, self.trie, self.queries, self.counts = pool, trie, queries, counts
        self.prompts = queries.prompts
        self.exact = pool.is_exact()

    @abstractmethod
    def prefill_expert(self, expert: str, rows: Sequence[int]) -> list[Prefilled]:
        """An expert's verdicts on some of the queries, all of one group."""

    @abstractmethod
    def prefill_base(self, rows: Sequence[int]) -> tuple[Tensor, KVCache]:
        """Logits (B, V) of the base model's first answer token for queries of one group, and their KV cache."""

    @abstractmethod
    def _prefill_alone(self, expert: str, row: int) -> Prefilled:
        """An expert's verdict on one query in a batch of its own."""

    def _recheck_close(self, expert: str, rows: Sequence[int], prefilled: list[Prefilled]) -> list[Prefilled]:
        """Decide close queries again, each in a batch of its own, where no other row has an influence."""
        if self.exact:
            return prefilled
        close = [place for place, a in enumerate(prefilled) if a.decision.margin < MIN_MARGIN]
        self.counts["decided_again"] += len(close)
        for place in close:
            prefilled[place] = self._prefill_alone(expert, rows[place])
        return prefilled


class PerExpertPrefill(ExpertPrefill):
    """LoRA experts: each prefills the prompt itself, in one pass with the indicators' tokens."""

    def __init__(self, pool: ExpertPool, trie: IndicatorTrie, queries: Queries, counts: Counter[str]) -> None:
        super().__init__(pool, trie, queries, counts)
        self._starts: dict[tuple[str | None, int], CommonPrefix] = {}

    def _start(self, adapter: str | None, row: int) -> CommonPrefix:
        key = adapter, self.queries.groups[row]
        if key not in self._starts:
            # Experts decide one after the other, group by group, so an earlier prefix is not needed again.
            self._starts = {key: self.pool.prefill_prefix(adapter, self.queries.same_group(row))}
        return self._starts[key]

    def prefill_expert(self, expert: str, rows: Sequence[int]) -> list[Prefilled]:
        """One prefill for each query."""
        self.counts["prefills"] += len(rows)
        return self._recheck_close(expert, rows, self._read(expert, rows, self._start(expert, rows[0])))

    def prefill_base(self, rows: Sequence[int]) -> tuple[Tensor, KVCache]:
        """One prefill for each query."""
        self.counts["prefills"] += len(rows)
        return self.pool.prefill(None, [self.prompts[row] for row in rows], self._start(None, rows[0]))

    def _prefill_alone(self, expert: str, row: int) -> Prefilled:
        self.counts["prefills"] += 1
        return self._read(expert, [row], NO_PREFIX)[0]

    def _read(self, expert: str, rows: Sequence[int], start: CommonPrefix) -> list[Prefilled]:
        tokens, begun = start
        tree = self.trie.tree
        with self.pool.use_adapter(expert) as model:
            logits_BCV, read = extend(
                model,
                begun and begun.repeat(len(rows)),
                [self.prompts[row][tokens:] for row in rows],
                tree=tree,
                keep=range(-1 - len(tree), 0),
            )
        end = read.mask_BK.shape[1] - len(tree)
        return [
            Prefilled(decision, read, place, read.mask_BK[place].index_fill(0, self._columns(end, decision.path), True))
            for place, decision in enumerate(self.trie.decode_verdicts(logits_BCV))
        ]

    def _columns(self, end: int, path: Sequence[int]) -> Tensor:
        return torch.tensor([end + place for place in path], dtype=torch.long, device=self.pool.device())


class SharedPrefill(ExpertPrefill):
    """Activated experts: the base model prefills each prompt once, and all experts decide over its KV cache."""

    def __init__(
        self,
        pool: ExpertPool,
        trie: IndicatorTrie,
        queries: Queries,
        counts: Counter[str],
        *,
        orders: Sequence[Sequence[str]],
        start: Callable[[], CommonPrefix],
        keep: bool,
    ) -> None:
        """Prefill the prompts with the base model.

        Args:
            pool: the experts.
            trie: the tokens of their indicators.
            queries: the batch, all of one group.
            counts: prefills and rechecked decisions are added to it.
            orders: for each query, the experts that it may ask, in order.
            start: prefills the common prefix of the prompts.
            keep: whether the KV cache is kept for later experts.
        """
        super().__init__(pool, trie, queries, counts)
        self.orders = orders
        header = len(pool.header_ids)
        for prompt in self.prompts:
            check_header(prompt[-header:], pool.header_ids)

        def read() -> KVCache:
            return self._read_contexts(self.prompts, start())

        self._read = pool.prefill_cache.get(self.prompts, read) if keep else read()
        trie_parents = tuple(header - 1 if parent < 0 else header + parent for parent in trie.tree.parents)
        #: The tokens of one expert: the header in sequence, then the trie.
        self._branch = Tree((*pool.header_ids, *trie.tree.ids), (*range(-1, header - 1), *trie_parents))
        self._prefilled: dict[tuple[str, int], Prefilled] = {}

    def _read_contexts(self, prompts: Sequence[list[int]], start: CommonPrefix) -> KVCache:
        self.counts["prefills"] += len(prompts)
        tokens, begun = start
        with self.pool.use_adapter(None) as model:
            own = [prompt[tokens : len(prompt) - len(self.pool.header_ids)] for prompt in prompts]
            return extend(model, begun and begun.repeat(len(prompts)), own)[1]

    def prefill_expert(self, expert: str, rows: Sequence[int]) -> list[Prefilled]:
        """The verdicts of the expert, computed in one pass with those of the experts after it in the queries' orders."""
        together = 1 if READING in one_by_one(self.pool.model) else EXPERTS_PER_PASS
        new: dict[tuple[str, ...], list[int]] = {}  # queries that ask the same experts next
        for row in rows:
            if (expert, row) not in self._prefilled:
                order = self.orders[row]
                new.setdefault(tuple(order[order.index(expert) :][:together]), []).append(row)
        for names, some in new.items():
            for name, prefilled in self._decide(names, self._read.select(some)).items():
                self._prefilled |= {(name, row): one for row, one in zip(some, prefilled, strict=True)}
        return self._recheck_close(expert, rows, [self._prefilled[expert, row] for row in rows])

    def prefill_base(self, rows: Sequence[int]) -> tuple[Tensor, KVCache]:
        """Processes the header over the KV cache of the prompts."""
        with self.pool.use_adapter(None) as model:
            logits_BKV, read = extend(model, self._read.select(rows), [self.pool.header_ids] * len(rows))
        return logits_BKV[:, -1], read

    def _prefill_alone(self, expert: str, row: int) -> Prefilled:
        return self._decide([expert], self._read_contexts([self.prompts[row]], NO_PREFIX))[expert][0]

    def _decide(self, names: Sequence[str], contexts: KVCache) -> dict[str, list[Prefilled]]:
        size, header = len(self._branch), len(self.pool.header_ids)
        checked = range(header - 1, size)
        keep = [size * (place - len(names)) + column for place in range(len(names)) for column in checked]
        with self.pool.parallel_adapters(names, size) as model:
            logits_BCV, read = extend(
                model, contexts, [[]] * len(contexts), tree=self._branch.times(len(names)), keep=keep
            )
        end = contexts.mask_BK.shape[1]
        found: dict[str, list[Prefilled]] = {}
        for place, name in enumerate(names):
            verdicts = self.trie.decode_verdicts(logits_BCV[:, place * len(checked) : (place + 1) * len(checked)])
            branch = end + place * size
            found[name] = [
                Prefilled(
                    decision, read, row, read.mask_BK[row].index_fill(0, self._columns(branch, decision.path), True)
                )
                for row, decision in enumerate(verdicts)
            ]
        return found

    def _columns(self, branch: int, path: Sequence[int]) -> Tensor:
        header = len(self.pool.header_ids)
        columns = [*range(branch, branch + header), *(branch + header + place for place in path)]
        return torch.tensor(columns, device=self.pool.device())
