"""The loop over tasks: train, save, evaluate, commit; resumed wherever it was killed."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from rich.console import Console

from see_lightning.data.example import Example
from see_lightning.engine.build import recall_of
from see_lightning.engine.callbacks import StageProgress, StopWhenTold, Throughput
from see_lightning.engine.ledger import OOD, Ledger, dump
from see_lightning.engine.made_from import taken_up
from see_lightning.engine.method_costs import MethodCosts, of_all_ranks
from see_lightning.engine.pages import kept_pages
from see_lightning.engine.preemption import Stopped, Told
from see_lightning.engine.ranks import Ranks
from see_lightning.engine.stages import Stage
from see_lightning.engine.tracking import Tracker
from see_lightning.errors import Refusal
from see_lightning.evaluation.dealing import share_of
from see_lightning.evaluation.evaluate import add_plain, decide, evaluate, merge, put_back, remembered
from see_lightning.evaluation.routing import BASE
from see_lightning.files.reading import sha256
from see_lightning.files.writing import write_text
from see_lightning.methods.method import Assignment, ExpertMethod, Method
from see_lightning.models.sharding import in_step, is_sharded
from see_lightning.seeds import seed
from see_lightning.tasks.datamodule import TaskDataModule
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the loop needs to know of the configuration.

    Args:
        seed: the run's seed.
        epochs: passes over each task's training examples.
        global_batch: examples per optimizer step.
        grad_clip: largest gradient norm; 0 for none.
        loss_mean: what the loss is a mean over.
        tokens_at_once: that a rank computes together in training.
        eval_batch: queries decoded together.
        strangers_every: whether foreign tasks are asked after every stage instead of after the last alone.
        facts: what every expert's file says of its origin: base model, template, indicators.
    """

    seed: int
    epochs: int
    global_batch: int
    grad_clip: float
    loss_mean: str
    tokens_at_once: int
    eval_batch: int
    strangers_every: bool
    facts: dict[str, Any]


@dataclass(slots=True)
class Asked:
    """What came of asking tasks' test queries, or one rank's share of them.

    Args:
        answers: records of ``evaluate``, by task; None where only verdicts were asked for.
        remembered: records of what was said for the first time, by task.
        counts: costs.
        seconds: from the first query to the last.
    """

    answers: dict[str, list[dict[str, Any]]] | None = None
    remembered: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Diverged(Refusal):
    """Training came to numbers that are none."""


