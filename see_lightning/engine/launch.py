"""One command from its configuration to ``results.json``: find the run directory, resume or report."""

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import hydra.utils
import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch.distributed.device_mesh import DeviceMesh

import see_lightning.engine.strategy  # noqa: F401  makes fsdp_base known to Lightning
from see_lightning.config import (
    FSDP_BASE,
    METHOD_GIVEN,
    ConfigError,
    Refusal,
    RunConfig,
    bind,
    instantiate,
    listed,
    method_name,
    numbers_config,
    validate,
)
from see_lightning.engine.build import (
    build_method,
    build_strangers,
    build_tasks,
    build_template,
    build_variants,
    check_adaptable,
    expert_facts,
    settle_targets,
)
from see_lightning.engine.contents import ROWS, ood_digests, ood_without_places, read_contents
from see_lightning.engine.find import Found, check_model, comparable, edits, find_run, refuse_other_model
from see_lightning.engine.grow import adopt, earlier_run
from see_lightning.engine.ledger import OOD, Ledger, LedgerError, dump
from see_lightning.engine.made_from import check_prompts, date_of, prompt_facts
from see_lightning.engine.preemption import STOPPED, Stopped, Told, ended_at_once, exit_code, leave_quietly
from see_lightning.engine.ranks import GRACE, Echo, Place, Ranks, check_size, join, place, supervise
from see_lightning.engine.record import commit, differing, starts_of, versions, why_no_commit
from see_lightning.engine.results import collect, keep_earlier, paraphrases
from see_lightning.engine.run import ContinualRun, RunSettings
from see_lightning.engine.stages import Stage, plan_stages
from see_lightning.engine.tracking import make_tracker
from see_lightning.methods.method import Method
from see_lightning.models.base import fast_dtype
from see_lightning.refusals import room_needed
from see_lightning.reporting.report.page import render_html
from see_lightning.reporting.report.sections import matrix_csv
from see_lightning.reporting.report.terminal import print_report
from see_lightning.reporting.runs import read_results
from see_lightning.run_files import read_file, seal, well_shaped
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task, changed_data, told_apart
from see_lightning.trust import read_settings, sealed_settings


def find(cfg: DictConfig, config: RunConfig) -> Found:
    """Where this experiment lives, however its command was spelt and wherever its data lie; see ``find_run``."""

    @cache
    def digests() -> dict[str, str]:
        return {task.name: task.digest() for task in build_tasks(cfg, config, build_template(config))}

    return find_run(cfg, config, read_contents(cfg, config), digests)


def run_directory(cfg: DictConfig, config: RunConfig) -> Path:
    """The folder of a run, ``runs/<order>/<method>/<key>/seed=<n>``."""
    return find(cfg, config).directory


def launch(cfg: DictConfig, command: str) -> Path:
    """Run, resume or report one experiment, and print the path of its ``results.json`` as the last line.

    With several processes, whoever started this one may have started the others too (``torchrun``, ``srun``); if not, they
    are started here, from the composed config, so that each job of a multirun has its own.

    Args:
        cfg: the composed config.
        command: as it was typed, for the record.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: the data cannot be used.
        LedgerError: the run directory cannot be used.
    """
    config = validate(cfg)
    here, wanted = place(), processes(cfg)
    try:
        with ended_at_once():
            settle_targets(cfg, config)
            with room_needed(Path(config.paths.runs)):
                found = find(cfg, config)
            directory = found.directory
            path = directory / "results.json"
            answered = _is_answered(cfg, path)
    except Refusal:
        if here is None or here.rank == 0:
            raise
        raise leave_quietly() from None  # the first rank reads the same, and tells of it
    if here:
        check_size(here, wanted)
    elif wanted == 1:
        here = Place(0, 1, 0)
    if not answered:
        _check_shardable(cfg)
        check_adaptable(cfg, config)
        if here is None:
            _start_ranks(cfg, command, wanted)
            return path
        _quiet()
        ranks = join(here, gpu=_on_gpu(cfg)) if wanted > 1 else Ranks()
        try:
            with room_needed(directory):
                _run(cfg, config, Ledger(directory, writes=ranks.first), command, ranks, found)
        except (Refusal, SystemExit) as end:
            if ranks.first:
                raise
            if isinstance(end, Refusal) and not isinstance(end, Echo):
                ranks.leave_word(f"rank {ranks.rank}: {end}")  # of its own, such as a full disk
            raise leave_quietly() from None
        except RuntimeError as error:
            if ranks.first and (word := ranks.last_word()):  # what failed is the talk with that rank
                raise Refusal(word) from error
            raise
    elif here is None or here.rank == 0:
        _tell((*found.notes, *found.left_out), _console())
        if not found.notes and not _is_noted(directory, cfg):
            with suppress(OSError, Refusal), Ledger(directory) as ledger:  # of a run from when they were not noted
                _note_contents(ledger, found)
                _note_places(ledger, cfg)
        if "WANDB_SWEEP_ID" in os.environ:
            _tell_again(cfg, path)
    if here is None or here.rank == 0:
        if answered:
            _compare_finished(config, Ledger(directory).read())
        results = read_results(path)
        with well_shaped(path):
            print_report(results, Console(), config.protocol)
        print(f"{directory / 'report.html'}\n{path}", flush=True)
    return path


