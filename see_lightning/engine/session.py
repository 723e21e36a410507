"""One rank's session of a run: from its configuration to ``results.json``."""

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from see_lightning.config.instantiate import METHOD_GIVEN, bind, instantiate
from see_lightning.config.schema import USUAL_TOKENS, RunConfig
from see_lightning.config.validation import FSDP_BASE
from see_lightning.engine.answers_page import prompts_of, queries_of, write_answers
from see_lightning.engine.build import build_method, build_tasks, build_template, expert_facts
from see_lightning.engine.build_further import build_ood, build_variants
from see_lightning.engine.context import RunContext, RunSettings
from see_lightning.engine.conversations import check_conversations
from see_lightning.engine.distributed import GRACE, Ranks, on_gpu
from see_lightning.engine.find import Found, check_model
from see_lightning.engine.ledger import Ledger, dump
from see_lightning.engine.loop import run_stages
from see_lightning.engine.made_from import date_of
from see_lightning.engine.memory_plan import MemoryPlan, longest_rows, machine, plan_memory
from see_lightning.engine.preemption import STOPPED, Preempted, StopSignal, exit_code
from see_lightning.engine.quantized import note_base_quantization
from see_lightning.engine.results import collect, keep_earlier
from see_lightning.engine.router import check_prompts_suffice, decides_everything
from see_lightning.engine.run_data import RunData
from see_lightning.engine.run_report import REPORT, run_report
from see_lightning.engine.stages import EvalSet, Stage, plan_eval_sets, plan_stages
from see_lightning.engine.start import start_run
from see_lightning.engine.tracker import Tracker, make_tracker
from see_lightning.errors import ConfigError
from see_lightning.files.run_files import seal
from see_lightning.inference.vllm import VllmServer
from see_lightning.methods.lookup import method_class
from see_lightning.methods.method import Method
from see_lightning.reporting.report.sections import matrix_csv
from see_lightning.reporting.runs import read_results
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task, told_apart


@dataclass(frozen=True)
class Material:
    """The tasks of a run, as read and checked.

    Args:
        template: prompt style and tokenizer.
        tasks: in their order.
        stages: of the run.
        eval_sets: the test queries that are answered after stages, by name; the run's own first.
    """

    template: PromptTemplate
    tasks: list[Task]
    stages: list[Stage]
    eval_sets: dict[str, EvalSet]


