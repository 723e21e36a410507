"""The interface of a continual-learning method: its training data, its state, and how it answers.

``training.py`` has the training step. A method never evaluates, writes results, reads the configuration or knows
the number of devices. One level of inheritance; a variant is an argument. Adding one takes a module here and a YAML file in
``conf/method``.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from see_lightning.adapters import files
from see_lightning.adapters.response_cache import BatchCache, CachedResponse, ResponseCache
from see_lightning.data.example import Example
from see_lightning.inference.decoder import BatchDecoder, Decoded, side_by_side
from see_lightning.methods.generation import Generation
from see_lightning.methods.setup import Setup, Traits
from see_lightning.routing.oracle import Oracle
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class Answer(NamedTuple):
    """One query's answer; a tuple, since Lightning takes predictions apart and refuses frozen dataclasses.

    Args:
        id: of the query.
        text: without indicator or special tokens.
        expert: the expert that answered, ``base`` for the base model, or None if the method has no experts.
        verdicts: ``pos``, ``neg`` or ``neither`` of the experts that decided, in the order in which they were asked.
        truncated: whether it reached the limit of new tokens.
        asked: the experts that decided; empty if they are the newest ones, newest first.
        log_odds: of the verdicts, in nats, to 4 digits; empty if they are not known.
    """

    id: str
    text: str
    expert: str | None
    verdicts: tuple[str, ...]
    truncated: bool
    asked: tuple[str, ...] = ()
    log_odds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """The expert that is assigned to a task.

    Args:
        expert: a new one with the task's name, or an earlier task's that fits it.
        z: by earlier expert, the mean standardised distance of the task's prompts from the expert's own task; empty if the
            method measures none.
    """

    expert: str
    z: dict[str, float]


class Method(Generation):
    """The interface of all methods.

    Args:
        setup: model, template, optimizer settings and seed of the run.
    """

    #: Passes over the whole prompt of a query until its answer begins, of a method without experts.
    reads_per_query: ClassVar[int] = 1
    #: The earlier expert from which the latest task was initialised; None if at random.
    parent: str | None = None

    def __init_subclass__(cls, **more: Any) -> None:
        """A class with an ``answer`` of its own does not inherit another class's ``answering``."""
        super().__init_subclass__(**more)
        if "answer" in vars(cls) and "answering" not in vars(cls):
            cls.answering = Method.answering  # type: ignore[method-assign]

    @classmethod
    def cautions(cls, arguments: Mapping[str, Any], tasks: Sequence[Task]) -> list[str]:
        """Warnings about these arguments and tasks, one sentence each, printed before training."""
        return []

    def storage(self) -> dict[str, int]:
        """Bytes stored for all tasks so far, by part; ``pool`` is the unit of the capacity and no part.

        By default ``weights``, all adapters, with one adapter as the unit, and ``state`` if there is one. Empty if nothing is
        learned.
        """
        # A composite takes the bytes of its adapters, which others may share, or its own weights'.
        sizes: dict[str, int] = {}
        for name in self.pool.names:
            composite = self.pool.composites.get(name)
            if composite and not composite.adapters:
                sizes[name] = sum(weight.nbytes for weight in composite.weights())
            else:
                sizes |= {one: self.pool.adapter_bytes(one) for one in (composite.adapters if composite else (name,))}
        one, *more = sizes.values() or [0]
        state = sum(tensor.nbytes for tensor in self.state().values())
        return {"pool": one, "weights": one + sum(more), **({"state": state} if state else {})} if one else {}

    def kept_rows(self) -> int:
        """Rows that ``state`` holds, real or synthetic; those of ``memory`` are counted by the engine."""
        return 0

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """The training rows of a task's stage, with the targets that are learned.

        Called on rank 0, which broadcasts the rows. So it must not change the method, and if the method is ``shardable`` it
        must not run the model.
        """
        return list(task.train)

    def choose_parent(self, task: Task) -> str | None:
        """The earlier expert to initialise a task from. Called before ``begin_task``, which finds it in ``parent``."""
        return None

    def assign(self, task: Task) -> Assignment:
        """The expert of a task. Called before its training if the method ``may_reuse`` experts."""
        return Assignment(task.name, {})

    @property
    def may_reuse(self) -> bool:
        """Whether ``assign`` is called: by default as the traits say."""
        return self.traits.may_reuse

    def reason(self, assigned: Assignment) -> str:
        """Why a task gets its expert, for the console."""
        z = ", ".join(f"{z:.2f} under {name}" for name, z in assigned.z.items())
        return f"z {z or 'unknown: it is the first'}"

    @classmethod
    def after_training(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """Names of the settings that no trained weight depends on, if the method has these arguments; see ``Traits``."""
        return cls.traits.after_training

    @abstractmethod
    def begin_task(self, task: Task, memory: Memory) -> None:
        """Adds the weights that the task trains and freezes all others."""

    def end_task(self, task: Task, memory: Memory) -> None:
        """Work after a task's training: statistics, merging, thresholds."""

    def report(self) -> dict[str, Any]:
        """Facts about the method after a task, for ``method_report`` in the results: JSON values by name.

        It must not run the model. A name has one value for each task.
        """
        return {}

    @abstractmethod
    def answer(self, queries: Queries) -> list[Answer]:
        """Answers queries, in their order, by greedy decoding unless ``queries.decoding`` says otherwise."""

    def answering(self, queries: Queries, decoder: BatchDecoder[Any]) -> Iterator[dict[int, Answer]]:
        """Answers queries in a decoder that other queries share; by default without it, before it returns.

        Its caller steps the decoder.

        Args:
            queries: the batch.
            decoder: from ``new_decoder``.

        Yields:
            By row, the answers that have been completed since the last time; empty while all are being decoded.
        """
        if not queries.exact or self.pool.is_exact():
            yield dict(enumerate(self.answer(queries)))
            return
        for row in range(len(queries)):  # each in a batch of its own
            yield {row: self.answer(queries.select([row]))[0]}

    def routing(self, queries: Queries) -> list[Answer]:
        """Who answers each query, and the verdicts that lead there; the texts are empty."""
        return [Answer(id_, "", None, (), False) for id_ in queries.ids]

    def tell_routes(self, queries: Queries, routed: Mapping[int, Answer]) -> None:
        """Tell those who wait for answers who gives them; see ``Decoding.routed``."""
        for row, answer in routed.items():
            if told := queries.decoding_of(row).routed:
                told(answer)

    def answering_as(
        self, adapter: str | None, queries: Queries, decoder: BatchDecoder[Any]
    ) -> Iterator[dict[int, Answer]]:
        """Answers of one adapter, whatever the router chooses; None is the base model. See ``answering``."""
        forced_prefix = self.accept_ids(adapter)
        begun = Answer("", "", adapter or "base", (), False)
        self.tell_routes(queries, dict.fromkeys(range(len(queries)), begun))
        for ended in self.generating(adapter, queries, decoder, forced_prefix):
            yield {
                row: Answer(
                    queries.ids[row], self.text_behind(forced_prefix, one.ids), adapter or "base", (), not one.ended
                )
                for row, one in ended.items()
            }

    def state(self) -> dict[str, Tensor]:
        """All tensors that the method keeps of past tasks in addition to its adapters, such as a Fisher matrix or keys.

        It is saved after each task by the first rank, so it is the same on all ranks; on any device. Numbers that are not
        finite are refused.
        """
        return {}

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """Loads the ``state`` that was saved after a task, on the device of the base model.

        Called for each past task, oldest first, after its adapter is loaded; not for a task without state.
        """

    def saved_adapter(self, task: str) -> str | None:
        """Name of the adapter that is saved after a task; None saves none."""
        return None

    def save(self, task: str, folder: Path) -> None:
        """Writes the task's adapter as a PEFT folder and the state into it, right after the task, on the first rank."""
        if (name := self.saved_adapter(task)) is not None:
            files.save(self.pool, name, folder)
        files.save_state(self.state(), folder)

    def restore(self, task: str, folder: Path) -> None:
        """Loads what ``save`` wrote after a task; called for every past task, oldest first."""
        if (name := self.saved_adapter(task)) is not None:
            files.load(self.pool, name, folder)
        if tensors := files.load_state(folder, self.pool.device()):
            self.load_state(task, tensors)

    def decide(self, queries: Queries) -> None:
        """Caches the verdict of every expert on every query; for methods whose experts give verdicts."""

    def predict_step(self, batch: Queries, batch_idx: int) -> list[Answer]:
        """Lightning's name for ``answer``."""
        if batch.only_decide:
            self.decide(batch)
            return []
        return self.answer(batch)

    def weights_seed(self, task: str) -> int:
        """Seed of a new expert's initial weights."""
        return seed(self.run_seed, task, "weights")

    def to_answer(self, id_: str, decoded: Decoded, expert: str | None) -> Answer:
        """An answer without verdicts."""
        return Answer(id_, self.template.text(decoded.ids), expert, (), not decoded.ended)


class OneAdapterMethod(Method):
    """A method with one adapter, which every stage trains further."""

    traits = Traits(one_lora=True)
    ADAPTER: ClassVar[str] = "shared"

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Creates the adapter in the first task; later tasks train it further."""
        if self.ADAPTER not in self.pool.names:
            self.pool.add_expert(self.ADAPTER, self.weights_seed(self.ADAPTER))
        self.pool.train_only(self.ADAPTER)

    def answer(self, queries: Queries) -> list[Answer]:
        """Answers of the adapted model."""
        decoded = self.generate(self.ADAPTER, queries)
        return [self.to_answer(id_, row, None) for id_, row in zip(queries.ids, decoded, strict=True)]

    def answering(self, queries: Queries, decoder: BatchDecoder[Any]) -> Iterator[dict[int, Answer]]:
        """Answers of the adapted model."""
        self.tell_routes(queries, dict(enumerate(self.routing(queries))))
        for ended in self.generating(self.ADAPTER, queries, decoder):
            yield {row: self.to_answer(queries.ids[row], one, None) for row, one in ended.items()}

    def saved_adapter(self, task: str) -> str | None:
        """The one adapter, in its state after the task."""
        return self.ADAPTER


class ExpertMethod(Method):
    """A method that trains a new expert for every task; earlier ones are frozen."""

    traits = Traits(has_experts=True, router=Oracle)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        #: Cached responses of frozen experts; the evaluation sets it.
        self.response_cache: ResponseCache | None = None

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Adds a new expert to the base model."""
        self.pool.add_expert(task.name, self.weights_seed(task.name))

    def generate_as(self, adapter: str | None, queries: Queries) -> list[Answer]:
        """Answers under one adapter; None is the base model, whose answers are those without any expert.

        An expert with verdicts is forced to begin with the positive indicator, unless it does so by itself. Cached responses
        are reused: the forced one if there are both, so that a run's own router has the run's own answers.
        """
        forced_prefix = self.accept_ids(adapter)
        unforced = BatchCache(self.response_cache, self.pool, queries, plain=self.never_refusing)
        batch_cache = BatchCache(self.response_cache, self.pool, queries, forced_prefix)
        known = [batch_cache.get(adapter, row) for row in range(len(queries))]
        known = [unforced.get(adapter, row) if cached.text is None else cached for row, cached in enumerate(known)]
        new = [row for row, cached in enumerate(known) if cached.text is None]
        if new:
            generate = batch_cache.remote.plain if batch_cache.remote else self.generate
            for row, one in zip(new, generate(adapter, queries.select(new), forced_prefix), strict=True):
                known[row] = CachedResponse(text=self.text_behind(forced_prefix, one.ids), truncated=not one.ended)
                batch_cache.put(adapter, row, known[row])
        return [
            Answer(id_, cached.text or "", adapter or "base", (), bool(cached.truncated))
            for id_, cached in zip(queries.ids, known, strict=True)
        ]

    def answer(self, queries: Queries) -> list[Answer]:
        """Answers each query under the adapter that the router chooses, in one batch for each adapter."""
        answers: dict[int, Answer] = {}
        routes = self.route(queries)
        adapters = self.router.adapters(queries, routes)
        for adapter in dict.fromkeys(adapters):
            rows = [row for row, one in enumerate(adapters) if one == adapter]
            answers.update(zip(rows, self.generate_as(adapter, queries.select(rows)), strict=True))
        return [answers[row]._replace(expert=route or "base") for row, route in enumerate(routes)]

    def routing(self, queries: Queries) -> list[Answer]:
        """The expert that the router chooses for each query."""
        return [
            Answer(id_, "", route or "base", (), False)
            for id_, route in zip(queries.ids, self.route(queries), strict=True)
        ]

    def answering(self, queries: Queries, decoder: BatchDecoder[Any]) -> Iterator[dict[int, Answer]]:
        """Answers each query under the adapter that the router chooses; the response cache takes no part."""
        routes = self.route(queries)
        adapters = self.router.adapters(queries, routes)

        def under(adapter: str | None) -> Iterator[dict[int, Answer]]:
            rows = [row for row, one in enumerate(adapters) if one == adapter]
            for ended in self.answering_as(adapter, queries.select(rows), decoder):
                yield {rows[row]: answer._replace(expert=routes[rows[row]] or "base") for row, answer in ended.items()}

        yield from side_by_side([under(adapter) for adapter in dict.fromkeys(adapters)])

    def saved_adapter(self, task: str) -> str | None:
        """The expert of the task; the others are frozen."""
        return task