def _is_answered(cfg: DictConfig, path: Path) -> bool:
    """Whether a run is finished, and was asked the foreign queries and the variants that it shall be asked."""
    if not path.exists():
        return False
    results = read_results(path)
    variants, wanted = results.get("variants", {}), set(cfg.get("variants") or ())
    return (
        (not cfg.get("ood") or _is_ood_answered(cfg, results.get("ood", {})))
        and wanted <= set(variants.get("asked", ()))
        and ("paraphrased" not in wanted or variants["paraphrases"] == paraphrases(cfg))
    )


def _compare_finished(config: RunConfig, ledger: Ledger) -> None:
    """Refuse to report a run as that of a template or tokenizer which is another by now."""
    try:
        template = build_template(config, ledger.content["about"].get("date"))
    except ConfigError as error:  # the report is there all the same
        print(f"note: not compared with what this run was made from: {error}", file=sys.stderr, flush=True)
    else:
        check_prompts(ledger, template)


def _is_ood_answered(cfg: DictConfig, answered: Mapping[str, Any]) -> bool:
    """Whether a run was asked these foreign queries; of those that cannot be read now, only how they were asked counts."""
    asked: Any = OmegaConf.to_container(cfg.ood, resolve=True)
    if "digests" not in answered:
        return bool(answered.get("asked") == asked)
    if ood_without_places(answered["asked"]) != ood_without_places(asked):
        return False
    now, then = ood_digests(cfg), answered["digests"]
    unread = sorted(task for task in then if now.get(task) is None)
    if unread:
        _tell(
            [f"not compared with the foreign queries that were asked, for they cannot be read: {listed(unread)}"],
            _console(),
        )
    return all(then.get(task) == digest for task, digest in now.items() if digest is not None)


def _check_shardable(cfg: DictConfig) -> None:
    """Refuse a base model in parts to a method that needs it whole, or was not tried without."""
    method: type[Method] = hydra.utils.get_class(cfg.method._target_)
    if cfg.trainer.get("strategy") == FSDP_BASE and not method.shardable:
        raise ConfigError(
            f"method={method_name(cfg)} was not made for a base model of which each rank holds only a part, as with"
            f" trainer.strategy={FSDP_BASE}; choose trainer=ddp, in which each rank holds the whole model."
        )


def _start_ranks(cfg: DictConfig, command: str, wanted: int) -> None:
    """Run every rank in a process of its own on this machine; they report by themselves."""
    if cfg.trainer.get("num_nodes", 1) > 1:
        raise ConfigError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}: processes on other nodes are started by srun or torchrun;"
            f" see sweeps/run.sbatch."
        )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True))
        file.flush()
        code = supervise([sys.executable, "-m", "see_lightning.engine.rank", file.name, command], wanted)
    if code:
        raise SystemExit(code)


