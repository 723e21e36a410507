"""KV caches of the frozen base model that activated experts continue from.

``PromptCache`` holds training prompts while an expert is trained on their answers. ``PrefillCache`` holds test queries, which
later experts also judge.

Letters: L layers, B rows, H heads, K columns, D size of a head.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from see_lightning.inference.forward import extend, prefill_common_prefix
from see_lightning.inference.kv_cache import KVCache, join

ROWS = 8  # prompts per forward pass


class PromptCache:
    """KV caches of single prompts, as many as fit into a memory budget; the others are prefilled each time.

    Args:
        gigabytes: the budget.
    """

    def __init__(self, gigabytes: float) -> None:
        self.budget = int(gigabytes * 1e9)
        self.held = 0  # bytes
        #: Tokens that the base model has processed; a common prefix counts once.
        self.tokens_read = 0
        self._kept: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}  # by layer (H, K, D), without padding

    def clear(self) -> None:
        """Drop all caches."""
        self._kept.clear()
        self.held = 0

    def fill(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> None:
        """Prefill prompts, their common prefix once, and keep them as long as the budget allows.

        Args:
            model: the base model.
            prompts: token ids; of one task, since these share a prefix.
        """
        new = sorted({tuple(prompt) for prompt in prompts} - self._kept.keys(), key=lambda ids: (-len(ids), ids))
        if not new or self.held >= self.budget:
            return
        tokens, start = prefill_common_prefix(model, new)
        self.tokens_read += tokens
        for at in range(0, len(new), ROWS):
            rows = new[at : at + ROWS]
            own = [row[tokens:] for row in rows]
            read = extend(model, start and start.repeat(len(rows)), own)[1]
            self.tokens_read += sum(map(len, own))
            if not self._keep(rows, read):
                return

    def batch(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> KVCache:
        """The KV cache of a batch of prompts; prompts that are not kept are prefilled now.

        Args:
            model: the base model.
            prompts: token ids.
        """
        missing = [place for place, prompt in enumerate(prompts) if tuple(prompt) not in self._kept]
        if len(missing) == len(prompts):
            self.tokens_read += sum(map(len, prompts))
            return extend(model, None, prompts)[1]
        present = [place for place in range(len(prompts)) if place not in set(missing)]
        read = self._assemble([tuple(prompts[place]) for place in present])
        if not missing:
            return read
        rest = [prompts[place] for place in missing]
        self.tokens_read += sum(map(len, rest))
        order = [*present, *missing]
        return join([read, extend(model, None, rest)[1]]).select([order.index(n) for n in range(len(prompts))])

    def _keep(self, prompts: Sequence[tuple[int, ...]], read: KVCache) -> bool:
        for row, prompt in enumerate(prompts):
            columns = read.mask_BK[row]
            kept = [(k[row][:, columns], v[row][:, columns]) for k, v in read.layers]
            size = sum(part.nbytes for pair in kept for part in pair)
            if self.held + size > self.budget:
                return False
            self._kept[prompt] = kept
            self.held += size
        return True

    def _assemble(self, prompts: Sequence[tuple[int, ...]]) -> KVCache:
        rows = [self._kept[prompt] for prompt in prompts]
        width = max(map(len, prompts))
        first = rows[0][0][0]
        mask_BK = torch.zeros(len(rows), width, dtype=torch.bool, device=first.device)
        for place, prompt in enumerate(prompts):
            mask_BK[place, width - len(prompt) :] = True
        layers = []
        for parts in zip(*rows, strict=True):
            pair = []
            for side in (0, 1):
                first = parts[0][side]
                whole = first.new_zeros(len(rows), first.shape[0], width, first.shape[2])
                for place, part in enumerate(parts):
                    whole[place, :, width - part[side].shape[1] :] = part[side]
                pair.append(whole)
            layers.append((pair[0], pair[1]))
        return KVCache(layers, mask_BK)


class PrefillCache:
    """KV caches of whole batches of queries, as many as fit into a memory budget.

    Whole batches, because in bf16 a query's keys and values depend on the other rows of its batch: results must not depend on
    the budget.

    Args:
        gigabytes: the budget.
    """

    def __init__(self, gigabytes: float) -> None:
        self.budget = int(gigabytes * 1e9)
        self.held = 0  # bytes
        self._kept: dict[tuple[tuple[int, ...], ...], KVCache] = {}

    def get(self, prompts: Sequence[Sequence[int]], read: Callable[[], KVCache]) -> KVCache:
        """The KV cache of a batch, from memory or prefilled now.

        Args:
            prompts: the batch, as token ids.
            read: prefills the batch.
        """
        key = tuple(map(tuple, prompts))
        if key in self._kept:
            return self._kept[key]
        cache = read()
        size = sum(keys.nbytes + values.nbytes for keys, values in cache.layers)
        if self.held + size <= self.budget:
            self._kept[key] = cache
            self.held += size
        return cache
