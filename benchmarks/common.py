"""What the benchmarks share: options, a configuration as ``run.py`` composes it, and training as a run trains."""

import argparse
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# As the package sets them for itself; read when torch is imported, which the package's own modules do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import hydra
import lightning as L
import torch
import transformers
from omegaconf import DictConfig
from rich.console import Console

from benchmarks.timing import ENOUGH, Clock
from see_lightning.config.instantiate import instantiate
from see_lightning.config.schema import RunConfig
from see_lightning.config.search_path import CONF, register
from see_lightning.config.validation import validate
from see_lightning.engine.build import build_method, build_tasks, build_template
from see_lightning.engine.callbacks import StageProgress, StopOnSignal, Throughput
from see_lightning.engine.distributed import Ranks
from see_lightning.engine.pages import kept_pages
from see_lightning.engine.preemption import StopSignal
from see_lightning.errors import ConfigError
from see_lightning.frame import frame
from see_lightning.methods.method import Method
from see_lightning.models.base import fast_dtype
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Batch
from see_lightning.tasks.datamodule import TaskDataModule
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sync() -> None:
    """Wait until the device has done its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def tell(line: str) -> None:
    """Progress goes to standard error; standard output ends with the JSON object."""
    print(line, file=sys.stderr, flush=True)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and every default."""


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Raw data: SEE_DATA=DIR, as for run.py. The last line printed is one JSON object.",
        formatter_class=_Help,
    )
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--repeats", type=positive, default=ENOUGH, help="clean samples wanted of each contender")
    parser.add_argument("--force", action="store_true", help="report ratios from a busy machine too, marked as such")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings, as run.py takes them: model=tiny"
    )
    return parser


def positive(text: str) -> int:
    """A whole number, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number


def numbers(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    return [positive(part) for part in text.split(",")]


def adapter_names(text: str) -> list[str]:
    """Files of ``conf/adapter``, separated by commas."""
    names = text.split(",")
    there = sorted(path.stem for path in (CONF / "adapter").glob("*.yaml"))
    for name in names:
        if name not in there:
            raise argparse.ArgumentTypeError(f"there is no adapter={name}; there are {', '.join(there)}")
    return names


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options given; the number of threads is set by them."""
    args = parser.parse_intermixed_args(arguments)
    if args.repeats < ENOUGH and not args.force:
        parser.error(f"--repeats {args.repeats} can conclude nothing: give at least {ENOUGH}, or --force.")
    torch.set_num_threads(args.threads)
    return args


def main(benchmark: Callable[[Sequence[str] | None], None]) -> None:
    """Run a benchmark; what the user cannot mean is told in one line."""
    quiet()
    with frame(code=1, prefix="error: "):
        benchmark(None)


def quiet() -> None:
    """Neither progress bars nor advice in between."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Setup:
    """A checked configuration and what is built from it without a model.

    Args:
        cfg: composed.
        config: its typed form.
        template: prompt style and tokenizer.
        tasks: in their order, read and checked.
        dtype: of the model: ``bf16`` or ``fp32``.
    """

    cfg: DictConfig
    config: RunConfig
    template: PromptTemplate
    tasks: list[Task]
    dtype: str

    def method(self) -> Method:
        """A fresh base model with the method around it."""
        return build_method(self.cfg, self.config, self.template, self.dtype)

    def conditions(self) -> str:
        """What every time hangs on, in one line."""
        return (
            f"{self.config.model.name}, {self.dtype}, {DEVICE.type}, {torch.get_num_threads()} of"
            f" {os.cpu_count()} threads, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}, torch {torch.__version__},"
            f" transformers {transformers.__version__}"
        )


def compose(overrides: Sequence[str]) -> DictConfig:
    """What ``python run.py`` would compose; of several values for one key the last counts."""
    register()
    chosen = {override.split("=")[0]: override for override in overrides}
    if DEVICE.type == "cuda":
        chosen.setdefault("trainer", "trainer=gpu")
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra.compose("run", overrides=list(chosen.values()))


def prepare(overrides: Sequence[str]) -> Setup:
    """Compose, check, and read the data.

    Raises:
        ConfigError, DataError: as a run would.
    """
    return built(compose(overrides))


def built(cfg: DictConfig) -> Setup:
    """What ``prepare`` gives, of a composed configuration."""
    config = validate(cfg)
    template = build_template(config)
    dtype = fast_dtype(cfg.trainer.get("accelerator", "auto")) if config.model.dtype == "auto" else config.model.dtype
    return Setup(cfg, config, template, build_tasks(cfg, config, template), dtype)


class MeanLoss(L.Callback):
    """The mean of all steps' losses, as transformers reports it: contenders that learn the same have similar ones."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Kept on the device, so that nobody waits for it."""
        self.losses.append(outputs["loss"].detach())

    def mean(self) -> float:
        """Over all steps."""
        return float(torch.stack(self.losses).mean())


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a training left behind besides its weights.

    Args:
        steps: optimizer steps.
        tokens: real tokens in them.
        computed: the same with padding.
        loss: mean over the steps.
    """

    steps: int
    tokens: int
    computed: int
    loss: float

    @property
    def token_efficiency(self) -> float:
        """Share of computed tokens that are real."""
        return self.tokens / self.computed


def fit(setup: Setup, method: Method, task: Task, data: TaskDataModule, clock: Clock) -> Fitted:
    """Train a new expert as ``TrainStage`` does, with its Trainer, callbacks and seeds.

    Args:
        setup: its ``optim`` tells how.
        method: what is trained; begins the task here.
        task: whose expert it is.
        data: the examples, tokenised.
        clock: runs while the Trainer does, from the expert's first step or prefill to its last.
    """
    throughput, loss = Throughput(), MeanLoss()
    progress = StageProgress(Console(quiet=True), task.name, throughput)
    with tempfile.TemporaryDirectory() as folder:
        trainer: L.Trainer = instantiate(setup.cfg.trainer)(
            default_root_dir=folder,
            max_epochs=setup.config.optim.epochs,
            callbacks=[throughput, progress, loss, StopOnSignal(StopSignal(), Ranks())],
            logger=False,
            gradient_clip_val=setup.config.optim.grad_clip or None,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            reload_dataloaders_every_n_epochs=1,
        )
        method.begin_task(task, Memory(setup.config.seed))
        torch.manual_seed(seed(setup.config.seed, task.name, "dropout"))
        with clock, kept_pages():
            trainer.fit(method, datamodule=data)
    return Fitted(throughput.steps, throughput.tokens, throughput.computed, loss.mean())


def is_there(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def require(package: str) -> None:
    """Refuse early where a peer is not installed."""
    if not is_there(package):
        raise ConfigError(f"the peers of this benchmark need {package}: pip install -e '.[bench]'.")
