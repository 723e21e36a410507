"""Reuse of an expert for a task that comes back: asked at the task's beginning, by what SEE's experts say and answer.

An expert that accepts the new rows and answers them about as well as its own learned this task before. It then answers for
the new task too, and nothing is trained. The paper (arXiv 2504.06664) trains a new expert for every task.
"""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from see_lightning.adapters.answer_logits import prefix_tokens, token_nlls
from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.checks import within
from see_lightning.data.example import Example
from see_lightning.methods.assignments import GIVEN, read_given, write_given
from see_lightning.methods.method import Assignment
from see_lightning.routing.walk import ROWS, Deciding, accepted_share
from see_lightning.seeds import seed
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task

LOOKED_AT = 64  # most rows of a task that are looked at
GAIN = "gain"  # the last part of a tensor's name in the state


class Answering(Deciding, Protocol):
    """What a reuse needs of its method."""

    pool: ExpertPool
    template: PromptTemplate
    run_seed: int
    accept_prefix: str


def relative_gain(base: float, expert: float, own_gain: float) -> float:
    r"""The gain of an expert on new rows, as a share of its gain on its own rows.

    $\frac{\ell_{base} - \ell_{expert}}{g}$: 1 if it helps on the new rows as much as on its own, 0 if not at all, below 0 if
    it harms. The gain is a difference from the base model, because losses of different rows cannot be compared.

    Args:
        base: mean loss of the base model on the new rows, in nats per answer token.
        expert: that of the expert.
        own_gain: the same difference on the expert's own rows; 0 or less is an expert that learned nothing, which gives 0.

    >>> relative_gain(base=3.0, expert=1.5, own_gain=2.0), relative_gain(3.0, 1.5, 0.0)
    (0.75, 0.0)
    """
    return (base - expert) / own_gain if own_gain > 0 else 0.0


def reusable(accepted: Mapping[str, float], gains: Mapping[str, float], share: float, gain: float) -> str | None:
    """The expert that answers the new task: of those that accept and answer its rows, the one with the highest gain.

    Args:
        accepted: by expert, oldest first, the share of the rows that it accepts, 0..1.
        gains: by expert, its relative gain; that of an expert with too few accepted rows may be missing.
        share: least share of accepted rows.
        gain: least relative gain.

    Returns:
        Its name, the oldest of equals; None if there is none.

    >>> reusable({"qa": 1.0, "sa": 0.95, "sum": 0.1}, {"qa": 0.2, "sa": 0.9}, share=0.9, gain=0.5)
    'sa'
    >>> reusable({"qa": 0.8}, {}, share=0.9, gain=0.5) is None
    True
    """
    names = [name for name in accepted if accepted[name] >= share and gains[name] >= gain]
    return max(names, key=lambda name: gains[name], default=None)


class Reuse:
    """Decides whether a task gets an earlier expert, and keeps what each task got.

    Args:
        method: whose experts give verdicts.
        share: least share of the new rows that the expert accepts by its verdict, with its threshold if it has one, 0..1.
        gain: least ``relative_gain`` of the expert on the new rows, 0 or more.
    """

    def __init__(self, method: Answering, share: float, gain: float) -> None:
        within("method.reuse_share", share, 0, 1)
        within("method.reuse_gain", gain, 0)
        self.method, self.share, self.gain = method, share, gain
        #: By task, its expert.
        self.given: dict[str, Assignment] = {}
        #: By expert, its gain over the base model on its own rows, in nats per answer token.
        self.own_gains: dict[str, float] = {}
        self._accepted: dict[str, float] = {}
        self._gains: dict[str, float] = {}
        self._rows = 0

    def assign(self, task: Task) -> Assignment:
        """The expert that accepts and answers the rows of a task, else a new one.

        Every expert is asked for its verdicts; only of those that accept enough rows the loss is computed, and then the base
        model's once.
        """
        names = list(self.method.pool.names)
        examples = self._sample(task.name, task.train) if names else []
        prompts = [self.method.template.prompt_ids(example) for example in examples]
        self._accepted = {name: round(accepted_share(self.method, prompts, name), 4) for name in names}
        asked = [name for name in names if self._accepted[name] >= self.share]
        base = self._loss(None, examples) if asked else 0.0
        self._gains = {
            name: round(relative_gain(base, self._loss(name, examples), self.own_gains[name]), 4) for name in asked
        }
        self._rows = len(examples)
        expert = reusable(self._accepted, self._gains, self.share, self.gain)
        self.given[task.name] = Assignment(expert or task.name, {})
        return self.given[task.name]

    def is_reused(self, task: str) -> bool:
        """Whether a task got an earlier expert."""
        return task in self.given and self.given[task].expert != task

    def learn(self, task: Task) -> None:
        """Keep a new expert's gain over the base model on its own rows: held-out ones if the task has some."""
        examples = self._sample(task.name, task.held_out or task.train)
        self.own_gains[task.name] = round(self._loss(None, examples) - self._loss(task.name, examples), 6)

    def reason(self, expert: str) -> str:
        """What was found of an expert, for the console; of the one that accepts most if the task got a new one."""
        if not self._accepted:
            return "it is the first"
        near = expert if expert in self._accepted else max(self._accepted, key=lambda name: self._accepted[name])
        gain = f", with {self._gains[near]:.0%} of its own gain" if near in self._gains else ""
        return f"the expert of {near} accepts {self._accepted[near]:.0%} of {self._rows} rows{gain}"

    def report(self) -> dict[str, object]:
        """What was found at the beginning of the latest task."""
        return {"reuse_rows": self._rows, "reuse_accepted": self._accepted, "reuse_gain": self._gains}

    def state(self) -> dict[str, Tensor]:
        """The gain of each expert on its own rows."""
        return {f"{name}/{GAIN}": torch.tensor(gain, dtype=torch.float64) for name, gain in self.own_gains.items()}

    def load_state(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Take up a task from the state after it."""
        self.own_gains[task] = round(float(tensors[f"{task}/{GAIN}"]), 6)

    def save(self, task: str, folder: Path) -> None:
        """Write what a task got."""
        write_given(self.given[task], folder)

    def restore(self, task: str, folder: Path) -> None:
        """Read what a task got."""
        if (folder / GIVEN).exists():
            self.given[task] = read_given(folder)

    def _sample(self, task: str, examples: Sequence[Example]) -> list[Example]:
        draw = random.Random(seed(self.method.run_seed, task, "reuse"))
        return draw.sample(list(examples), min(LOOKED_AT, len(examples)))

    def _loss(self, adapter: str | None, examples: Sequence[Example]) -> float:
        """Mean loss in nats per answer token; the tokens of an expert's indicator do not count."""
        template, opening = self.method.template, self.method.accept_prefix if adapter else ""
        targets = [template.target_ids(opening + example.target) for example in examples]
        prompts = [template.prompt_ids(example) for example in examples]
        opening_ids = template.target_ids(opening)[:-1] if opening else []
        nlls = token_nlls(self.method.pool, adapter, prompts, targets, rows=ROWS)
        counted = [
            nll[prefix_tokens(target, opening_ids) :].double().tolist()
            for target, nll in zip(targets, nlls, strict=True)
        ]
        return math.fsum(map(math.fsum, counted)) / sum(map(len, counted))
