"""``see-lightning run``: finds the run directory, starts or resumes the run, and prints its report."""

import logging
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import transformers
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import see_lightning.engine.strategy  # noqa: F401  makes fsdp_base known to Lightning
from see_lightning.config.identity import method_name
from see_lightning.config.schema import RunConfig
from see_lightning.config.validation import FSDP_BASE, validate
from see_lightning.engine.build import build_tasks, build_template, check_adaptable, settle_targets
from see_lightning.engine.contents import read_contents
from see_lightning.engine.distributed import Echo, Place, Ranks, check_size, join, on_gpu, place, processes, supervise
from see_lightning.engine.find import Found, find_run
from see_lightning.engine.imports import check_imports, settle_experts
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.merge_rule import settle_rule
from see_lightning.engine.preemption import ended_at_once, leave_quietly
from see_lightning.engine.remote import check_engine
from see_lightning.engine.report_again import bring_up_to_date, check_template, is_finished
from see_lightning.engine.router import settle_router
from see_lightning.engine.session import Session
from see_lightning.errors import ConfigError, Refusal, room_needed
from see_lightning.files.run_files import well_shaped
from see_lightning.methods.lookup import method_class
from see_lightning.reporting.report.terminal import print_report
from see_lightning.reporting.runs import read_results


def find(cfg: DictConfig, config: RunConfig) -> Found:
    """Find the directory of an experiment by its settings and inputs, see ``engine.find.find_run``."""

    @cache
    def digests() -> dict[str, str]:
        return {task.name: task.digest() for task in build_tasks(cfg, config, build_template(config))}

    return find_run(cfg, config, read_contents(cfg, config), digests)


def run_directory(cfg: DictConfig, config: RunConfig) -> Path:
    """The directory of a run, ``runs/<order>/<method>/<key>/seed=<n>``."""
    return find(cfg, config).directory


def launch(cfg: DictConfig, command: str) -> Path:
    """Run, resume or report one experiment, and print the path of its ``results.json`` as the last line.

    Several ranks are started by ``torchrun`` or ``srun``, or else here: each gets the composed config in a file, which
    differs between the jobs of a multirun.

    Args:
        cfg: the composed config.
        command: as it was typed; recorded in the ledger.

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
            settle_experts(cfg, config)
            settle_router(cfg, config)
            settle_rule(cfg, config)
            with room_needed(Path(config.paths.runs)):
                found = find(cfg, config)
            path = found.directory / "results.json"
            finished = is_finished(cfg, path)
    except Refusal:
        if here is None or here.rank == 0:
            raise
        raise leave_quietly() from None  # the first rank raises the same refusal and prints it
    if here:
        check_size(here, wanted)
    elif wanted == 1:
        here = Place(0, 1, 0)
    is_first = here is None or here.rank == 0
    if finished and is_first:
        bring_up_to_date(cfg, found)
        check_template(config, Ledger(found.directory).read())
    elif not finished:
        check_traits(cfg, config)
        check_adaptable(cfg, config)
        check_imports(cfg, config, Ledger(found.directory).read().trained_tasks())
        if here is None:
            _start_ranks(cfg, command, wanted)
            return path
        _run(cfg, config, found, command, join(here, gpu=on_gpu(cfg)) if wanted > 1 else Ranks())
    if is_first:
        results = read_results(path)
        with well_shaped(path):
            print_report(results, Console(), config.protocol)
        print(f"{found.directory / 'report.html'}\n{path}", flush=True)
    return path


def _run(cfg: DictConfig, config: RunConfig, found: Found, command: str, ranks: Ranks) -> None:
    """Run this rank's session; of all refusals only one is printed, by the first rank."""
    _quiet()
    try:
        with room_needed(found.directory):
            Session(cfg, config, Ledger(found.directory, writes=ranks.first), command, ranks, found).run()
    except (Refusal, SystemExit) as end:
        if isinstance(end, Echo) or (ranks.first and isinstance(end, Refusal)):
            ranks.leave()
        elif isinstance(end, Refusal):
            ranks.publish_error(f"rank {ranks.rank}: {end}")  # this rank's own, such as a full disk
        if ranks.first:
            raise
        raise leave_quietly() from None
    except RuntimeError as error:
        if ranks.first and (reason := ranks.peer_error()):  # a collective operation failed because that rank ended
            raise Refusal(reason) from error
        raise


def check_traits(cfg: DictConfig, config: RunConfig) -> None:
    """Refuse what the method does not declare to take: a sharded base, activated experts, whole layers, ``optim.migu``."""
    method = method_class(cfg.method)
    sharded = cfg.trainer.get("strategy") == FSDP_BASE
    if sharded and not method.traits.shardable:
        raise ConfigError(
            f"method={method_name(cfg)} was not made for a base model of which each rank holds only a part, as with"
            f" trainer.strategy={FSDP_BASE}; choose trainer=ddp, in which each rank holds the whole model."
        )
    if sharded and config.model.quantization != "none":
        raise ConfigError(
            f"model.quantization={config.model.quantization} keeps scales beside the weights, which"
            f" trainer.strategy={FSDP_BASE} does not divide among ranks; choose trainer=ddp."
        )
    if config.adapter.activated and not method.traits.takes_activated:
        raise ConfigError(
            f"method={method_name(cfg)} changes how the whole prompt is read, and activated experts act from its last tokens"
            f" on; choose adapter=lora."
        )
    if config.optim.migu and (not method.traits.one_lora or config.adapter.full):
        raise ConfigError(
            f"optim.migu={config.optim.migu} chooses rows of one LoRA adapter that every task trains further, such as that of"
            f" method=seqft, replay or ewc with adapter=lora; leave it out of method={method_name(cfg)}"
            f"{' with adapter=full' if config.adapter.full else ''}."
        )
    if config.order.experts and not method.trains_apart(cfg.method):
        raise ConfigError(
            f"order.experts changes single experts, and with these settings those of method={method_name(cfg)} depend on each"
            f" other or are none; it is for method=see without reuse and warm_start, stl and any_ssr."
        )
    if config.adapter.quantization != "none" and not method.trains_apart(cfg.method):
        raise ConfigError(
            f"adapter.quantization rounds an expert when it is trained, and with these settings those of"
            f" method={method_name(cfg)} depend on each other or are none; it is for method=see without reuse and warm_start,"
            f" stl and any_ssr."
        )
    check_engine(cfg, config)
    if not config.adapter.full or method.traits.schedule == "frozen":
        return
    if method.traits.weights == "lora":
        raise ConfigError(
            f"method={method_name(cfg)} is made of LoRA adapters, and adapter.full=true trains whole layers; choose"
            f" adapter=lora."
        )
    if config.model.quantization != "none":
        raise ConfigError(
            f"adapter=full trains copies of the base model's layers, and model.quantization={config.model.quantization} keeps"
            f" these in fewer bits; choose adapter=lora, or model.quantization=none."
        )
    if sharded:
        raise ConfigError(
            f"adapter=full trains copies of the base model's layers, of which each rank holds only a part with"
            f" trainer.strategy={FSDP_BASE}; choose trainer=ddp."
        )


def _start_ranks(cfg: DictConfig, command: str, wanted: int) -> None:
    """Run every rank in a process of its own on this machine; the first of them prints the report."""
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


def _quiet() -> None:
    """Silence notices of libraries about hardware and data loaders, and the progress bars of transformers."""
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
