"""The costs of a method's hooks: seconds, and tokens of the model's forward passes in them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from see_lightning.methods.method import Method

#: The hooks of a method that run before and after the steps of training, in their order.
HOOKS = ("assign", "training_examples", "choose_parent", "begin_task", "end_task")
#: The hooks that run within each step. Their seconds are part of the training's.
STEP_HOOKS = ("penalty", "edit_gradients", "after_step")


class MethodCosts:
    """Seconds and tokens of one task's hooks.

    Args:
        embeddings: the model's input embeddings, at which tokens are counted, padding included.
    """

    def __init__(self, embeddings: nn.Module) -> None:
        self.embeddings = embeddings
        #: Hook -> (seconds, tokens).
        self.spent: dict[str, tuple[float, int]] = {}

    @contextmanager
    def of(self, hook: str) -> Iterator[None]:
        """A context whose time and tokens are added to those of a hook."""
        seconds, tokens = self.spent.get(hook, (0.0, 0))

        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal tokens
            tokens += inputs[0].numel()

        started, handle = time.monotonic(), self.embeddings.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()
            self.spent[hook] = seconds + time.monotonic() - started, tokens

    @contextmanager
    def of_steps(self, method: Method) -> Iterator[None]:
        """A context in which the costs of the ``STEP_HOOKS`` that the method's class overrides are added up."""
        own = [hook for hook in STEP_HOOKS if getattr(type(method), hook) is not getattr(Method, hook)]
        for hook in own:
            setattr(method, hook, self.of(hook)(getattr(method, hook)))
        try:
            yield
        finally:
            for hook in own:
                delattr(method, hook)

    def seconds(self, hook: str) -> float:
        """Seconds of a hook; 0 if it did not run."""
        return self.spent.get(hook, (0.0, 0))[0]


def of_all_ranks(shares: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, Any]:
    """The costs of a task over all ranks: by hook, the seconds of the slowest rank and the tokens of all.

    Args:
        shares: ``MethodCosts.spent`` of each rank; all ranks have the same hooks.

    >>> of_all_ranks([{"end_task": (1.0, 8)}, {"end_task": (1.5, 8)}])
    {'seconds': {'end_task': 1.5}, 'tokens': {'end_task': 16}}
    """
    hooks = [hook for hook in (*HOOKS, *STEP_HOOKS) if hook in shares[0]]
    return {
        "seconds": {hook: round(max(share[hook][0] for share in shares), 3) for hook in hooks},
        "tokens": {hook: sum(share[hook][1] for share in shares) for hook in hooks},
    }
