"""Who is told of a run while it goes on: nobody, a Lightning logger for each stage, or Weights & Biases.

A tracker is told and decides nothing: whichever it is, the run ends with the same numbers.
"""

import importlib.util
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from see_lightning.config import ConfigError, instantiate, one_of
from see_lightning.engine.ledger import dump
from see_lightning.evaluation.drawings import confusion_svg, matrix_svg
from see_lightning.refusals import with_cause
from see_lightning.writing import refuse_links, write_text


class Tracker:
    """Tells nobody, and is the interface of those that do. A context, so that whatever ends a run closes it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        match error:
            case None:
                self.close(0)
            case SystemExit(code=int(code)):
                self.close(code, goes_on=True)
            case _:
                self.close(1)

    def open(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Begin, or go on, before anything is trained.

        Args:
            directory: of the run.
            config: resolved, as plain containers.

        Raises:
            ConfigError: nobody could be told.
        """

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """What the Trainer of a task reports to, with the folder of its stage."""
        return False

    def score(self, *, after: int, task: str, score: float) -> None:
        """A cell of the results matrix: the score (0..100) on a task after so many tasks, from 1."""

    def finish(self, results: Mapping[str, Any], report: Path) -> None:
        """Everything is computed: the content of ``results.json``, and the page made from it."""

    def close(self, code: int, *, goes_on: bool = False) -> None:
        """The run ends with this exit code, or was told to stop and goes on when its command is given again."""


def make_tracker(node: DictConfig | None) -> Tracker:
    """The tracker that the config names; of a run's processes, the first one alone tells."""
    tracker: Tracker = instantiate(node) if node and rank_zero_only.rank == 0 else Tracker()
    return tracker


class StageLoggers(Tracker):
    """A logger of Lightning's for each stage, in the stage's folder.

    Args:
        logger: makes one, given ``save_dir``.
    """

    def __init__(self, *, logger: Callable[..., Logger]) -> None:
        self.logger = logger

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """A fresh one."""
        return self.logger(save_dir=str(folder))


