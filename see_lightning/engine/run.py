"""The loop over tasks: train, save, evaluate, commit; resumed wherever it was killed."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lightning as L
import torch
from rich.console import Console

from see_lightning.engine.callbacks import StageProgress, StopWhenTold, Throughput
from see_lightning.engine.ledger import Ledger, dump, write_atomic
from see_lightning.engine.pages import kept_pages
from see_lightning.engine.stages import Stage
from see_lightning.evaluation.evaluate import decide, evaluate, put_back, remembered
from see_lightning.evaluation.scores import MeanScore
from see_lightning.experts.recall import Recall
from see_lightning.methods.method import ExpertMethod, Method
from see_lightning.seeds import seed
from see_lightning.tasks.datamodule import TaskDataModule
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the loop needs to know of the configuration.

    Args:
        seed: the run's seed.
        epochs: passes over each task's training examples.
        global_batch: examples per optimizer step.
        grad_clip: largest gradient norm; 0 for none.
        eval_batch: queries decoded together.
        facts: what every expert's file says of its origin: base model, template, indicators.
    """

    seed: int
    epochs: int
    global_batch: int
    grad_clip: float
    eval_batch: int
    facts: dict[str, Any]


class ContinualRun:
    """One method on one order of tasks.

    Args:
        ledger: of the run directory, held by this process.
        stages: what is to be done.
        settings: see there.
        decides: whether every expert shall decide on every query, tested after its stage or not.
        make_method: loads the base model and builds the method; called only if something is left to do.
        make_trainer: builds a fresh Trainer.
        make_logger: builds a logger for a stage's folder, or gives False.
        console: where progress is told.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        stages: list[Stage],
        settings: RunSettings,
        decides: bool,
        make_method: Callable[[], Method],
        make_trainer: Callable[..., L.Trainer],
        make_logger: Callable[[str], Any],
        console: Console,
    ) -> None:
        self.ledger, self.stages, self.settings, self.console = ledger, stages, settings, console
        self.decides = decides
        self.make_method, self.make_trainer, self.make_logger = make_method, make_trainer, make_logger
        self.memory = Memory(settings.seed)
        self._to_restore: list[Stage] = []

    def run(self) -> None:
        """Do what the ledger does not name as done."""
        for number, stage in enumerate(self.stages, start=1):
            title = f"{number}/{len(self.stages)} {stage.name}"
            if stage.task and not self.ledger.stage(stage.name)["trained"]:
                self._train(stage, stage.task, title)
            else:
                self._to_restore.append(stage)
            for task in stage.tests:
                if task.name not in self.ledger.stage(stage.name)["answers"]:
                    self._evaluate(stage, task, title)
            for task in self.stages[-1].tests if self.decides else ():
                if task.name not in self.ledger.stage(stage.name).get("remembered", {}):
                    self._decide(stage, task, title)
            if stage.task:
                self.memory.add(stage.task)

    @cached_property
    def _fresh_method(self) -> Method:
        method = self.make_method()
        if isinstance(method, ExpertMethod):
            method.recall = Recall(*(json.dumps(fact, sort_keys=True) for fact in self.settings.facts.values()))
            for stage in self.stages:
                put_back(method.recall, self.ledger.remembered(stage.name))
        return method

    @property
    def method(self) -> Method:
        """The method, with every finished stage taken up."""
        method = self._fresh_method
        for stage in self._to_restore:
            if stage.task:
                method.restore(stage.task.name, self.ledger.verified(stage.name) / "expert")
        self._to_restore.clear()
        return method

    def _trainer(self, stage: Stage, callbacks: list[L.Callback], *, logger: Any, epochs: int) -> L.Trainer:
        # A fresh one each time: a Trainer that has been used trains the next task for 0 steps.
        return self.make_trainer(
            default_root_dir=self.ledger.folder(stage.name),
            max_epochs=epochs,
            callbacks=[*callbacks, StopWhenTold()],
            logger=logger,
            gradient_clip_val=self.settings.grad_clip or None,
            enable_checkpointing=False,  # the unit of resumption is a task, redone from its own seeds
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            reload_dataloaders_every_n_epochs=1,
        )

    def _train(self, stage: Stage, task: Task, title: str) -> None:
        method = self.method
        folder = self.ledger.begin(stage.name)
        examples = method.training_examples(task, self.memory)
        lines = [{"id": e.id, "task": e.task, "prompt": e.prompt, "target": e.target} for e in examples]
        (folder / "examples.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
        data = TaskDataModule(
            task.name, examples, method.template, batch_size=self.settings.global_batch, run_seed=self.settings.seed
        )
        throughput = Throughput()
        progress = StageProgress(self.console, title, throughput)
        logger = self.make_logger(str(folder))
        trainer = self._trainer(stage, [throughput, progress], logger=logger, epochs=self.settings.epochs)
        method.begin_task(task.name)
        # Dropout: drawn by the task's name, not by what came before it.
        torch.manual_seed(seed(self.settings.seed, task.name, "dropout"))
        started = time.monotonic()
        with kept_pages():
            trainer.fit(method, datamodule=data)
        seconds = time.monotonic() - started
        expected = data.steps_per_epoch * self.settings.epochs
        if throughput.steps != expected:
            raise RuntimeError(f"{stage.name} was trained for {throughput.steps} steps instead of {expected}.")
        if not all(parameter.isfinite().all() for parameter in method.parameters() if parameter.requires_grad):
            # The loss tells of every step but the last.
            raise FloatingPointError(f"{stage.name} ended with weights that are no numbers; lower optim.lr.")
        past = sum(example.task != task.name for example in examples) if len(self.stages) > 1 else 0
        facts = {
            "examples": len(examples),
            "rehearsed": past,
            "negatives": past if method.refuses else 0,
            "steps": throughput.steps,
            "tokens": throughput.tokens,
            "computed": throughput.computed,
            "loss": round(throughput.loss, 6),
            "seconds": round(seconds, 3),
        }
        method.save(folder / "expert")
        self._describe(stage, facts, score=None)
        files = ["examples.jsonl", "expert/adapter_model.safetensors", "expert/adapter_config.json"]
        self.ledger.commit_trained(stage.name, files, facts)
        self.console.print(
            f"{title}: {throughput.steps} steps on {len(examples)} examples ({past} of past tasks), loss"
            f" {throughput.loss:.3f}, {throughput.tokens / seconds:,.0f} tokens/s, {seconds:.0f} s"
        )

    def _describe(self, stage: Stage, facts: dict[str, Any], *, score: float | None) -> None:
        """``expert.json``: where an expert comes from. Written again once its score on its own task is known."""
        assert stage.task is not None
        number = self.stages.index(stage)
        continued = not self._fresh_method.has_experts and number > 0
        write_atomic(
            self.ledger.folder(stage.name) / "expert" / "expert.json",
            dump(
                {
                    **self.settings.facts,
                    "task": stage.task.name,
                    "born": number + 1,
                    "parent": self.stages[number - 1].name if continued else None,
                    "data_sha256": stage.task.digest(),
                    "training": {key: facts[key] for key in ("examples", "rehearsed", "negatives", "steps")},
                    "score": score,
                }
            ),
        )

    def _evaluate(self, stage: Stage, task: Task, title: str) -> None:
        method = self.method
        started, trainer = self._begin_asking(stage, f"{title} · {task.name}")
        records = evaluate(trainer, method, task, batch_size=self.settings.eval_batch)
        if self.decides:
            # Experts that the walk did not reach.
            decide(self._trainer(stage, [], logger=False, epochs=1), method, task, batch_size=self.settings.eval_batch)
        mean = MeanScore(task.score)
        mean.update([record["text"] for record in records], [record["target"] for record in records])
        score = round(float(mean.compute()), 4)
        facts = {
            "score": score,
            "queries": len(records),
            "seconds": round(time.monotonic() - started, 3),
            "counts": dict(sorted(method.counts.items())),
        }
        if stage.task and task.name == stage.task.name:
            # Before the answers are final: a run killed in between evaluates, and so describes, once more.
            self._describe(stage, self.ledger.stage(stage.name)["trained"], score=score)
        blocks = {"answers": records}
        if isinstance(method, ExpertMethod):
            blocks["remembered"] = self._newly_said(task)
        self.ledger.commit_answers(stage.name, task.name, blocks, facts)
        self.console.print(f"{title}: {task.name} {score:.2f} ({task.score}), {facts['seconds']:.0f} s")

    def _decide(self, stage: Stage, task: Task, title: str) -> None:
        method = self.method
        started, trainer = self._begin_asking(stage, f"{title} · verdicts on {task.name}")
        decide(trainer, method, task, batch_size=self.settings.eval_batch)
        facts = {
            "seconds": round(time.monotonic() - started, 3),
            "counts": dict(sorted(method.counts.items())),
        }
        self.ledger.commit_answers(stage.name, task.name, {"remembered": self._newly_said(task)}, facts)

    def _begin_asking(self, stage: Stage, title: str) -> tuple[float, L.Trainer]:
        self.method.counts.clear()
        progress = StageProgress(self.console, title, Throughput())
        return time.monotonic(), self._trainer(stage, [progress], logger=False, epochs=1)

    def _newly_said(self, task: Task) -> list[dict[str, Any]]:
        assert isinstance(self._fresh_method, ExpertMethod)
        assert self._fresh_method.recall is not None
        recall = self._fresh_method.recall
        entries, recall.new = recall.new, []
        return remembered(entries, task)
