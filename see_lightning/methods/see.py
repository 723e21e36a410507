"""SEE: Sequential Ensemble of Experts (Wang et al., Findings of ACL 2025, arXiv 2504.06664).

Each task trains an expert on its reconstructed data; queries are routed through the experts, newest first.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from see_lightning.adapters.files import THRESHOLD
from see_lightning.config.checks import TRAIN, check_calibrate_on, one_of, within
from see_lightning.data.example import Example
from see_lightning.data.general import BUILT_IN, draw_evenly, general_rows
from see_lightning.errors import ConfigError
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import write_text
from see_lightning.methods.cautions import few_refusals
from see_lightning.methods.deciding import DecidingExperts
from see_lightning.methods.instruction_variants import InstructionVariants
from see_lightning.methods.method import Assignment
from see_lightning.methods.reuse import GAIN, Reuse
from see_lightning.methods.second_chance import SecondChance
from see_lightning.methods.setup import Setup, Traits
from see_lightning.methods.warm_start import WarmStart
from see_lightning.routing.verdicts import lowered_by_margin, threshold_at_recall
from see_lightning.routing.walk import Walk, log_odds
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.negatives import (
    MOST_OTHER,
    general_negatives,
    under_other_instructions,
    unseen_general,
)
from see_lightning.tasks.reconstruct import Indicators, reconstruct
from see_lightning.tasks.task import Task

THRESHOLDS = frozenset({"calibrate_on", "target_recall", "ood_examples", "margin"})  # settings of thresholds
LOOKED_AT = 100  # most training rows, and most negatives, by which a threshold is set


class See(DecidingExperts):
    """Experts that give a verdict on a query before they answer it.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's examples that become negatives of a new expert, 0..1.
        resample: ``per_task`` samples them for every expert, ``once`` once for all.
        min_negatives: least number of negatives from each past task, as far as it has so many rows and unless the ratio is 0.
            The paper uses the ratio alone, which gives too few negatives for small tasks.
        max_negatives: most negatives of all past tasks together, in shares as even as possible, so that the training of an
            expert does not take longer with every task; 0 is no limit, as in the paper.
        indicators: the positive and the negative one.
        general_negatives: number of general instructions that are negatives of every expert, also of the first. The paper
            has none.
        general_source: source of general instructions, see ``tasks.negatives``.
        other_instructions: number of an expert's own inputs that are also negatives, under another instruction.
        calibrate_on: data that set an expert's threshold: this number of held-out rows of its task; ``train``, its training
            rows and negatives; 0 for no threshold, as in the paper.
        target_recall: share of its own rows, above 0 and at most 1, that the threshold accepts.
        ood_examples: number of general instructions that are no expert's negatives and also set a threshold; 0: own rows
            alone.
        margin: share, 0..1, of the gap between the log-odds that ``target_recall`` gives and the highest of these by which
            the threshold is lowered; see ``routing.verdicts.lowered_by_margin``.
        warm_start: initialisation of a new expert: ``none`` at random, as in the paper; or from an earlier one, chosen by
            ``loss`` or ``knn``, see ``WarmStart``.
        probe: number of training examples that this choice uses.
        instruction_variants: wordings of the definition that own examples and negatives draw from alike, see
            ``tasks.wordings.KINDS``; empty: the definition as it stands, as in the paper.
        rewordings: source of ``reworded`` definitions, see ``InstructionVariants``.
        second_chance: ``on`` puts a query that no expert accepts to the most likely expert behind its task's definition, if
            the query's input alone is sure to belong to that task; see ``SecondChance``.
        wordings_per_example: how often an epoch has each example, every time under another of these kinds.
        reuse: ``accept`` gives a task an earlier expert that accepts and answers its rows, and trains nothing; ``off`` trains
            an expert for every task, as in the paper. See ``Reuse``.
        reuse_share: least share of the task's rows that this expert accepts, 0..1.
        reuse_gain: least gain of this expert over the base model on these rows, as a share of that on its own rows, at least
            0.
    """

    traits = Traits(
        has_experts=True,
        router=Walk,
        learns_refusals=True,
        trains_apart=True,
        after_training=THRESHOLDS | {"second_chance"},
    )

    @classmethod
    def cautions(cls, arguments: Mapping[str, Any], tasks: Sequence[Task]) -> list[str]:
        """Past tasks with few negatives, and the settings that give more; tasks whose wording cannot vary."""
        varied = InstructionVariants(arguments.get("instruction_variants", ()), arguments.get("rewordings", BUILT_IN))
        return [*few_refusals(arguments, tasks), *varied.cautions(tasks)]

    def __init__(
        self,
        setup: Setup,
        *,
        ratio: float,
        resample: str,
        indicators: dict[str, str],
        min_negatives: int = 0,
        max_negatives: int = 0,
        general_negatives: int = 0,
        general_source: str = BUILT_IN,
        other_instructions: int = 0,
        calibrate_on: int | str = 0,
        target_recall: float = 0.98,
        ood_examples: int = 0,
        margin: float = 0.25,
        warm_start: str = "none",
        probe: int = 32,
        instruction_variants: Sequence[str] = (),
        rewordings: str = BUILT_IN,
        wordings_per_example: int = 1,
        second_chance: str = "off",
        reuse: str = "off",
        reuse_share: float = 0.9,
        reuse_gain: float = 0.5,
    ) -> None:
        super().__init__(setup)
        for name, value in (("min", min_negatives), ("max", max_negatives), ("general", general_negatives)):
            within(f"method.{name}_negatives", value, 0)
        within("method.other_instructions", other_instructions, 0, MOST_OTHER)
        check_calibrate_on("method.calibrate_on", calibrate_on)
        within("method.target_recall", target_recall, 0.01, 1)
        within("method.ood_examples", ood_examples, 0)
        within("method.margin", margin, 0, 1)
        self.ratio, self.resample, self.indicators = ratio, resample, Indicators(**indicators)
        self.min_negatives, self.max_negatives = min_negatives, max_negatives
        self.accept_prefix = f"{self.indicators.pos} "
        self.general_negatives, self.general_source = general_negatives, general_source
        self.other_instructions = other_instructions
        self.calibrate_on, self.target_recall = calibrate_on, target_recall
        self.ood_examples, self.margin = ood_examples, margin
        self.warm_start = WarmStart(warm_start, probe)
        self.variants = InstructionVariants(instruction_variants, rewordings, wordings_per_example)
        self._check_general()
        one_of("method.second_chance", second_chance, ("on", "off"))
        self.second_chance = SecondChance(self) if second_chance == "on" else None
        one_of("method.reuse", reuse, ("off", "accept"))
        self.reuse = Reuse(self, reuse_share, reuse_gain) if reuse == "accept" else None
        #: By expert, the log-odds below which a positive verdict counts as negative.
        self.thresholds: dict[str, float] = {}

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """The reconstructed task."""
        past = self._rehearsed(task, memory)
        draw = seed(self.run_seed, task.name, "general negatives")
        past += general_negatives(self.general_negatives, self.general_source, draw)
        other = under_other_instructions(
            task.train, self.other_instructions, self.general_source, draw, refused=self.general_negatives
        )
        own, past = self.variants.vary(self, task, memory, past)
        return reconstruct(own, past + other, self.indicators)

    def validation_examples(self, task: Task) -> list[Example]:
        """The task's validation rows with the positive indicator, in the wording that they have."""
        return reconstruct(task.valid, [], self.indicators)

    def _rehearsed(self, task: Task, memory: Memory) -> list[Example]:
        return memory.rehearse(
            task,
            ratio=self.ratio,
            resample=self.resample,
            at_least=self.min_negatives,
            at_most=self.max_negatives,
        )

    @property
    def may_reuse(self) -> bool:
        """Whether a task may get an earlier expert."""
        return self.reuse is not None

    def assign(self, task: Task) -> Assignment:
        """With ``reuse``, an earlier expert that accepts and answers the task's rows; else a new one."""
        return self.reuse.assign(task) if self.reuse else super().assign(task)

    def reason(self, assigned: Assignment) -> str:
        """What ``reuse`` found."""
        return self.reuse.reason(assigned.expert) if self.reuse else super().reason(assigned)

    @classmethod
    def after_training(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """With ``reuse``, thresholds decide which tasks are trained."""
        names = cls.traits.after_training
        return names - THRESHOLDS if arguments.get("reuse") == "accept" else names

    @classmethod
    def trains_apart(cls, arguments: Mapping[str, Any]) -> bool:
        """Not with ``reuse`` or ``warm_start``, which ask the earlier experts."""
        return (arguments.get("reuse", "off"), arguments.get("warm_start", "none")) == ("off", "none")

    def expert_of(self, task: str) -> str | None:
        """A task's own expert, or with ``reuse`` the earlier one that it got."""
        if self.reuse:
            return self.reuse.given[task].expert if task in self.reuse.given else None
        return super().expert_of(task)

    def report(self) -> dict[str, Any]:
        """What ``reuse`` found at the beginning of the task."""
        return self.reuse.report() if self.reuse else {}

    def choose_parent(self, task: Task) -> str | None:
        """The most transferable earlier expert, with ``warm_start``."""
        return self.warm_start.choose(self, task)

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Adds a new expert, with ``warm_start`` as a copy of an earlier one."""
        super().begin_task(task, memory)
        if self.parent:
            self.pool.load_weights(task.name, self.pool.pairs(self.parent))

    def _check_general(self) -> None:
        """Refuse a source with too few or unsuitable instructions before training."""
        words = self.indicators.pos, self.indicators.neg
        most = self.template.max_length - max(len(self.template.target_ids(word)) for word in words)
        ood_examples = self.ood_examples if self.calibrate_on else 0
        general_negatives(self.general_negatives, self.general_source, 0)
        unseen_general(ood_examples, self.general_source, 0, refused=self.general_negatives)
        needed = self.general_negatives or self.other_instructions or ood_examples
        for example in general_rows(self.general_source) if needed else ():
            place = example.source or self.general_source
            tokens = len(self.template.prompt_ids(example))
            if tokens > most or any(word in example.prompt for word in words):
                reason = f"it has {tokens} tokens, of at most {most}" if tokens > most else "an indicator stands in it"
                raise ConfigError(f"method.general_source: {place} cannot be learned as a refusal: {reason}.")

    def end_task(self, task: Task, memory: Memory) -> None:
        """Sets the new expert's threshold from its log-odds on the examples that ``calibrate_on`` chooses."""
        if self.reuse and self.reuse.is_reused(task.name):
            return  # nothing was trained
        if task.name in self.never_refusing:
            return
        if self.second_chance:
            self.second_chance.learn(task)
        if self.reuse:
            self.reuse.learn(task)
        # Other routers may use the held-out rows themselves.
        if self.reuse or self.router.uses_thresholds:
            self.calibrate(task, memory)

    def calibrate(self, task: Task, memory: Memory) -> None:
        """Sets the threshold of a task's expert, if the run has thresholds.

        Args:
            task: that the expert learned.
            memory: of the tasks before it.
        """
        if not self.calibrate_on or task.name in self.never_refusing:
            return
        own, negatives = task.held_out, []
        if self.calibrate_on == TRAIN:
            own = task.train[:LOOKED_AT]
            negatives = draw_evenly(
                self._rehearsed(task, memory), LOOKED_AT, seed(self.run_seed, task.name, "thresholds")
            )
            if not negatives and not self.ood_examples:
                return  # the first expert has no negatives
        # An expert must accept its queries under every wording, so the wording with the lowest log-odds sets the threshold.
        worded = [self._log_odds(task, rows) for rows in self.variants.each(self, task, memory, own)]
        threshold = min(threshold_at_recall(found, self.target_recall) for found in worded)
        negatives += self._unseen_general(task)
        if negatives:
            others = [self._log_odds(task, rows) for rows in self.variants.each(self, task, memory, negatives)]
            threshold = round(lowered_by_margin(threshold, [*chain(*others)], self.margin), 4)
        self.thresholds[task.name] = threshold

    def _unseen_general(self, task: Task) -> list[Example]:
        draw = seed(self.run_seed, task.name, "general negatives")
        return unseen_general(self.ood_examples, self.general_source, draw, refused=self.general_negatives)

    def _log_odds(self, task: Task, examples: Sequence[Example]) -> list[float]:
        """Log-odds of a task's expert on the prompts of examples."""
        prompts = [self.template.prompt_ids(example) for example in examples]
        return [found for (found,) in log_odds(self, prompts, [[task.name]] * len(prompts))]

    def state(self) -> dict[str, Tensor]:
        """What ``second_chance`` and ``reuse`` keep."""
        kept = self.second_chance.state() if self.second_chance else {}
        return {**kept, **(self.reuse.state() if self.reuse else {})}

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """Loads what ``second_chance`` and ``reuse`` kept after a task."""
        if self.reuse:
            self.reuse.load_state(task, tensors)
        if self.second_chance:
            kept = {name: one for name, one in tensors.items() if not name.endswith(f"/{GAIN}")}
            self.second_chance.load_state(task, kept)

    def save(self, task: str, folder: Path) -> None:
        """The expert of the task and its threshold; with ``reuse`` the name of the expert that the task got."""
        if self.reuse:
            self.reuse.save(task, folder)
            if self.reuse.is_reused(task):
                return
        super().save(task, folder)
        if task in self.thresholds:
            write_text(folder / THRESHOLD, json.dumps({"log_odds": self.thresholds[task]}) + "\n")

    def restore(self, task: str, folder: Path) -> None:
        """Loads an expert and its threshold, or the name of the expert that the task got."""
        if self.reuse:
            self.reuse.restore(task, folder)
            if self.reuse.is_reused(task):
                return
        super().restore(task, folder)
        if (folder / THRESHOLD).exists():
            self.thresholds[task] = read_file(folder / THRESHOLD)["log_odds"]
