"""InsCL: replay dealt to past tasks by the distance of their instructions, and within a task by their information.

Wang et al., *InsCL: A Data-efficient Continual Learning Paradigm for Fine-tuning Large Language Models with Instructions*,
NAACL 2024, arXiv 2403.11435. The paper's tags come from a closed model; here they are an instruction's words (PAPERS.md).

Letters: N and M instructions of two tasks, H hidden states.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from see_lightning.adapters.embeddings import cosine, embed_prompts
from see_lightning.config.checks import check_ratio, within
from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.seeds import seed
from see_lightning.tasks.bodies import has_definition
from see_lightning.tasks.memory import Memory, num_rehearsed
from see_lightning.tasks.task import Task
from see_lightning.tasks.variants import BLANK_LINE, definition

TINY = 1e-12  # masses and costs below this are rounding


def wasserstein(cost_NM: Tensor, mass_N: Tensor, mass_M: Tensor) -> float:
    r"""$\min_\pi \sum_{nm} \pi_{nm} c_{nm}$ over the plans $\pi \ge 0$ that have the given row and column sums; exact.

    Mass is sent along the cheapest paths one after the other, and a path may take back mass that was sent before.

    Args:
        cost_NM: $c$, at least 0, in fp64.
        mass_N: row sums, in fp64.
        mass_M: column sums, with the same total.

    >>> wasserstein(torch.tensor([[0.0, 1.0], [0.5, 2.0]]), torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
    1.125
    """
    plan_NM, left_N, open_M = torch.zeros_like(cost_NM), mass_N.clone(), mass_M.clone()
    infinite = cost_NM.new_tensor(math.inf)
    while left_N.max() > TINY and open_M.max() > TINY:
        length_N = torch.where(left_N > TINY, 0.0, infinite)
        length_M = torch.full_like(open_M, math.inf)
        from_N, from_M = torch.zeros(len(left_N), dtype=torch.long), torch.zeros(len(open_M), dtype=torch.long)
        back_NM = torch.where(plan_NM > TINY, -cost_NM, infinite)
        moved = True
        while moved:  # Bellman and Ford's relaxation, of all edges at once
            shorter_M, way_M = (length_N[:, None] + cost_NM).min(0)
            better_M = shorter_M < length_M - TINY
            length_M, from_M = torch.where(better_M, shorter_M, length_M), torch.where(better_M, way_M, from_M)
            shorter_N, way_N = (length_M + back_NM).min(1)
            better_N = shorter_N < length_N - TINY
            length_N, from_N = torch.where(better_N, shorter_N, length_N), torch.where(better_N, way_N, from_N)
            moved = bool(better_N.any())
        m = end = int(torch.where(open_M > TINY, length_M, infinite).argmin())
        path = [(n := int(from_M[m]), m, 1)]
        while left_N[n] <= TINY:
            m = int(from_N[n])
            path += [(n, m, -1), (n := int(from_M[m]), m, 1)]
        taken = [plan_NM[n, m] for n, m, sign in path if sign < 0]
        amount = torch.stack([left_N[n], open_M[end], *taken]).min()
        left_N[n] -= amount
        open_M[end] -= amount
        for row, column, sign in path:
            plan_NM[row, column] += sign * amount
    return float((plan_NM * cost_NM).sum())


def deal(total: int, weights: Sequence[float], most: Sequence[int], least: int = 0) -> list[int]:
    r"""Whole numbers near $s w_i$, each within ``least`` and its ``most``, with the $s$ for which they add up to the total.

    What is above a maximum goes to the others; fractions are rounded by the largest remainders. Without any weight all are
    alike.

    Args:
        total: the sum, or that of all maxima if it is smaller.
        weights: $w$, at least 0.
        most: the largest number of each.
        least: the smallest number of each; all of them together are at most the total.

    >>> deal(8, [1.0, 3.0], [10, 10]), deal(8, [1.0, 3.0], [10, 5]), deal(8, [0.0, 3.0], [10, 10], least=1)
    ([2, 6], [3, 5], [1, 7])
    """
    total = min(total, sum(most))
    nudge = 1e-9 * (max(weights) or 1.0)  # where the others are full, a weight of 0 gets the rest

    def shares(factor: float) -> list[float]:
        return [min(max(factor * (weight + nudge), least), high) for weight, high in zip(weights, most, strict=True)]

    low, high = 0.0, max(most) / nudge
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) < total else (low, middle)
    exact = [round(share, 6) for share in shares(high)]
    dealt = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: dealt[place] - exact[place])
    for place in by_remainder[: total - sum(dealt)]:
        dealt[place] += 1
    return dealt


def information(tags: Sequence[Collection[str]]) -> list[float]:
    r"""InsInfo of each instruction, $\sum_{t} \log \frac{N}{f_t}$ over its tags, in nats: large with many and rare tags.

    Args:
        tags: of each of the $N$ instructions, all different; $f_t$ instructions have the tag $t$.

    >>> information([{"sum"}, {"sum", "words"}]) == [0.0, math.log(2)]
    True
    """
    frequency = Counter(tag for one in tags for tag in one)
    return [sum(math.log(len(tags) / frequency[tag]) for tag in sorted(one)) for one in tags]


def words(instruction: str) -> set[str]:
    """The different words of an instruction in lower case, as its tags.

    >>> sorted(words("Add the 2 numbers; the sum is positive."))
    ['add', 'is', 'numbers', 'positive', 'sum', 'the']
    """
    return set(re.findall(r"[^\W\d_]+", instruction.lower()))


def by_instruction(examples: Sequence[Example]) -> dict[str, list[Example]]:
    r"""The examples of a task by their instruction, the most frequent instruction first.

    An instruction is the text before a prompt's first blank line; else the task's common definition; else the whole prompt.

    Args:
        examples: all of the task.

    >>> prompts = ["Add.\n\n1, 2", "Take.\n\n2, 1", "Add.\n\n3, 4"]
    >>> rows = [Example(str(n), prompt, "", "sums") for n, prompt in enumerate(prompts)]
    >>> {text: [one.id for one in own] for text, own in by_instruction(rows).items()}
    {'Add.': ['0', '2'], 'Take.': ['1']}
    """
    common = definition(examples).strip()
    found: dict[str, list[Example]] = {}
    for example in examples:
        own = example.prompt.partition(BLANK_LINE)[0] if has_definition(example.prompt) else common or example.prompt
        found.setdefault(own, []).append(example)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


class InsCl(OneAdapterMethod):
    """One adapter, trained on the new task and on past rows: more of a task with far instructions, more of rich instructions.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of past rows in all, 0..1: as many as ``replay`` takes, dealt in another way.
        max_instructions: most instructions of a task by which its distance from others is computed, the most frequent ones;
            at least 1.
    """

    # The new task's instructions are embedded on the first rank alone, before the training begins.
    traits = Traits(shardable=False, one_lora=True)

    def __init__(self, setup: Setup, *, ratio: float, max_instructions: int) -> None:
        super().__init__(setup)
        check_ratio("method.ratio", ratio)
        within("method.max_instructions", max_instructions, 1)
        self.ratio, self.max_instructions = ratio, max_instructions
        #: By past task, the base model's embeddings of its instructions, (N, H).
        self.embedded: dict[str, Tensor] = {}

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """All rows of the new task, and of each past one as many as its distance deals it."""
        rows = list(task.train)
        if memory.past and self.ratio > 0:
            information_of = self._information([*memory.past, task])
            for past, number in zip(memory.past, self.shares(task, memory.past), strict=True):
                draw = random.Random(seed(self.run_seed, past.name, f"replay for {task.name}"))
                rows += self.chosen(past, number, information_of[past.name], draw)
        return rows

    def shares(self, task: Task, past: Sequence[Task]) -> list[int]:
        r"""Rows of each past task: $\alpha^*_i \propto W_i$, the Wasserstein distance from the new task's instructions."""
        states_NH, mass_N = self._embed(task), self._masses(task)
        distances = []
        for one in past:
            cost_NM = cosine(states_NH.double().cpu(), self.embedded[one.name].double().cpu()).clamp_min(0)
            distances.append(wasserstein(cost_NM, mass_N, self._masses(one)))
        total = sum(num_rehearsed(self.ratio, len(one.train)) for one in past)
        return deal(total, distances, [len(one.train) for one in past])

    @staticmethod
    def chosen(past: Task, number: int, rich: Sequence[float], draw: random.Random) -> list[Example]:
        """Rows of a past task: more of an instruction with more information.

        If there are more instructions than rows, those with the most information have one row each.

        Args:
            past: the task.
            number: of rows, at most all.
            rich: InsInfo of each of its instructions, in the order of ``by_instruction``.
            draw: chooses among the rows of an instruction.
        """
        groups = list(by_instruction(past.train).values())
        if number < len(groups):
            richest = sorted(range(len(groups)), key=lambda place: -rich[place])[:number]
            return [draw.choice(groups[place]) for place in sorted(richest)]
        numbers = deal(number, rich, [len(group) for group in groups], least=1)
        return [row for group, size in zip(groups, numbers, strict=True) for row in draw.sample(group, size)]

    def end_task(self, task: Task, memory: Memory) -> None:
        """Embeds the task's instructions with the base model."""
        self.embedded[task.name] = self._embed(task)

    @staticmethod
    def _information(tasks: Iterable[Task]) -> dict[str, list[float]]:
        """By task, InsInfo of each of its instructions among those of all tasks."""
        of = {task.name: list(by_instruction(task.train)) for task in tasks}
        found = iter(information([words(text) for texts in of.values() for text in texts]))
        return {name: [next(found) for _ in texts] for name, texts in of.items()}

    def _embed(self, task: Task) -> Tensor:
        texts = list(by_instruction(task.train))[: self.max_instructions]
        training = self.training
        self.eval()
        try:
            return embed_prompts(self.pool, [self.template.text_ids(text) for text in texts])
        finally:
            self.train(training)

    def _masses(self, task: Task) -> Tensor:
        """The share of a task's rows that has each of the instructions of ``_embed``, (N,), in fp64."""
        groups = list(by_instruction(task.train).values())[: self.max_instructions]
        sizes_N = torch.tensor([len(group) for group in groups], dtype=torch.float64)
        return sizes_N / sizes_N.sum()

    def state(self) -> dict[str, Tensor]:
        """The embeddings of all past tasks' instructions."""
        return {f"instructions {task}": states_NH for task, states_NH in self.embedded.items()}

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The embeddings kept after a task, those of earlier tasks included."""
        self.embedded = {name.removeprefix("instructions "): states_NH for name, states_NH in tensors.items()}