@dataclass(frozen=True)
class Session:
    """One rank's session of a run that is not finished.

    Args:
        cfg: composed.
        config: its typed form.
        ledger: of the run directory; ``run`` locks it.
        command: as it was typed.
        ranks: the processes that do this run together.
        found: directory and inputs of the run.
    """

    cfg: DictConfig
    config: RunConfig
    ledger: Ledger
    command: str
    ranks: Ranks
    found: Found

    @cached_property
    def method(self) -> type[Method]:
        """The method's class."""
        return method_class(self.cfg.method)

    @cached_property
    def console(self) -> Console:
        """Standard error, for progress; silent on all ranks but the first."""
        return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, quiet=not self.ranks.first)

    def run(self) -> None:
        """Train and evaluate the remaining stages, and write results and report.

        Raises:
            SystemExit: a stop signal came.
            Refusal: the data, the settings or the directory cannot be used.
        """
        ranks, ledger = self.ranks, self.ledger
        bind(self.cfg.method, *METHOD_GIVEN)
        if self.cfg.trainer.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ConfigError("trainer=gpu, but torch finds no GPU here; use trainer=cpu.")
        with ExitStack() as held:
            stop_signal = held.enter_context(StopSignal())
            if ranks.size > 1:
                held.enter_context(stop_signal.ends_within(GRACE))
            ranks.on_rank_zero(lambda: held.enter_context(ledger))
            tracker = held.enter_context(make_tracker(self.cfg.logger))
            try:
                material = self._read(stop_signal)
                ranks.on_rank_zero(lambda: self._start(material))
                context = self._context(material, tracker, stop_signal)
                settings: Any = OmegaConf.to_container(self.cfg, resolve=True)
                ranks.on_rank_zero(lambda: tracker.open(ledger.directory, settings, stop_signal))
                run_stages(context)
            except Preempted:
                code = exit_code(ranks.gather(stop_signal.signal))
                self.console.print(STOPPED)
                ranks.leave()
                raise SystemExit(code) from None
            if ranks.first:
                tracker.finish(self._write_results(material), ledger.directory / "report.html")
            ranks.leave()
        if ranks.first and stop_signal.signal:
            self.console.print("stopped by a signal; the run is finished, and the same command prints its report")
            raise SystemExit(exit_code([stop_signal.signal]))

    def _read(self, stop_signal: StopSignal) -> Material:
        """Read and check tasks and eval sets, and print their notices."""
        cfg, config = self.cfg, self.config
        date = self.ranks.on_rank_zero(lambda: date_of(self.ledger, self.found.settings))
        template = build_template(config, self.ranks.gather(date)[0])

        def read() -> tuple[list[Task], dict[str, list[Task]]]:
            with stop_signal.at_once():
                tasks = build_tasks(cfg, config, template)
                check_prompts_suffice(cfg, tasks)
                foreign = {name: told_apart(some, tasks) for name, some in build_ood(cfg, config, template).items()}
                check_conversations(cfg, chain(tasks, *foreign.values()))
                return tasks, foreign | build_variants(cfg, config, template, tasks)

        tasks, further = self.ranks.run_preemptible(read, nullcontext())
        stages = plan_stages(self.method.traits.schedule, tasks)
        eval_sets = plan_eval_sets(
            stages,
            further,
            decide=decides_everything(self.cfg),
            ood_after_each=bool(config.ood and config.ood.every),
        )
        for notice in (notice for one in eval_sets.values() for task in one.tasks for notice in task.notices):
            self.console.print(notice)
        for note in (*self.method.cautions(cfg.method, tasks), *self.found.notes, *self.found.left_out):
            self.console.print(f"note: {note}")
        return Material(template, tasks, stages, eval_sets)

    def _start(self, material: Material) -> None:
        """Record the start of the run in the ledger."""
        start_run(
            self.cfg,
            self.config,
            self.ledger,
            self.found,
            command=self.command,
            ranks=self.ranks.size,
            template=material.template,
            data={task.name: task.digest() for task in material.tasks},
            growing=material.stages if self.method.traits.schedule == "sequential" else [],
            console=self.console,
        )

    def _context(self, material: Material, tracker: Tracker, stop_signal: StopSignal) -> RunContext:
        """The context of the loop over tasks, with functions that build method and Trainer."""
        cfg, config, ranks = self.cfg, self.config, self.ranks
        dtype = self.ledger.read().content["about"]["dtype"]
        plan = self._memory_plan(material, dtype)
        if config.evaluate.engine == "vllm":
            VllmServer(config.evaluate.url, [])  # refused before a task is trained, if no server answers
        make_trainer, mesh = instantiate(cfg.trainer), None
        if cfg.trainer.get("strategy") == FSDP_BASE:
            mesh = ranks.of_this_machine(int(cfg.trainer.get("num_nodes", 1)), gpu=on_gpu(cfg))
            # A layer's memory is reused in later passes; tensors of inference mode could not be used in training.
            make_trainer = partial(make_trainer, inference_mode=False)

        def make_method() -> Method:
            method = build_method(
                cfg, config, material.template, dtype, mesh, ranks.rank, ranks.size, checkpointing=plan.checkpointing
            )
            # The model's files may have been downloaded just now.
            ranks.on_rank_zero(lambda: check_model(self.ledger, config, note=True))
            ranks.on_rank_zero(lambda: note_base_quantization(self.ledger, config, method.pool.model))
            return method

        return RunContext(
            ledger=self.ledger,
            stages=material.stages,
            eval_sets=material.eval_sets,
            settings=RunSettings(
                seed=config.seed,
                epochs=config.optim.epochs,
                early_stopping=config.optim.early_stopping,
                global_batch_size=config.optim.global_batch_size,
                grad_clip=config.optim.grad_clip,
                loss_reduction=config.optim.loss_reduction,
                max_tokens_per_microbatch=plan.tokens,
                eval_batch_size=config.data.eval_batch_size,
                facts=expert_facts(config, material.template, dtype),
                origins=config.order.origins(),
                evaluate=config.evaluate,
            ),
            make_method=make_method,
            make_trainer=make_trainer,
            tracker=tracker,
            console=self.console,
            ranks=ranks,
            stop_signal=stop_signal,
        )

    def _memory_plan(self, material: Material, dtype: str) -> MemoryPlan:
        """How a training step is fitted into the memory, the same on all ranks."""
        cfg, config, ranks = self.cfg, self.config, self.ranks
        stages = [stage for stage in material.stages if stage.task]
        if not stages or all(self.ledger.stage(stage.name)["trained"] for stage in stages):
            return MemoryPlan(USUAL_TOKENS, checkpointing=False)
        rows = longest_rows(material.tasks, material.template)
        here = machine(cfg, ranks.size)
        plan = ranks.gather(plan_memory(config, dtype, rows, here))[0]
        chosen = plan.checkpointing or config.optim.max_tokens_per_microbatch == "auto"
        if plan.fault or (plan.footprint and chosen):
            self.console.print(f"note: {plan.in_words(here)}")
        config.optim.max_tokens_per_microbatch = plan.tokens
        return plan

    def _write_results(self, material: Material) -> dict[str, Any]:
        """Compute and write results and report; return the content of ``results.json``."""
        ledger = self.ledger
        read = (material.stages, material.tasks, material.eval_sets)
        run = RunData(ledger, *read, self.cfg, self.config, self.method)
        results = collect(run)
        path = ledger.directory / "results.json"
        if path.exists():
            keep_earlier(results, read_results(path))
        ledger.write(ledger.directory / "matrix.csv", matrix_csv(results))
        write_answers(ledger, queries_of(ledger, results, prompts_of(material.tasks), run.answers))
        ledger.write(ledger.directory / REPORT, run_report(ledger.directory, results))
        ledger.write(path, dump(seal(results)))  # last: its existence marks the run as finished
        return results
