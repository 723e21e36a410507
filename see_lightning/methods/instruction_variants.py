"""Instruction variants in training: where the wordings of a task's definition come from, and how a method draws them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.checks import one_of, within
from see_lightning.data.checks import BadRow
from see_lightning.data.example import Example
from see_lightning.data.general import BUILT_IN
from see_lightning.data.reader import json_lines
from see_lightning.errors import ConfigError, DataError
from see_lightning.inference.decoder import Decoded
from see_lightning.models.sharding import is_sharded
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.datamodule import query_batch
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.reconstruct import Indicators
from see_lightning.tasks.task import Task
from see_lightning.tasks.variants import definition
from see_lightning.tasks.wordings import KINDS, Wordings

MODEL = "model"  # the base model rewords
MOST_TOKENS = 160  # of a rewording by the base model
# Requests with which the base model is asked to reword a definition; greedy answers to several are more varied than samples.
REQUESTS = (
    "Write this instruction in other words and keep its meaning:",
    "Write a shorter version of this instruction:",
    "Turn this instruction into a polite request to a colleague:",
    "Write this instruction as a list of simple steps:",
)


class Rewording(Protocol):
    """The part of a method that rewords training prompts.

    Attributes:
        pool: the base model.
        template: counts the tokens of a prompt.
        run_seed: the run's seed.
        indicators: the texts of the verdicts, which no rewording may contain.
    """

    pool: ExpertPool
    template: PromptTemplate
    run_seed: int
    indicators: Indicators

    def generate(self, adapter: str | None, queries: Queries) -> list[Decoded]:
        """Greedy answers under one adapter; None is the base model."""


class InstructionVariants:
    """Draws the wording of each training example's definition; own examples and negatives draw alike.

    Args:
        kinds: of wordings, from ``tasks.wordings.KINDS``; empty changes nothing.
        source: of ``reworded`` definitions. ``built_in``: rules that need no model. ``model``: the base model. Else a file
            with a line ``{"task": ..., "rewordings": [...]}`` for each task; the rules serve definitions that it lacks.
        copies: how often each example is trained on in an epoch, every time under another kind.
    """

    def __init__(self, kinds: Sequence[str], source: str, copies: int = 1) -> None:
        for kind in kinds:
            one_of("method.instruction_variants", kind, KINDS)
        if kinds:
            within("method.wordings_per_example", copies, 1, len(set(kinds)))
        self.kinds, self.source, self.copies = tuple(kinds), source, copies
        given = "reworded" in self.kinds and source not in (BUILT_IN, MODEL)
        self.given = read_rewordings(source) if given else {}
        self._by_model: dict[str, list[str]] = {}  # by definition; the same for every task of a run

    def cautions(self, tasks: Sequence[Task]) -> list[str]:
        """Tasks whose wording cannot vary, and tasks that the file of rewordings does not have."""
        if not self.kinds:
            return []
        common = {task.name: definition(task.train) for task in tasks}
        bare = [name for name, text in common.items() if not text.strip()]
        told = []
        if bare:
            told.append(
                f"method.instruction_variants changes no prompt of {', '.join(bare)}: the training prompts have no definition"
                f" in common, a beginning that a blank line or a line break ends."
            )
        missing = [name for name in common if name not in self.given and name not in bare]
        if self.given and missing:
            told.append(
                f"{self.source} has no rewordings of {', '.join(missing)}; the built-in rules reword these definitions."
            )
        return told

    def vary(
        self, method: Rewording, task: Task, memory: Memory, past: Sequence[Example]
    ) -> tuple[list[Example], list[Example]]:
        """A task's own examples and its negatives, each with a drawn wording.

        Args:
            method: that is trained.
            task: that is trained.
            memory: of the past tasks, whose definitions are needed.
            past: the negatives.
        """
        if not self.kinds:
            return list(task.train), list(past)
        common = self._definitions(task, memory)
        wordings = self._wordings(method, self.kinds, common)
        own = wordings.vary(task.train, common, seed(method.run_seed, task.name, "wordings"), self.copies)
        return own, wordings.vary(past, common, seed(method.run_seed, task.name, "wordings of negatives"), self.copies)

    def each(self, method: Rewording, task: Task, memory: Memory, examples: Sequence[Example]) -> list[list[Example]]:
        """The examples under each kind of wording by itself, for thresholds that hold under all of them.

        Args:
            method: that is trained.
            task: that is trained.
            memory: of the past tasks.
            examples: of the task, of past tasks, or general instructions.
        """
        if not self.kinds:
            return [list(examples)]
        common = self._definitions(task, memory)
        return [
            self._wordings(method, [kind], common).vary(
                examples, common, seed(method.run_seed, task.name, f"wordings for thresholds: {kind}")
            )
            for kind in dict.fromkeys(self.kinds)
        ]

    @staticmethod
    def _definitions(task: Task, memory: Memory) -> dict[str, str]:
        return {one.name: definition(one.train) for one in (*memory.past, task)}

    def _wordings(self, method: Rewording, kinds: Sequence[str], common: Mapping[str, str]) -> Wordings:
        def fits(example: Example) -> bool:
            answer = method.template.target_ids(f"{method.indicators.pos} {example.target}")
            return len(method.template.prompt_ids(example)) + len(answer) <= method.template.max_length

        wordings = Wordings(kinds, fits)
        if "reworded" in kinds:
            wordings.rewordings = {text: self._rewordings(method, name, text) for name, text in common.items() if text}
        return wordings

    def _rewordings(self, method: Rewording, task: str, text: str) -> list[str]:
        if self.source != MODEL:
            found = self.given.get(task, [])
        else:
            if text not in self._by_model:
                self._by_model[text] = reworded_by_model(method, text)
            found = self._by_model[text]
        words = method.indicators.pos, method.indicators.neg
        return [one for one in found if not any(word in one for word in words)]


def reworded_by_model(method: Rewording, text: str) -> list[str]:
    """Rewordings of a definition by the base model, one for each of ``REQUESTS``; empty and equal ones are left out.

    Args:
        method: its base model answers, greedily.
        text: the definition.

    Raises:
        ConfigError: each rank holds only a part of the base model, and only the first rank draws training examples.
    """
    if is_sharded(method.pool):
        raise ConfigError(
            f"method.rewordings={MODEL} needs a base model that is not sharded; give a file of rewordings, or"
            f" method.rewordings={BUILT_IN}."
        )
    asked = query_batch(
        [f"{request}\n\n{text}" for request in REQUESTS],
        method.template,
        max_new_tokens=MOST_TOKENS,
        rows=len(REQUESTS),
    )
    answers = [method.template.text(one.ids).strip() for one in method.generate(None, asked)]
    return [one for one in dict.fromkeys(answers) if one and one != text.strip()]


def read_rewordings(source: str) -> dict[str, list[str]]:
    """The rewordings of a file, by task.

    Args:
        source: path of a file with a line ``{"task": ..., "rewordings": [...]}`` for each task.

    Raises:
        DataError: there is no such file, a line cannot be read, or a rewording is empty.
    """
    found: dict[str, list[str]] = {}
    rows = json_lines(
        Path(source), task="method.rewordings", prompt_key="task", answer_key="rewordings", id_prefix="rewordings-"
    )
    for row in rows:
        if isinstance(row, BadRow):
            raise DataError(f"{row.source}: {row.reason}")
        if not all(text.strip() for text in row.references):
            raise DataError(f"{row.source}: a rewording is empty; leave the definition out with the kind none instead.")
        found.setdefault(row.prompt, []).extend(row.references)
    return found
