"""How a method with another adapter for each prompt is asked by passes outside its ``answer``."""

from collections.abc import Sequence
from typing import Protocol

from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.protocols import CompositeAdapter
from see_lightning.adapters.weight_cache import sha256
from see_lightning.routing.none import NoRouter
from see_lightning.tasks.batches import Queries


class AdaptsToPrompts(Protocol):
    """A method with another adapter for each prompt."""

    pool: ExpertPool

    def adapter_for(self, prompt: Sequence[int]) -> CompositeAdapter:
        """The adapter under which a prompt, as ids, is answered."""


class ByPrompt(NoRouter):
    """The adapter that a method has for each prompt, under a name."""

    method: AdaptsToPrompts  # type: ignore[assignment]

    def adapters(self, queries: Queries, routes: list[str | None]) -> list[str | None]:
        """The adapter for each query, registered in the pool; its name is its content's."""
        names: list[str | None] = []
        for prompt in queries.prompts:
            adapter = self.method.adapter_for(prompt)
            names.append(name := f"(by prompt {sha256(list(adapter.weights()))[:16]})")
            self.method.pool.register(name, adapter, is_expert=False)
        return names