class ContinualRun:
    """One method on one order of tasks.

    Args:
        ledger: of the run directory, held by this process.
        stages: what is to be done.
        beside: tasks that are asked after the last stage beside the run's own, by kind: foreign ones (``ood``), and the
            run's own under the names of variants.
        settings: see there.
        decides: whether every expert shall decide on every query, tested after its stage or not.
        make_method: loads the base model and builds the method; called only if something is left to do.
        make_trainer: builds a fresh Trainer.
        tracker: told of training and scores.
        console: where progress is told.
        ranks: the processes that do this run together; each of them calls ``run``.
        told: whether to stop.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        stages: list[Stage],
        beside: Mapping[str, Sequence[Task]],
        settings: RunSettings,
        decides: bool,
        make_method: Callable[[], Method],
        make_trainer: Callable[..., L.Trainer],
        tracker: Tracker,
        console: Console,
        ranks: Ranks,
        told: Told,
    ) -> None:
        self.ledger, self.stages, self.settings, self.console = ledger, stages, settings, console
        self.beside = beside
        self.decides, self.ranks, self.told = decides, ranks, told
        self.make_method, self.make_trainer, self.tracker = make_method, make_trainer, tracker
        self.memory = Memory(settings.seed)
        self._to_restore: list[Stage] = []

    def run(self) -> None:
        """Do what the ledger does not name as done."""
        for number, stage in enumerate(self.stages, start=1):
            self._heed()
            title = f"{number}/{len(self.stages)} {stage.name}"
            if stage.task and not self.ledger.stage(stage.name)["trained"]:
                self._train(stage, stage.task, title)
            else:
                self._to_restore.append(stage)
                if stage.task and not self.ledger.stage(stage.name)["trained"].get("ended", True):
                    self._end_anew(stage, stage.task, title)
            noted = self.ledger.stage(stage.name)
            self._ask(stage, [task for task in stage.tests if task.name not in noted["answers"]], title)
            everything = self.stages[-1].tests if self.decides else ()
            self._ask(
                stage,
                [task for task in everything if task.name not in noted.get("remembered", {})],
                title,
                only_decide=True,
            )
            for kind, tasks in self.beside.items():
                if stage is self.stages[-1] or (kind == OOD and self.settings.strangers_every):
                    new = [one for one in tasks if not self.ledger.knows(stage.name, kind, one.name, one.asked())]
                    self._ask(stage, new, f"{title} · {kind}", kind=kind)
            if stage.task:
                self.memory.add(stage.task)

    def _heed(self) -> None:
        """End here, between two pieces of work, if a rank was told to stop during the last one."""
        if self.ranks.agree(self.told.signal is not None):
            raise Stopped

    @cached_property
    def _fresh_method(self) -> Method:
        with self.told.at_once() if self.ranks.size == 1 else nullcontext():  # the ranks meet while they load it
            method = self.make_method()
        # Where it is trained and asked, before anything is restored or chosen there: Lightning would bring it later.
        method.to(self._trainer(self.stages[0], [], alone=True).strategy.root_device)
        if told := method.pool.choose_reading():
            self.console.print(told)
        if isinstance(method, ExpertMethod):
            method.recall = recall_of(self.settings.facts)
            for stage in self.stages:
                put_back(method.recall, self.ledger.remembered(stage.name))
                for kind, tasks in self.beside.items():
                    names = {task.name for task in tasks}  # what was foreign once may be a task of the run by now
                    _, said = self.ledger.beside(stage.name, kind)
                    put_back(method.recall, [record for record in said if record["task"] in names])
        return method

    @property
    def method(self) -> Method:
        """The method, with every finished stage taken up."""
        method = self._fresh_method
        for stage in self._to_restore:
            if stage.task:
                folder = self.ledger.verified(stage.name) / "expert"
                with taken_up(self.ledger, stage.name, self.settings.facts):
                    method.restore(stage.task.name, folder)
        self._to_restore.clear()
        return method

    def _trainer(
        self, stage: Stage, callbacks: list[L.Callback], *, logger: Any = False, epochs: int = 1, alone: bool = False
    ) -> L.Trainer:
        # A fresh one each time: a Trainer that has been used trains the next task for 0 steps.
        return self.make_trainer(
            default_root_dir=self.ledger.folder(stage.name),
            max_epochs=epochs,
            callbacks=[*callbacks, StopWhenTold(self.told, self.ranks)],
            logger=logger,
            gradient_clip_val=self.settings.grad_clip or None,
            enable_checkpointing=False,  # the unit of resumption is a task, redone from its own seeds
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,  # the data module deals
            **(self.ranks.apart() if alone else self.ranks.side_by_side()),
        )

    def _train(self, stage: Stage, task: Task, title: str) -> None:
        method = self.method
        self._heed()  # the model may have been loaded just now
        folder = self.ledger.begin(stage.name)
        assigned, costs = None, self._costs()
        method.drawn.clear()
        if method.traits.may_reuse:
            with costs.of("assign"):
                assigned = self._assign(stage, task, title)
            if assigned.expert != task.name:
                self._reuse(stage, task, assigned, costs)
                return
        # Made once, for a method may draw or write them by a model, and ranks that train on different rows drift apart.
        with costs.of("training_examples"):
            examples = self.ranks.share(lambda: method.training_examples(task, self.memory))
        if self.ranks.first:
            write_examples(folder / "examples.jsonl", examples)
        data = TaskDataModule(
            task.name,
            examples,
            method.template,
            batch_size=self.settings.global_batch,
            run_seed=self.settings.seed,
            loss_mean=self.settings.loss_mean,
            tokens_at_once=self.settings.tokens_at_once,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
        )
        throughput = Throughput()
        progress = StageProgress(self.console, title, throughput)
        logger = self.tracker.stage(task.name, folder)
        trainer = self._trainer(stage, [throughput, progress], logger=logger, epochs=self.settings.epochs)
        with costs.of("choose_parent"):
            method.parent = self.ranks.gather(method.choose_parent(task))[0]  # the same one on every rank
        with costs.of("begin_task"):
            method.begin_task(task, self.memory)
        # Dropout: drawn by the task's name, not by what came before it; ranks compute different rows.
        purpose = "dropout" if self.ranks.first else f"dropout of rank {self.ranks.rank}"
        torch.manual_seed(seed(self.settings.seed, task.name, purpose))
        started = time.monotonic()
        try:
            with kept_pages():
                trainer.fit(method, datamodule=data)
            # The loss tells of every step but the last.
            if not all(parameter.isfinite().all() for parameter in method.parameters() if parameter.requires_grad):
                raise FloatingPointError("weights are no numbers.")
        except FloatingPointError as error:
            per_epoch, lr = int(trainer.num_training_batches), method.optim.lr
            step = min(throughput.steps + 1, per_epoch * self.settings.epochs)
            raise Diverged(
                f"{task.name} diverged in step {step}, epoch {(step - 1) // per_epoch + 1}: {error} Nothing of this task is"
                f" kept. optim.lr is {lr:g}; lower it, such as to optim.lr={lr / 10:g}"
            ) from error
        seconds = time.monotonic() - started
        # Lightning's limit is a share if it is a float, where 1.0 is all; else a number of steps.
        limit = trainer.limit_train_batches
        whole = isinstance(limit, float) and limit == 1
        per_epoch = data.steps_per_epoch if whole else int(trainer.num_training_batches)
        expected = per_epoch * self.settings.epochs
        if throughput.steps != expected:
            raise RuntimeError(f"{stage.name} was trained for {throughput.steps} steps instead of {expected}.")
        self._end(task, costs)
        shares = self.ranks.gather((throughput.tokens, throughput.computed, throughput.loss))
        tokens, computed, loss = (sum(column) for column in zip(*shares, strict=True))
        learned = {one.name for one in self.memory.past}
        past = sum(example.task in learned for example in examples)
        refuses = method.traits.learns_refusals
        foreign = sum(example.task not in learned | {task.name} for example in examples) if refuses else 0
        facts = {
            "examples": len(examples),
            "rehearsed": past + sum(method.drawn[name] for name in learned),
            "negatives": past + foreign if refuses else 0,
            **({"refused": dict(Counter(e.task for e in examples if e.task in learned))} if refuses else {}),
            "steps": throughput.steps,
            "tokens": tokens,
            "computed": computed,
            "loss": round(loss / self.ranks.size, 6),
            "seconds": round(costs.seconds("assign") + seconds, 3),
            "hooks": of_all_ranks(self.ranks.gather(costs.spent)),
            "storage": method.storage(),
            "parent": method.parent,
            **({"assigned": asdict(assigned)} if assigned else {}),
        }
        if self.ranks.first:
            self.ledger.check_held()
            method.save(task.name, folder / "expert")
        self._commit_trained(stage, facts)
        began = f"begun as {method.parent}, " if method.parent else ""
        self.console.print(
            f"{title}: {began}{throughput.steps} steps on {len(examples)} examples ({past} of past tasks), loss"
            f" {loss / self.ranks.size:.3f}, {tokens / seconds:,.0f} tokens/s, {seconds:.0f} s"
        )

    def _assign(self, stage: Stage, task: Task, title: str) -> Assignment:
        """Let the method say which expert the task is given."""
        assigned = self._at_rest(lambda: self.method.assign(task))
        if len({one.expert for one in self.ranks.gather(assigned)}) > 1:
            raise RuntimeError(
                f"{stage.name}: the ranks disagree on whether an expert explains it; use one kind of machine."
            )
        own = assigned.expert == task.name
        told = "an expert of its own" if own else f"explained by the expert of {assigned.expert}, nothing is trained"
        seen = ", ".join(f"{z:.2f} under {name}" for name, z in assigned.z.items())
        self.console.print(f"{title}: {told} (z {seen or 'unknown: it is the first'})")
        return assigned

    def _reuse(self, stage: Stage, task: Task, assigned: Assignment, costs: MethodCosts) -> None:
        """Make a stage final that has nothing to learn."""
        if self.ranks.first:
            folder = self.ledger.folder(stage.name)
            write_examples(folder / "examples.jsonl", [])
            self.method.save(task.name, folder / "expert")
        nothing = dict.fromkeys(("examples", "rehearsed", "negatives", "steps", "tokens", "computed"), 0)
        facts = {
            "loss": None,
            "seconds": round(costs.seconds("assign"), 3),
            "hooks": of_all_ranks(self.ranks.gather(costs.spent)),
            "storage": self.method.storage(),
        }
        self._commit_trained(stage, {**nothing, **facts, "assigned": asdict(assigned)})

    def _costs(self) -> MethodCosts:
        return MethodCosts(self.method.pool.model.get_input_embeddings())

    def _end(self, task: Task, costs: MethodCosts) -> None:
        """Let the method do what it does when a task is learned."""
        with costs.of("end_task"):
            self._at_rest(lambda: self.method.end_task(task, self.memory))

    def _at_rest(self, work: Callable[[], T]) -> T:
        """What some work of the method's gives, done while nothing is trained."""
        method = self.method
        with torch.no_grad():
            method.eval()
            result = work()
            method.train()  # as fit leaves it: modules in eval mode would be trained without dropout
        return result

    def _end_anew(self, stage: Stage, task: Task, title: str) -> None:
        """End a task that was trained in another run, by this run's settings."""
        folder, trained = self.ledger.folder(stage.name), self.ledger.stage(stage.name)["trained"]
        self.ranks.lead(lambda: self.ledger.only_final(stage.name, "expert"))
        costs = self._costs()
        self._end(task, costs)
        if self.ranks.first:
            beside = folder / "expert.anew"
            shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed here
            self.method.save(task.name, beside)
            for file in beside.iterdir():
                if f"expert/{file.name}" not in trained["files"]:  # what is final, such as the weights, stays untouched
                    file.replace(folder / "expert" / file.name)
            shutil.rmtree(beside)
        facts = {key: value for key, value in trained.items() if key not in ("ended", "files")}
        ended, before = of_all_ranks(self.ranks.gather(costs.spent)), trained.get("hooks", {})
        facts["hooks"] = {unit: {**before.get(unit, {}), **part} for unit, part in ended.items()}
        self._commit_trained(stage, facts)
        self.console.print(f"{title}: trained before, ended anew")

    def _commit_trained(self, stage: Stage, facts: dict[str, Any]) -> None:
        """Make final what was learned and saved."""
        if self.ranks.first:
            self._describe(stage, facts, score=None)
        expert = sorted(path.name for path in (self.ledger.folder(stage.name) / "expert").glob("*"))
        files = ["examples.jsonl", *(f"expert/{name}" for name in expert if name != "expert.json")]
        self.ledger.commit_trained(stage.name, files, facts)

    def _describe(self, stage: Stage, facts: dict[str, Any], *, score: float | None) -> Path:
        """``expert.json``: where an expert comes from. Written again once its score on its own task is known."""
        assert stage.task is not None
        number = self.stages.index(stage)
        assigned = facts.get("assigned")
        told = {**assigned, "expanded": assigned["expert"] == stage.task.name} if assigned else {}
        continued = not self._fresh_method.traits.has_experts and number > 0
        parent = self.stages[number - 1].name if continued else None
        if began_as := facts.get("parent"):
            parent = next(one.name for one in self.stages if one.task and one.task.name == began_as)
        path = self.ledger.folder(stage.name) / "expert" / "expert.json"
        self.ledger.write(
            path,
            dump(
                {
                    **self.settings.facts,
                    "task": stage.task.name,
                    "born": number + 1 if told.get("expanded", True) else None,
                    "parent": parent,
                    "data_sha256": stage.task.rows_sha256(),
                    **told,
                    "training": {key: facts[key] for key in ("examples", "rehearsed", "negatives", "steps")},
                    "score": score,
                }
            ),
        )
        return path

    def _ask(
        self, stage: Stage, tasks: Sequence[Task], title: str, *, only_decide: bool = False, kind: str | None = None
    ) -> None:
        """Put test queries to the method, each rank its share, and make final what came of it.

        One process makes a task final before it begins the next. Several are asked all tasks in one stream, and meet when
        it ends: at each meeting everyone waits for the slowest, and few queries at a time are slow to answer.
        """
        for portion in [[task] for task in tasks] if self.ranks.size == 1 else filter(None, [tasks]):
            shares = self._meet(partial(self._ask_share, portion, stage, title, only_decide, kind))
            self._commit_asked(stage, portion, title, shares, kind)

    def _meet(self, work: Callable[[], T]) -> list[T]:
        """What each rank's work gives; a rank that was told to stop meets the others first."""
        return self.ranks.gather(self.ranks.stop_together(work, in_step(self.method)))

    def _ask_share(self, tasks: Sequence[Task], stage: Stage, title: str, only_decide: bool, kind: str | None) -> Asked:
        method, shares = self.method, [self._shares[kind][task.name] for task in tasks]
        title = f"{title} · {', '.join(task.name for task in tasks)}"
        started, batch = time.monotonic(), self.settings.eval_batch
        method.counts.clear()
        asked = Asked()
        with kept_pages():
            if not only_decide:
                progress = StageProgress(self.console, title, Throughput())
                asked.answers = evaluate(self._trainer(stage, [progress], alone=True), method, shares, batch_size=batch)
                if kind == OOD and method.traits.has_experts and not method.needs_task_id:
                    with torch.inference_mode(not is_sharded(method)):
                        add_plain(method, tasks, asked.answers)
            if self.decides and kind in (None, OOD):  # experts that no walk reached; of variants only walks count
                progress = StageProgress(self.console, f"{title} · verdicts", Throughput())
                decide(self._trainer(stage, [progress], alone=True), method, shares, batch_size=batch)
        if isinstance(method, ExpertMethod):
            assert method.recall is not None
            entries, method.recall.new = method.recall.new, []
            asked.remembered = remembered(entries, shares)
        asked.counts = dict(method.counts)
        asked.seconds = time.monotonic() - started
        return asked

    def _commit_asked(
        self, stage: Stage, tasks: Sequence[Task], title: str, shares: Sequence[Asked], kind: str | None
    ) -> None:
        counts = sum((Counter(share.counts) for share in shares), Counter())
        costs: dict[str, Any] = {
            "seconds": round(max(share.seconds for share in shares), 3),
            "counts": dict(sorted(counts.items())),
        }
        scores: dict[str, float] = {}
        for task in tasks:
            blocks: dict[str, list[dict[str, Any]]] = {}
            facts: dict[str, Any] = {}
            if all(share.answers is not None for share in shares):
                records = blocks["answers"] = merge([(share.answers or {})[task.name] for share in shares], task)
                mean = sum(record["score"] for record in records) / len(records)
                facts = {"score": round(mean, 4), "queries": len(records)}
                scores[task.name] = facts["score"]
                if kind:
                    facts |= {"task": task.name, "digest": task.asked()}
                elif stage.task and task.name == stage.task.name and self.ranks.first:
                    # Before the answers are final: a run killed in between evaluates, and so describes, once more.
                    trained = self.ledger.stage(stage.name)["trained"]
                    described = self._describe(stage, trained, score=facts["score"])
                    trained["files"]["expert/expert.json"] = sha256(described)
            if isinstance(self._fresh_method, ExpertMethod):
                blocks["remembered"] = [record for share in shares for record in share.remembered[task.name]]
            if kind:
                files = {"answers": kind, "remembered": f"{kind}_remembered"}
                blocks = {files[name]: block for name, block in blocks.items()}
            self.ledger.note_answers(stage.name, task.name, blocks, facts | costs)
            costs = {}  # those of all tasks are noted with the first
        self.ledger.commit()
        for name, score in scores.items():
            for row in stage.rows if not kind else ():
                self.tracker.score(after=row + 1, task=name, score=score)
        if scores:
            told = ", ".join(f"{task.name} {scores[task.name]:.2f} ({task.score})" for task in tasks)
            if kind and self._fresh_method.traits.has_experts and not self._fresh_method.needs_task_id:
                by = [
                    record["expert"]
                    for share in shares
                    for task in tasks
                    for record in (share.answers or {})[task.name]
                ]
                told += f"; {by.count(BASE) / len(by):.0%} of them reached the base model"
            self.console.print(f"{title}: {told}, {max(share.seconds for share in shares):.0f} s")

    @cached_property
    def _shares(self) -> dict[str | None, dict[str, Task]]:
        """By kind and name, each task with the test queries that this rank answers, after every stage the same ones."""
        every: list[tuple[str | None, Sequence[Task]]] = [(None, self.stages[-1].tests), *self.beside.items()]
        return {
            kind: share_of(tasks, self.method.template, rank=self.ranks.rank, ranks=self.ranks.size)
            for kind, tasks in every
        }


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """What a stage trained on, a line for each example."""
    lines = [{"id": e.id, "task": e.task, "prompt": e.prompt, "target": e.target} for e in examples]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
