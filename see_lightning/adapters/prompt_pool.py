"""A pool of soft prompts with keys: each row begins with the prompts whose keys lie nearest to the row's query.

Letters: B rows, M prompts of the pool, N prompts of a row, P tokens of a prompt, H size of an embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from see_lightning.adapters.embeddings import cosine
from see_lightning.adapters.prefix import VirtualTokens
from see_lightning.adapters.soft_prompt import RowPrompts
from see_lightning.errors import ConfigError
from see_lightning.inference.kv_cache import KVCache


def nearest(distance_BM: Tensor, number: int) -> Tensor:
    """For each row the prompts at the smallest distances, nearest first, (B, N); of equal ones the first of the pool.

    >>> import torch
    >>> nearest(torch.tensor([[0.5, 0.1, 0.3]]), 2)
    tensor([[1, 2]])
    """
    return distance_BM.sort(dim=1, stable=True).indices[:, :number]


class PromptPool(VirtualTokens):
    """Prompts and their keys; which prompts act is told for each batch by ``acting``.

    Args:
        prompts_MPH: the first embeddings; copied, in fp32.
        keys_MH: the first keys; copied, in fp32.
    """

    def __init__(self, prompts_MPH: Tensor, keys_MH: Tensor) -> None:
        super().__init__()
        self.prompts_MPH, self.keys_MH = (nn.Parameter(one.detach().float().clone()) for one in (prompts_MPH, keys_MH))
        self._chosen_BN: Tensor | None = None

    def distances(self, queries_BH: Tensor) -> Tensor:
        """The cosine distance between each query and each key, (B, M), 0..2, with gradients."""
        return cosine(queries_BH, self.keys_MH)

    def of(self, chosen_BN: Tensor) -> RowPrompts:
        """The chosen prompts of each row, one after the other."""
        return RowPrompts(self.prompts_MPH[chosen_BN].flatten(1, 2))

    @contextmanager
    def acting(self, chosen_BN: Tensor) -> Iterator[None]:
        """Put these prompts before the rows of a batch."""
        self._chosen_BN = chosen_BN
        try:
            yield
        finally:
            self._chosen_BN = None

    def start(self, model: nn.Module, rows: int) -> KVCache:
        """The KV cache that the rows begin with.

        Raises:
            ConfigError: outside of ``acting``.
        """
        if self._chosen_BN is None:
            raise ConfigError(
                "the prompts of this method are chosen by the query, so a pass needs a choice: ask the method, by"
                " Method.answer or Method.logits."
            )
        return self.of(self._chosen_BN).start(model, rows)

    def weights(self) -> Iterator[Tensor]:
        """Prompts and keys."""
        yield from self.parameters()