def _tell_again(cfg: DictConfig, path: Path) -> None:
    """Tell a sweep of a run that was finished before the sweep asked for it, or the sweep would wait for its metric."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    with make_tracker(cfg.logger) as tracker:
        tracker.open(path.parent, settings, Told())
        tracker.finish(read_results(path), path.parent / "report.html")


def _on_gpu(cfg: DictConfig) -> bool:
    return bool(torch.cuda.is_available()) and cfg.trainer.get("accelerator", "auto") != "cpu"


def processes(cfg: DictConfig) -> int:
    """How many processes do this run together; ``trainer.devices=auto`` takes all GPUs of a machine, or one CPU process."""
    devices = cfg.trainer.get("devices", 1)
    if devices == "auto":
        devices = torch.cuda.device_count() if _on_gpu(cfg) else 1
    return int(devices) * int(cfg.trainer.get("num_nodes", 1))


def _console(*, quiet: bool = False) -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, quiet=quiet)


def _tell(notes: Sequence[str], console: Console) -> None:
    for note in notes:
        console.print(f"note: {note}")


def _run(cfg: DictConfig, config: RunConfig, ledger: Ledger, command: str, ranks: Ranks, found: Found) -> None:
    console = _console(quiet=not ranks.first)
    bind(cfg.method, *METHOD_GIVEN)
    method: type[Method] = hydra.utils.get_class(cfg.method._target_)
    if cfg.trainer.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError("trainer=gpu, but torch finds no GPU here; use trainer=cpu.")
    with ExitStack() as held:
        told = held.enter_context(Told())
        if ranks.size > 1:
            held.enter_context(told.ends_within(GRACE))
        ranks.lead(lambda: held.enter_context(ledger))
        tracker = held.enter_context(make_tracker(cfg.logger))
        template = build_template(
            config, ranks.gather(ranks.lead(lambda: date_of(ledger, found.settings["model"]["name"])))[0]
        )

        def read() -> tuple[list[Task], dict[str, list[Task]]]:
            with told.at_once():
                tasks = build_tasks(cfg, config, template)
                strangers = told_apart(build_strangers(cfg, config, template), tasks)
                return tasks, {OOD: strangers, **build_variants(cfg, config, template, tasks)}

        try:
            tasks, beside = ranks.stop_together(read, nullcontext())
        except Stopped:
            raise _stopped(ranks, told, console) from None
        for notice in (notice for task in chain(tasks, *beside.values()) for notice in task.notices):
            console.print(notice)
        for caution in method.cautions(cfg.method, tasks):
            console.print(f"note: {caution}")
        stages = plan_stages(method.schedule, tasks)
        growing = stages if method.schedule == "sequential" else []
        _tell((*found.notes, *found.left_out), console)
        ranks.lead(lambda: _take_up(cfg, config, ledger, command, ranks.size, template, tasks, growing, console, found))
        dtype = ledger.read().content["about"]["dtype"]
        make_trainer, mesh = instantiate(cfg.trainer), None
        if cfg.trainer.get("strategy") == FSDP_BASE:
            mesh = ranks.of_this_machine(int(cfg.trainer.get("num_nodes", 1)), gpu=_on_gpu(cfg))
            # A layer's memory is reused from pass to pass; made in inference mode, it could not take part in training.
            make_trainer = partial(make_trainer, inference_mode=False)
        run = ContinualRun(
            ledger=ledger,
            stages=stages,
            beside=beside,
            settings=RunSettings(
                seed=config.seed,
                epochs=config.optim.epochs,
                global_batch=config.optim.global_batch,
                grad_clip=config.optim.grad_clip,
                loss_mean=config.optim.loss_mean,
                tokens_at_once=config.optim.tokens_at_once,
                eval_batch=config.data.eval_batch,
                strangers_every=bool(config.ood and config.ood.every),
                facts=expert_facts(config, template, dtype),
            ),
            decides=method.refuses,
            make_method=partial(_make_method, cfg, config, template, dtype, mesh, ledger, ranks),
            make_trainer=make_trainer,
            tracker=tracker,
            console=console,
            ranks=ranks,
            told=told,
        )
        settings: Any = OmegaConf.to_container(cfg, resolve=True)
        ranks.lead(lambda: tracker.open(ledger.directory, settings, told))
        try:
            run.run()
        except Stopped:
            raise _stopped(ranks, told, console) from None
        if ranks.first:
            results = collect(ledger, stages, tasks, beside, cfg, config, method)
            path = ledger.directory / "results.json"
            if path.exists():
                keep_earlier(results, read_results(path))
            ledger.write(ledger.directory / "matrix.csv", matrix_csv(results))
            study = ledger.directory / "study.json"  # of a finished run that was asked foreign queries afterwards
            studied = read_file(study) if study.exists() else None
            ledger.write(ledger.directory / "report.html", render_html(results, studied))
            ledger.write(path, dump(seal(results)))  # last: that it is there means all is there
            tracker.finish(results, ledger.directory / "report.html")
    ranks.leave()
    if ranks.first and told.signal:
        console.print("stopped when told to; the run is finished, and the same command prints its report")
        raise SystemExit(exit_code([told.signal]))


def _stopped(ranks: Ranks, told: Told, console: Console) -> SystemExit:
    """How a run ends of which some rank was told to stop."""
    code = exit_code(ranks.gather(told.signal))
    console.print(STOPPED)
    return SystemExit(code)


def _take_up(
    cfg: DictConfig,
    config: RunConfig,
    ledger: Ledger,
    command: str,
    size: int,
    template: PromptTemplate,
    tasks: list[Task],
    growing: list[Stage],
    console: Console,
    found: Found,
) -> None:
    """Note what the run is started with, or check that it is what it was started with.

    Args:
        cfg: composed.
        config: its typed form.
        ledger: held.
        command: as it was typed.
        size: how many ranks do the run together.
        template: as it is now.
        tasks: as read now.
        growing: stages that another run may have finished, see ``earlier_run``.
        console: where it is told.
        found: where the run lies, and what it is made from.
    """
    data = {task.name: task.digest() for task in tasks}
    resolved = (
        fast_dtype(cfg.trainer.get("accelerator", "auto")) if config.model.dtype == "auto" else config.model.dtype
    )
    start = {
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "dtype": ledger.content["about"].get("dtype", resolved),
        "ranks": size,
    }
    if start["commit"] is None and (why := why_no_commit()):
        console.print(f"note: the commit of this code is not recorded: {why}")
    about = ledger.about(
        {
            "command": command,
            "commits": [start["commit"]],
            "versions": start["versions"],
            "starts": [start],
            "dtype": resolved,
            "data": data,
            **prompt_facts(template),
            "numbers": found.settings,
            "contents": found.contents.noted(),
        }
    )
    if changed := changed_data(data, about["data"]):
        raise LedgerError(
            f"{ledger.directory} was started on other data: {listed(changed)} changed since."
            f" Restore them, or move that folder away."
        )
    check_prompts(ledger, template)
    _note_contents(ledger, found)
    if start != (last := starts_of(about)[-1]):  # nothing is written at a start like the last one
        if told := differing(last, start):
            console.print(f"going on with {told}")
        about["starts"] = [*starts_of(about), start]
        if start["commit"] != about["commits"][-1]:
            about["commits"].append(start["commit"])
        ledger.commit()
    for name, asked in (("asked_by", config.ood), ("variants_asked_by", config.variants)):
        if asked and about.get(name) != command:
            about[name] = command
            ledger.commit()
    ledger.write(ledger.directory / "config.yaml", sealed_settings(cfg))
    if growing and not ledger.content["stages"]:
        earlier = earlier_run(ledger.directory, numbers_config(cfg), data, found.contents)
        if earlier and earlier.edited:
            refuse_other_model(earlier.directory, earlier.edited, found.contents, config)
            edited = edits(earlier.directory, earlier.edited, found.contents)
            _tell([f"nothing is taken over from {earlier.directory}: {edited} changed since"], console)
        elif earlier:
            taken = adopt(ledger, growing, earlier.directory, answers_too=earlier.answers_too)
            what = "growing: {} finished stages" if earlier.answers_too else "thresholds anew: {} trained stages"
            console.print(f"{what.format(taken)} taken over from {earlier.directory}")
    if about["dtype"] != resolved:
        console.print(
            f"going on in {about['dtype']}, in which this run was begun; this machine's own choice is {resolved}"
        )


def _note_contents(ledger: Ledger, found: Found) -> None:
    """Note what a run is made from, where that was not done when it began."""
    about = ledger.content["about"]
    if "contents" not in about:
        about["contents"] = found.contents.noted()
        ledger.commit()
    if not (ledger.directory / ROWS).exists():
        ledger.write(ledger.directory / ROWS, json.dumps(seal(found.contents.rows)))


def _with_places(path: Path, cfg: DictConfig) -> tuple[str, str]:
    """A run's settings as they are kept, if they are, and as they are with the places where its data and model lie now."""
    if not path.exists():
        return "", sealed_settings(cfg)
    kept, now = read_settings(path), OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    before = sealed_settings(kept)
    for name in ("benchmark.reader", "model.name"):
        OmegaConf.update(kept, name, OmegaConf.select(now, name))
    if comparable(numbers_config(kept)) != comparable(numbers_config(cfg)):
        return before, before  # those of another run, which are left as they are
    return before, sealed_settings(kept)