class WandbTracker(Tracker):
    """One W&B run for a run directory: over all stages, and under one id however often it is resumed.

    Its id is kept beside W&B's own files, so that a run that is begun anew is a new one there too. Within a sweep the
    agent has chosen id and project already.

    Args:
        project: where the run is listed.
        entity: user or team; None takes that of the login.
        mode: ``online``; ``offline``, kept in the run directory for ``wandb sync``; ``disabled``.
        name: of the run; None takes its place, ``<order>/<method>/<key>/seed=<n>``.
        group: what it is compared with; None takes the same without the seed.
        tags: to find it by.

    Raises:
        ConfigError: there is no such mode, or W&B is not installed.
    """

    def __init__(
        self, *, project: str, entity: str | None, mode: str, name: str | None, group: str | None, tags: Sequence[str]
    ) -> None:
        one_of("logger.mode", mode, ("online", "offline", "disabled"))
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError("logger=wandb needs a package that is not installed; pip install -e '.[wandb]'")
        self.project, self.entity, self.mode = project, entity, mode
        self.name, self.group, self.tags = name, group, tags
        self._run: Any = None

    def open(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Settings are told under the names that the command line has for them, which are a sweep's names too."""
        import wandb

        *group, seed = directory.parts[-4:]
        kept = directory / "wandb" / "id"
        refuse_links(kept, directory)
        given = (
            kept.read_text() if kept.exists() else f"{group[-1]}-{seed.removeprefix('seed=')}-{secrets.token_hex(3)}"
        )
        in_sweep = "WANDB_SWEEP_ID" in os.environ
        try:
            self._run = wandb.init(
                project=None if in_sweep else self.project,
                entity=None if in_sweep else self.entity,
                id=None if in_sweep else given,
                name=self.name or "/".join([*group, seed]),
                group=self.group or "/".join(group),
                job_type=group[1],
                tags=self.tags,
                config=flat(config),
                dir=directory,
                mode=self.mode,  # type: ignore[arg-type]  # checked in the constructor
                resume="allow",
                reinit="finish_previous",  # else a multirun's second job would go on in the first one's run
            )
        except wandb.Error as error:
            raise ConfigError(
                f"W&B cannot be reached ({with_cause(error)}); log in with `wandb login`, or keep the run on"
                f" this machine with logger.mode=offline."
            ) from error
        if self.mode != "disabled":
            kept.parent.mkdir(exist_ok=True)
            write_text(kept, self._run.id)
        self._run.define_metric("eval/*", step_metric="tasks_learned")

    def stage(self, task: str, folder: Path) -> Logger | Literal[False]:
        """All report to the one run, each under its task's name and with its own steps."""
        return _TaskLogger(self._run, task)

    def score(self, *, after: int, task: str, score: float) -> None:
        """Once as a point of the task's curve, once as a cell of the matrix."""
        self._run.log({"tasks_learned": after, f"eval/{task}": score, f"eval/after={after}/{task}": score})

    def finish(self, results: Mapping[str, Any], report: Path) -> None:
        """Metrics, pictures, the report; and the whole matrix, of which a run that was killed or grew told a part."""
        import wandb

        if self.mode == "disabled":
            return
        tasks, routing = results["tasks"], results.get("routing", {})
        numbers = {f"continual/{name}": value for name, value in results["metrics"].items()}
        numbers |= {f"route/{name}": value for name, value in routing.items() if not isinstance(value, list | dict)}
        pictures = {"picture/matrix": _picture(matrix_svg(tasks, results["matrix"]))}
        if routing:
            drawn = confusion_svg(routing["tasks"], routing["columns"], routing["confusion"])
            pictures["picture/routing"] = _picture(drawn)
        self._run.log({name: value for name, value in numbers.items() if value is not None} | pictures)
        cells = {
            f"eval/after={after}/{task}": score
            for after, row in enumerate(results["matrix"], start=1)
            for task, score in zip(tasks, row, strict=True)
            if score is not None
        }
        self._run.summary.update(cells)
        artifact = wandb.Artifact(f"report-{self._run.id}", type="report")
        for name, text in (("report.html", report.read_text(encoding="utf-8")), ("results.json", dump(results))):
            # Beside W&B's own files, where it lies until an offline run is sent, and is not taken for the run's.
            kept = Path(self._run.dir) / f"report-{name}"
            write_text(kept, text)
            artifact.add_file(str(kept), name=name, policy="immutable")
        self._run.log_artifact(artifact)

    def close(self, code: int, *, goes_on: bool = False) -> None:
        """Any code but 0 is a failure; a sweep hands a run that was preempted out again."""
        if self._run is None:
            return
        if goes_on:
            self._run.mark_preempting()
        self._run.finish(exit_code=code)
        self._run = None


class _TaskLogger(Logger):
    """Lightning's view of a W&B run that belongs to no single Trainer.

    Args:
        run: of W&B.
        task: that is trained.
    """

    def __init__(self, run: Any, task: str) -> None:
        super().__init__()
        self.run, self.task = run, task
        run.define_metric(f"train/{task}/*", step_metric=f"train/{task}/step")

    @property
    def name(self) -> str:
        """As Lightning wants it."""
        return "wandb"

    @property
    def version(self) -> str:
        """The id of the run."""
        return str(self.run.id)

    def log_hyperparams(self, *_: object) -> None:
        """They are the run's config."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """``train/loss`` becomes ``train/<task>/loss``."""
        here = {f"train/{self.task}/{name.removeprefix('train/')}": value for name, value in metrics.items()}
        self.run.log({f"train/{self.task}/step": step, **here})


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config under dotted names.

    >>> flat({"seed": 0, "optim": {"lr": 0.001}})
    {'seed': 0, 'optim.lr': 0.001}
    """
    found: dict[str, Any] = {}
    for name, value in node.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _picture(svg: str) -> Any:
    """A drawing as W&B shows it, in a page of its own that brings the colours; greys stand on light and on dark."""
    import wandb

    colours = ":root { color-scheme: light dark; --muted: #808890; --line: #80889060; --accent: #4a90d9 }"
    page = f'<html><head><meta charset="utf-8"><style>{colours}</style></head><body>{svg}</body></html>'
    return wandb.Html(page, inject=False, data_is_not_path=True)
