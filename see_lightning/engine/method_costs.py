"""What a method's own work costs beside the steps of training: seconds, and tokens that the model reads in it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

#: The hooks of a method that run before and after the steps of training, in their order.
HOOKS = ("assign", "training_examples", "choose_parent", "begin_task", "end_task")


class MethodCosts:
    """Seconds and tokens of one task's hooks.

    Args:
        embeddings: the model's input embeddings; every token that they are given counts, padding included.
    """

    def __init__(self, embeddings: nn.Module) -> None:
        self.embeddings = embeddings
        #: By hook: seconds and tokens.
        self.spent: dict[str, tuple[float, int]] = {}

    @contextmanager
    def of(self, hook: str) -> Iterator[None]:
        """Within this, time and tokens count for one of ``HOOKS``."""
        tokens = 0

        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal tokens
            tokens += inputs[0].numel()

        started, handle = time.monotonic(), self.embeddings.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()
            self.spent[hook] = time.monotonic() - started, tokens

    def seconds(self, hook: str) -> float:
        """Seconds of a hook; 0 if it did not run."""
        return self.spent.get(hook, (0.0, 0))[0]


def of_all_ranks(shares: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, Any]:
    """What a run notes of a task: by hook the seconds of the slowest rank and the tokens of all.

    Args:
        shares: ``MethodCosts.spent`` of each rank, which all have the same hooks.

    >>> of_all_ranks([{"end_task": (1.0, 8)}, {"end_task": (1.5, 8)}])
    {'seconds': {'end_task': 1.5}, 'tokens': {'end_task': 16}}
    """
    hooks = [hook for hook in HOOKS if hook in shares[0]]
    return {
        "seconds": {hook: round(max(share[hook][0] for share in shares), 3) for hook in hooks},
        "tokens": {hook: sum(share[hook][1] for share in shares) for hook in hooks},
    }
