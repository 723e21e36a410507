"""What a router is: it chooses the expert that answers a query, and takes no part in training.

Adding one takes a module here and a YAML file in ``conf/router``; ``docs/add_a_router.md`` has a worked example.

Letters: P prompts, H hidden states, V vocabulary.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.protocols import AdapterDelta
from see_lightning.inference.forward import extend
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.prompts import PromptTemplate


class Routed(Protocol):
    """What a router knows of the method whose queries it routes.

    Attributes:
        pool: the base model and the experts, whose names are in ``pool.names``, oldest first.
        template: how a query is put to the model.
        counts: costs of answering; a router adds to ``prefills`` every prompt that it has read.
        run_seed: the run's seed.
        accept_prefix: what an expert writes before an answer; empty where answers begin at once.
    """

    pool: ExpertPool
    template: PromptTemplate
    counts: Counter[str]
    run_seed: int
    accept_prefix: str

    def expert_of(self, task: str) -> str | None:
        """The expert that learned a task; None if there is none yet."""


class Router:
    """Chooses the expert for each query; by default it learns nothing and keeps nothing.

    A choice depends on the query and on the tasks learned so far, and not on the other queries of a batch: ranks and batches
    of another size choose alike.

    Args:
        method: whose queries are routed.
    """

    #: Names of ``Traits`` that a method must have to be routed by it.
    needs: ClassVar[frozenset[str]] = frozenset({"has_experts"})
    #: Whether queries must come with the name of their task.
    needs_task: ClassVar[bool] = False
    #: Different training prompts of each task that it needs at least.
    fewest: ClassVar[int] = 1

    def __init__(self, method: Routed) -> None:
        self.method = method
        #: By task, the tensors that are kept of it; saved beside the task's expert.
        self.kept: dict[str, dict[str, Tensor]] = {}
        self._embedded: dict[tuple[int, ...], Tensor] = {}

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Take up a task whose expert has just been trained.

        Args:
            task: its name, which is the expert's.
            prompts: of its training rows, as ids.
        """

    @abstractmethod
    def route(self, queries: Queries) -> list[str | None]:
        """The expert for each query, by its name in ``method.pool.names``; None is the base model."""

    def state(self, task: str) -> dict[str, Tensor]:
        """The tensors that are kept of a task."""
        return self.kept.get(task, {})

    def load_state(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Take up the ``state`` of a task; called for every learned task, oldest first."""
        self.kept[task] = dict(tensors)

    def nbytes(self) -> int:
        """Size of all that is kept."""
        return sum(tensor.nbytes for tensors in self.kept.values() for tensor in tensors.values())

    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Means over each prompt's tokens of the base model's last hidden states, (P, H), in fp32."""
        return embed_prompts(self.method.pool, prompts)

    def embed_queries(self, queries: Queries) -> Tensor:
        """Embeddings of queries, (P, H). Each is computed once in a process, and counted as a prefill every time.

        So the count does not depend on where a run was interrupted.
        """
        keys = [tuple(prompt) for prompt in queries.prompts]
        for key in keys:
            if key not in self._embedded:
                (self._embedded[key],) = self.embed([key])
        self.method.counts["prefills"] += len(queries)
        return torch.stack([self._embedded[key] for key in keys])


def answer_logits(method: Routed, adapter: str | AdapterDelta, prompt: list[int]) -> Tensor:
    """Logits of an expert's first answer token, (1, V), behind the word with which it accepts, if it has one.

    Args:
        method: of the expert.
        adapter: the expert's name, or an adapter without a name.
        prompt: as ids, read by itself.
    """
    word = method.accept_prefix.rstrip(" ")  # the blank may be one token with the answer's beginning
    logits_1V, read = method.pool.prefill(adapter, [prompt])
    if word:
        with method.pool.use_adapter(adapter) as model:
            logits_1KV, _ = extend(model, read, [method.template.target_ids(word)[:-1]])
        logits_1V = logits_1KV[:, -1]
    method.counts["prefills"] += 1
    return logits_1V.float()
