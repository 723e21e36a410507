"""The state that the stages of a run share: its ledger, ranks, method and Trainers."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import lightning as L
from rich.console import Console

from see_lightning.config.evaluate import EvaluateConfig
from see_lightning.config.origins import Origin
from see_lightning.engine.build import response_cache_of
from see_lightning.engine.callbacks import StopOnSignal
from see_lightning.engine.distributed import Ranks
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.made_from import taken_up
from see_lightning.engine.preemption import Preempted, StopSignal
from see_lightning.engine.remote import RemoteExperts
from see_lightning.engine.router import restore_expert
from see_lightning.engine.stages import OWN, EvalSet, Stage
from see_lightning.engine.tracker import Tracker
from see_lightning.evaluation.evaluate import put_back
from see_lightning.methods.method import ExpertMethod, Method
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.sharding import shard_of
from see_lightning.tasks.task import Task


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The part of the configuration that training and evaluation use.

    Args:
        seed: the run's seed.
        epochs: passes over each task's training examples, at most.
        early_stopping: epochs without a lower validation loss that end a task; 0 never ends it.
        global_batch_size: examples per optimizer step.
        grad_clip: largest gradient norm; 0 for none.
        loss_reduction: the loss is a mean over ``tokens`` or ``examples``.
        max_tokens_per_microbatch: limits the tokens of a micro-batch, padding included.
        eval_batch_size: queries that are decoded together.
        facts: fields of ``expert.json`` that are the same in all experts: base model, template, indicators.
        origins: by task, where its expert comes from, if it is not trained as all others are.
        evaluate: who answers test queries.
    """

    seed: int
    epochs: int
    early_stopping: int
    global_batch_size: int
    grad_clip: float
    loss_reduction: str
    max_tokens_per_microbatch: int
    eval_batch_size: int
    facts: dict[str, Any]
    origins: Mapping[str, Origin] = field(default_factory=dict)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


@dataclass(kw_only=True)
class RunContext:
    """One method on one order of tasks.

    Args:
        ledger: of the run directory, held by this process.
        stages: of the run, in their order.
        eval_sets: the test queries that are answered after stages, by name.
        settings: of training and evaluation.
        make_method: loads the base model and builds the method; called when a stage first needs it.
        make_trainer: builds a fresh Trainer.
        tracker: logs training and scores.
        console: where progress is printed.
        ranks: the processes that do this run together.
        stop_signal: the flag that a signal to this process sets.
    """

    ledger: Ledger
    stages: list[Stage]
    eval_sets: dict[str, EvalSet]
    settings: RunSettings
    make_method: Callable[[], Method]
    make_trainer: Callable[..., L.Trainer]
    tracker: Tracker
    console: Console
    ranks: Ranks
    stop_signal: StopSignal
    #: The tasks of the stages that are finished.
    memory: Memory = field(init=False)
    _to_restore: list[Stage] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.memory = Memory(self.settings.seed)

    def check_preemption(self) -> None:
        """End the run if a rank received a stop signal; called by every rank between two units of work.

        Raises:
            Preempted: on every rank.
        """
        if self.ranks.any_rank(self.stop_signal.signal is not None):
            raise Preempted

    def restore(self, stage: Stage) -> None:
        """Restore a stage that an earlier start trained, once the method is needed."""
        self._to_restore.append(stage)

    @property
    def method(self) -> Method:
        """The method, with every finished stage restored."""
        method = self._loaded
        for stage in self._to_restore:
            if stage.task:
                folder = self.ledger.verified(stage.name) / "expert"
                with taken_up(self.ledger, stage.name, self.settings.facts):
                    restore_expert(method, stage.task.name, folder)
        self._to_restore.clear()
        return method

    @cached_property
    def _loaded(self) -> Method:
        """The method before any stage is restored, on its device, with the responses that earlier starts cached."""
        # Several ranks synchronise while they load it.
        with self.stop_signal.at_once() if self.ranks.size == 1 else nullcontext():
            method = self.make_method()
        # Weights are restored on the device, and the prefill mode depends on it; Lightning would move the method later.
        method.to(self.trainer(self.stages[0], [], alone=True).strategy.root_device)
        if notice := method.pool.choose_reading():
            self.console.print(notice)
        if isinstance(method, ExpertMethod):
            method.response_cache = response_cache_of(self.settings.facts)
            for stage in self.stages:
                for one in self.eval_sets.values():
                    records = self.ledger.remembered(stage.name, one.responses)
                    # An ood task of an earlier start may be one of the run's own now.
                    names = {task.name for task in one.tasks}
                    put_back(
                        method.response_cache, [each for each in records if one.name == OWN or each["task"] in names]
                    )
        return method

    @cached_property
    def remote(self) -> RemoteExperts:
        """The connection to the server that answers test queries."""
        assert isinstance(self.method, ExpertMethod)
        folders = {stage.task.name: self.ledger.folder(stage.name) / "expert" for stage in self.stages if stage.task}
        return RemoteExperts(self.settings.evaluate, self.method, folders.__getitem__)

    def trainer(
        self, stage: Stage, callbacks: list[L.Callback], *, logger: Any = False, epochs: int = 1, alone: bool = False
    ) -> L.Trainer:
        """A new Trainer, since one that was used would train the next task for 0 steps.

        Args:
            stage: its folder is the Trainer's root.
            callbacks: of this Trainer; ``StopOnSignal`` is added.
            logger: a Lightning logger, or False.
            epochs: passes over the training data.
            alone: whether each rank runs it without the others, on its share of the data.
        """
        return self.make_trainer(
            default_root_dir=self.ledger.folder(stage.name),
            max_epochs=epochs,
            callbacks=[*callbacks, StopOnSignal(self.stop_signal, self.ranks)],
            logger=logger,
            gradient_clip_val=self.settings.grad_clip or None,
            enable_checkpointing=False,  # the unit of resumption is a task, redone from its own seeds
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,  # the data module gives each rank its rows
            **(self.ranks.solo_kwargs() if alone else self.ranks.ddp_kwargs()),
        )

    @cached_property
    def shares(self) -> dict[str, dict[str, Task]]:
        """Eval set -> task -> the test queries that this rank answers; the same after every stage."""
        rank, ranks = self.ranks.rank, self.ranks.size
        template, sets = self.method.template, self.eval_sets
        return {name: shard_of(one.tasks, template, rank=rank, ranks=ranks) for name, one in sets.items()}