def _is_noted(directory: Path, cfg: DictConfig) -> bool:
    """Whether a finished run has nothing left to note, so that its report writes nothing."""
    before, now = _with_places(directory / "config.yaml", cfg)
    return before == now and "contents" in Ledger(directory).read().content["about"]


def _note_places(ledger: Ledger, cfg: DictConfig) -> None:
    """Let a finished run's settings say where its data and model lie now, for commands that read them."""
    path = ledger.directory / "config.yaml"
    before, now = _with_places(path, cfg)
    if now != before:
        ledger.write(path, now)


def _make_method(
    cfg: DictConfig,
    config: RunConfig,
    template: PromptTemplate,
    dtype: str,
    mesh: DeviceMesh | None,
    ledger: Ledger,
    ranks: Ranks,
) -> Method:
    """``build_method``, and a note of the model's files where they came onto this machine only now."""
    method = build_method(cfg, config, template, dtype, mesh)
    ranks.lead(lambda: check_model(ledger, config, note=True))
    return method


def _quiet() -> None:
    """Leave out what Lightning says about machines and workers; what matters is told by the run itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers.logging.disable_progress_bar()
    for message in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*GPU available but not used.*",
        ".*srun.* command is available.*",
        ".*litlogger.*",
    ):
        warnings.filterwarnings("ignore", message=message)
