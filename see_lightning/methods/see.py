"""SEE: Sequential Ensemble of Experts (Wang et al., Findings of ACL 2025, arXiv 2504.06664).

Each task gets an expert of its own, trained on its reconstructed task; queries walk the experts, newest first.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from see_lightning.adapters.files import THRESHOLD
from see_lightning.config.checks import TRAIN, check_calibrate_on, within
from see_lightning.data.example import Example
from see_lightning.data.general import BUILT_IN, draw_evenly, general_rows
from see_lightning.errors import ConfigError
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import write_text
from see_lightning.methods.method import Answer, ExpertMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.methods.warm_start import WarmStart
from see_lightning.routing.indicator_trie import IndicatorTrie
from see_lightning.routing.sequential_router import SequentialRouter
from see_lightning.routing.verdicts import threshold_at_recall, threshold_with_margin
from see_lightning.routing.walk import Walk
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.datamodule import query_batch
from see_lightning.tasks.memory import Memory, num_rehearsed
from see_lightning.tasks.negatives import (
    MOST_OTHER,
    general_negatives,
    under_other_instructions,
    unseen_general,
)
from see_lightning.tasks.reconstruct import Indicators, reconstruct
from see_lightning.tasks.task import Task

LOOKED_AT = 100  # training rows, and refused ones, at most that a threshold is set by
ENOUGH = 12  # refused examples of a past task, below which experts were seen to take its queries for their own


class See(ExpertMethod):
    """Experts that say whether a query is theirs before they answer it.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's examples that a new expert learns to refuse, 0..1.
        resample: ``per_task`` draws them for every expert, ``once`` once for all.
        min_negatives: how many examples of each past task it learns to refuse at least, as far as there are so many and
            unless the ratio is 0. The paper goes by the ratio alone, which of few rows leaves too few.
        indicators: the words for mine and not mine.
        general_negatives: instructions of no task that every expert learns to refuse too, so that even the first one has
            something to refuse. The paper has none.
        general_source: where they come from, see ``tasks.negatives``.
        other_instructions: of an expert's own inputs, how many it also learns to refuse under another instruction.
        calibrate_on: what sets an expert's threshold: so many further examples of its task, which it is not trained on; or
            ``train``, the examples that it was trained on and those that it learned to refuse, which costs no row; 0 takes
            every expert at its word, as the paper does.
        target_recall: share of its own, above 0 and at most 1, that the threshold still accepts.
        ood_examples: number of general instructions, which no expert learns to refuse, that also set a threshold; 0: own
            examples alone.
        margin: share, 0..1, of the gap between the log-odds that ``target_recall`` gives and the highest of these by which
            the threshold is lowered; see ``routing.verdicts.threshold_with_margin``.
        warm_start: how a new expert begins: ``none`` afresh, as in the paper; or as a copy of an earlier one, chosen by
            ``loss`` or ``knn``, see ``WarmStart``.
        probe: how many training examples that choice looks at.
    """

    traits = Traits(
        has_experts=True,
        router=Walk,
        learns_refusals=True,
        after_training=frozenset({"calibrate_on", "target_recall", "ood_examples", "margin"}),
    )

    @classmethod
    def cautions(cls, arguments: Mapping[str, Any], tasks: Sequence[Task]) -> list[str]:
        """Past tasks of which later experts learn to refuse few examples, and how they would learn more."""
        ratio, at_least = arguments["ratio"], arguments.get("min_negatives", 0)
        refused = {task: num_rehearsed(ratio, len(task.train), at_least) for task in tasks[:-1]}
        few = {task: number for task, number in refused.items() if number < ENOUGH}
        if not few:
            return []
        told = ", ".join(f"{number} of {len(task.train)} rows of {task.name}" for task, number in few.items())
        sizes = [len(task.train) for task, number in few.items() if number < len(task.train)]
        scarce = [task.name for task, number in few.items() if number == len(task.train)]
        advice = ""
        if sizes:
            enough = math.ceil(100 * min(ENOUGH, min(sizes)) / min(sizes)) / 100
            advice += f" Give ratio={enough:g}{f' or method.min_negatives={ENOUGH}' if ratio else ''}."
        if scarce:
            advice += f" Of {', '.join(scarce)} there are no more rows: more of them help."
        return [
            f"later experts learn to refuse {told}; experts that refused fewer than about {ENOUGH} often take queries of"
            f" that task for their own.{advice}"
        ]

    def __init__(
        self,
        setup: Setup,
        *,
        ratio: float,
        resample: str,
        indicators: dict[str, str],
        min_negatives: int = 0,
        general_negatives: int = 0,
        general_source: str = BUILT_IN,
        other_instructions: int = 0,
        calibrate_on: int | str = 0,
        target_recall: float = 0.98,
        ood_examples: int = 0,
        margin: float = 0.25,
        warm_start: str = "none",
        probe: int = 32,
    ) -> None:
        super().__init__(setup)
        within("method.min_negatives", min_negatives, 0)
        within("method.general_negatives", general_negatives, 0)
        within("method.other_instructions", other_instructions, 0, MOST_OTHER)
        check_calibrate_on("method.calibrate_on", calibrate_on)
        within("method.target_recall", target_recall, 0.01, 1)
        within("method.ood_examples", ood_examples, 0)
        within("method.margin", margin, 0, 1)
        self.ratio, self.resample, self.indicators = ratio, resample, Indicators(**indicators)
        self.min_negatives = min_negatives
        self.accept_prefix = f"{self.indicators.pos} "
        self.general_negatives, self.general_source = general_negatives, general_source
        self.other_instructions = other_instructions
        self.calibrate_on, self.target_recall, self.ood_examples, self.margin = (
            calibrate_on,
            target_recall,
            ood_examples,
            margin,
        )
        self.warm_start = WarmStart(warm_start, probe)
        self._check_general()
        #: Log-odds below which an expert's yes counts as a no.
        self.thresholds: dict[str, float] = {}

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """The reconstructed task."""
        past = self._rehearsed(task, memory)
        draw = seed(self.run_seed, task.name, "general negatives")
        past += general_negatives(self.general_negatives, self.general_source, draw)
        past += under_other_instructions(
            task.train, self.other_instructions, self.general_source, draw, refused=self.general_negatives
        )
        return reconstruct(task.train, past, self.indicators)

    def _rehearsed(self, task: Task, memory: Memory) -> list[Example]:
        return memory.rehearse(task, ratio=self.ratio, resample=self.resample, at_least=self.min_negatives)

    def choose_parent(self, task: Task) -> str | None:
        """The expert that is most useful to the new task, if experts begin as others."""
        return self.warm_start.choose(self, task)

    def begin_task(self, task: Task, memory: Memory) -> None:
        """A new expert, perhaps with the weights of an earlier one; that one does not move."""
        super().begin_task(task, memory)
        if self.parent:
            self.pool.load_weights(task.name, self.pool.pairs(self.parent))

    def _check_general(self) -> None:
        """Refuse a source that has too few instructions or unfit ones, before anything is trained."""
        words = self.indicators.pos, self.indicators.neg
        most = self.template.max_length - max(len(self.template.target_ids(word)) for word in words)
        ood_examples = self.ood_examples if self.calibrate_on else 0
        general_negatives(self.general_negatives, self.general_source, 0)
        unseen_general(ood_examples, self.general_source, 0, refused=self.general_negatives)
        needed = self.general_negatives or self.other_instructions or ood_examples
        for example in general_rows(self.general_source) if needed else ():
            place = example.source or self.general_source
            tokens = len(self.template.prompt_ids(example.prompt))
            if tokens > most or any(word in example.prompt for word in words):
                reason = f"it has {tokens} tokens, of at most {most}" if tokens > most else "an indicator stands in it"
                raise ConfigError(f"method.general_source: {place} cannot be learned as a refusal: {reason}.")

    def end_task(self, task: Task, memory: Memory) -> None:
        """Set the new expert's threshold by what it says to examples, as ``calibrate_on`` has it."""
        if not self.calibrate_on:
            return
        own, negatives = task.held_out, []
        if self.calibrate_on == TRAIN:
            own = task.train[:LOOKED_AT]
            negatives = draw_evenly(
                self._rehearsed(task, memory), LOOKED_AT, seed(self.run_seed, task.name, "thresholds")
            )
            if not negatives and not self.ood_examples:
                return  # the first expert has refused nothing that it could be told from
        log_odds = self._log_odds(task, own)
        self.thresholds[task.name] = threshold_at_recall(log_odds, self.target_recall)
        negatives += self._unseen_general(task)
        if negatives:
            negative_log_odds = self._log_odds(task, negatives)
            self.thresholds[task.name] = round(
                threshold_with_margin(log_odds, negative_log_odds, self.target_recall, self.margin), 4
            )

    def _unseen_general(self, task: Task) -> list[Example]:
        draw = seed(self.run_seed, task.name, "general negatives")
        return unseen_general(self.ood_examples, self.general_source, draw, refused=self.general_negatives)

    def _log_odds(self, task: Task, examples: Sequence[Example]) -> list[float]:
        """How much the expert of a task leans to accepting some examples' prompts."""
        queries = query_batch([example.prompt for example in examples], self.template, max_new_tokens=1)
        return self.sequential_router(replace(queries, only_decide=True), remember=False).log_odds(task.name)

    def save(self, task: str, folder: Path) -> None:
        """The expert of the task and its threshold."""
        super().save(task, folder)
        if task in self.thresholds:
            write_text(folder / THRESHOLD, json.dumps({"log_odds": self.thresholds[task]}) + "\n")

    def restore(self, task: str, folder: Path) -> None:
        """An expert comes back with its threshold."""
        super().restore(task, folder)
        if (folder / THRESHOLD).exists():
            self.thresholds[task] = read_file(folder / THRESHOLD)["log_odds"]

    def answer(self, queries: Queries) -> list[Answer]:
        """Walk the experts, newest first, each answer written on from its verdict; other routers choose before."""
        if not isinstance(self.router, Walk):
            return super().answer(queries)
        router = self.sequential_router(queries)
        routes = router.walk()
        return [
            Answer(id_, response.text or "", route.expert or "base", route.verdicts, bool(response.truncated))
            for id_, route, response in zip(queries.ids, routes, router.answers(routes), strict=True)
        ]

    def decide(self, queries: Queries) -> None:
        """Let every expert decide on every query, for studies of other walks; only what is new is asked.

        Unless ``queries.only_decide``, experts also answer what they accept, and the base model everything.
        """
        self.sequential_router(queries).decide_all()

    def sequential_router(self, queries: Queries, *, remember: bool = True) -> SequentialRouter:
        """A batch of queries before the experts, nothing asked twice if what they say is to be remembered."""
        words = IndicatorTrie(self.indicators, self.template)
        response_cache = self.response_cache if remember else None
        return SequentialRouter(self.pool, words, queries, self.eos_ids(), self.counts, response_cache, self.thresholds)
