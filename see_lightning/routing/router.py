"""What a router is: it chooses the expert that answers a query, and takes no part in training.

Adding one takes a module here and a YAML file in ``conf/router``; ``docs/add_a_router.md`` has a worked example.

Letters: P prompts, H hidden states, V vocabulary.
"""

from abc import abstractmethod
from collections import ChainMap, Counter
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from see_lightning.adapters.embeddings import Embedded, embed_once
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.protocols import AdapterDelta
from see_lightning.inference.forward import extend
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.variants import AS_IS

#: Why a router that needs the experts on the prompt is refused; its name is put in.
NEEDS_PROMPT = (
    "router={} compares what experts make of the prompt, and activated experts do not act on the prompt; choose adapter=lora,"
    " or another router."
)


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

    def newest_first(self) -> list[str]:
        """The experts that give verdicts, newest first."""

    def accept_prefix_of(self, adapter: str | None) -> str:
        """What an adapter writes before an answer; empty for the base model."""

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
    #: Whether experts must act on the whole prompt, which activated ones do not.
    needs_prompt: ClassVar[bool] = False
    #: Whether it routes rows with earlier turns or a system prompt of their own; false if it reads a query as a single text.
    takes_conversations: ClassVar[bool] = True
    #: Whether it asks few of the experts with verdicts for a query, so that a run does not record the others' verdicts.
    asks_few: ClassVar[bool] = False
    #: Whether the thresholds of a method's experts count.
    uses_thresholds: ClassVar[bool] = False
    #: Different training prompts of each task that it needs at least.
    fewest: ClassVar[int] = 1
    #: Wordings of a task's rows that ``learn`` and ``hold_out`` get, of ``WORDINGS``.
    wordings: tuple[str, ...] = (AS_IS,)
    #: Settings on which ``state`` does not depend: a router with other values of them takes up the same state.
    not_in_state: ClassVar[frozenset[str]] = frozenset()
    #: Whether it sets a threshold, so that rows of a task are kept back from ``learn``.
    holds_out: bool = False

    def __init__(self, method: Routed) -> None:
        self.method = method
        #: By task, the tensors that are kept of it; saved beside the task's expert.
        self.kept: dict[str, dict[str, Tensor]] = {}
        #: Embeddings of queries by layer and ids; routers of one method may share them.
        self.embedded: MutableMapping[Embedded, Tensor] = {}
        #: Whether ``embedded`` takes training prompts too, which then are embedded once for all routers that share it.
        self.keeps_embeddings = False

    @classmethod
    def check_tasks(cls, settings: Mapping[str, Any], tasks: Sequence[str]) -> None:
        """Refuse settings that do not fit the tasks of a run, before anything is trained; by default all fit.

        Args:
            settings: of the router.
            tasks: names of the run's tasks.
        """

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Take up a task whose expert has just been trained.

        Args:
            task: its name, which is the expert's.
            prompts: of its training rows in each of ``wordings``, as ids; those of one row are adjacent.
        """

    def hold_out(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Take up rows of a task that were not learned, on which a threshold can be set; called after ``learn``.

        Args:
            task: its name, which is the expert's.
            prompts: of the held-out rows in each of ``wordings``, as ids.
        """

    @abstractmethod
    def route(self, queries: Queries) -> list[str | None]:
        """The expert for each query, by its name in ``method.pool.names``; None is the base model."""

    def adapters(self, queries: Queries, routes: list[str | None]) -> list[str | None]:
        """The adapter that answers each query, by default that of the routed expert; a mixture of experts is another.

        Args:
            queries: the batch.
            routes: of ``route``, which stay the experts that results name.
        """
        return routes

    def state(self, task: str) -> dict[str, Tensor]:
        """The tensors that are kept of a task."""
        return self.kept.get(task, {})

    def load_state(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Take up the ``state`` of a task; called for every learned task, oldest first."""
        self.kept[task] = dict(tensors)

    def nbytes(self) -> int:
        """Size of all that is kept."""
        return sum(tensor.nbytes for tensors in self.kept.values() for tensor in tensors.values())

    def embed(self, prompts: Sequence[Sequence[int]], layer: int = 0) -> Tensor:
        """Means over each prompt's tokens of the base model's hidden states, (P, H), in fp32.

        Args:
            prompts: as ids; of those in ``embedded`` nothing is computed.
            layer: number of the layer behind which they are taken; 0 for the last hidden states.
        """
        embedded = self.embedded if self.keeps_embeddings else ChainMap({}, self.embedded)
        return embed_once(self.method.pool, prompts, layer, embedded)

    def embed_queries(self, queries: Queries, layer: int = 0) -> Tensor:
        """Embeddings of queries, (P, H). Each is computed once in a process, and counted as a prefill every time.

        So the count does not depend on where a run was interrupted.

        Args:
            queries: the batch.
            layer: number of the layer behind which hidden states are taken; 0 for the last hidden states.
        """
        self.method.counts["prefills"] += len(queries)
        return embed_once(self.method.pool, queries.prompts, layer, self.embedded)


def answer_logits(method: Routed, adapter: str | AdapterDelta, prompt: list[int]) -> Tensor:
    """Logits of an expert's first answer token, (1, V), behind the word with which it accepts, if it has one.

    Args:
        method: of the expert.
        adapter: the expert's name, or an adapter without a name.
        prompt: as ids, read by itself.
    """
    accept = method.accept_prefix_of(adapter) if isinstance(adapter, str) else method.accept_prefix
    word = accept.rstrip(" ")  # the blank may be one token with the answer's beginning
    logits_1V, read = method.pool.prefill(adapter, [prompt])
    if word:
        with method.pool.use_adapter(adapter) as model:
            logits_1KV, _ = extend(model, read, [method.template.target_ids(word)[:-1]])
        logits_1V = logits_1KV[:, -1]
    method.counts["prefills"] += 1
    return logits_1V.float()
