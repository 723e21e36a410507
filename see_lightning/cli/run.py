"""``python run.py`` as a function: one job, or with ``-m`` several. Torch is imported after a configuration is checked."""

import gc
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from see_lightning.config.effects import check_effects
from see_lightning.config.explain import REFUSED, explain
from see_lightning.config.overrides import translate
from see_lightning.config.search_path import CONF, PROGRAM, register, register_own_conf
from see_lightning.config.sources import combine_sources
from see_lightning.config.validation import validate
from see_lightning.errors import ConfigError
from see_lightning.frame import frame

#: Exit codes of a stopped run, which also stop a multirun: Ctrl-C, SIGTERM, a scheduler's warning signal.
STOPPED = (130, 143, 75)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, resume or report one experiment, or with ``-m`` several, as ``python run.py`` does.

    Args:
        argv: overrides and Hydra's flags, in any order; those of the process by default.

    Raises:
        SystemExit: after a refusal or a stop, or if a job of a multirun failed.
    """
    with frame(code=1, prefix="error: "):
        register()
        version.setbase("1.3")
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors, and ``frame`` prints them in one line
        parser = get_args_parser()
        parser.add_argument(
            "--dry-run", action="store_true", help="Print weights, memory, steps, tokens and time; run nothing"
        )
        args, unknown = parser.parse_known_intermixed_args(sys.argv[1:] if argv is None else list(argv))
        if unknown:
            name, equals, value = unknown[0].lstrip("-").partition("=")
            typed = f"{name or 'NAME'}={value if equals else '...'}"
            raise ConfigError(f"there is no option {unknown[0]}; a setting is written without hyphens: {typed}")
        if args.multirun and (args.cfg or args.info):
            raise ConfigError(
                "--cfg and --info show one configuration: leave out -m, and choose one value of each setting."
            )
        args.overrides = translate(args.overrides, several=args.multirun or "hydra.mode=MULTIRUN" in args.overrides)
        register_own_conf([args.config_dir])
        if args.dry_run:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported; a network would be waited for
        jobs = Jobs(args.overrides, is_dry=args.dry_run)
        try:
            _run_hydra(args, parser, jobs, str(CONF), "run")
        except ValueError as error:
            if isinstance(error, REFUSED) or jobs.begun:
                raise
            raise ConfigError(str(error)) from error  # flags of Hydra that exclude each other
        jobs.end()


def job(cfg: DictConfig, *, is_dry: bool = False) -> None:
    """Check one configuration, then import torch and run it, or print what it would take."""
    combine_sources(cfg)
    left_out = drop_settings_of_others(cfg, HydraConfig.get().overrides.task)
    validate(cfg)
    several = HydraConfig.get().mode == RunMode.MULTIRUN or "WANDB_SWEEP_ID" in os.environ
    own, notes = check_effects(cfg, HydraConfig.get().overrides.task, several=several)
    for note in (*left_out, *notes):
        print(f"note: {note}", file=sys.stderr)
    if is_dry:
        from see_lightning.engine.dry_run import dry_run

        gc.freeze()  # the further jobs of a sweep would look through torch's million objects again and again
        dry_run(cfg)
        return
    from see_lightning.engine.launch import launch

    # A job of a multirun is recorded as the command that repeats it alone.
    launch(cfg, shlex.join([*PROGRAM, *own]))


def drop_settings_of_others(cfg: DictConfig, typed: Sequence[str]) -> list[str]:
    """Leave out settings that an experiment makes of its own method or router, where another one was typed.

    Args:
        cfg: composed; changed in place.
        typed: overrides, as Hydra took them.

    Returns:
        A note for each group of which settings were left out.
    """
    groups = [
        group
        for group in ("method", "router", "rule")
        if any(word.startswith(f"{group}=") or word == f"~{group}" for word in typed)
    ]
    choices = HydraConfig.get().runtime.choices
    experiment = choices.get("experiment")
    if not experiment or all(_has_own_settings_alone(cfg, group, choices.get(group)) for group in groups):
        return []
    rest = [word for word in typed if not word.lstrip("+").startswith("experiment=")]
    try:  # the typed option's own settings are those that it has without the experiment
        plain = GlobalHydra.instance().config_loader().load_configuration("run", rest, RunMode.RUN)
    except REFUSED:  # a typed setting is one that the experiment alone adds; it is refused or used as it is
        return []
    notes = []
    for group in groups:
        if plain.get(group) is None:  # typed as null: the experiment's settings of another option are all that is left
            if cfg[group]:
                notes.append(
                    f"{', '.join(cfg[group])} of experiment={experiment} left out: {group}=null has no settings"
                )
            cfg[group] = None
            continue
        others = sorted(set(cfg[group]) - set(plain[group]))
        if others and cfg[group]["_target_"] == plain[group]["_target_"]:
            with open_dict(cfg[group]):
                for name in others:
                    del cfg[group][name]
            chosen = f"{group}={choices.get(group)}"
            notes.append(f"{', '.join(others)} of experiment={experiment} left out: {chosen} has no such settings")
    return notes


def _has_own_settings_alone(cfg: DictConfig, group: str, choice: str | None) -> bool:
    """Whether an option's file names all settings that it has, which takes no second composition to know."""
    loader: Any = GlobalHydra.instance().config_loader()
    found = loader.repository.load_config(f"{group}/{choice}") if choice and cfg[group] else None
    return found is not None and set(cfg[group]) <= set(found.config)


class Jobs:
    """Runs the jobs of a command; Hydra calls it with each configuration. A failed job is reported at once and at the end.

    Args:
        typed: the overrides of the command, which are common to all jobs.
        is_dry: whether nothing is run.
    """

    def __init__(self, typed: Sequence[str], *, is_dry: bool = False) -> None:
        self.typed, self.process, self.is_dry = set(typed), os.getpid(), is_dry
        self.begun = 0
        self.failed: list[str] = []
        self.error: Exception | None = None

    def __call__(self, cfg: DictConfig) -> None:
        """Run one job."""
        if os.getpid() != self.process:  # in a process of a launcher, which returns errors itself
            return job(cfg, is_dry=self.is_dry)
        self.begun += 1
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            job(cfg, is_dry=self.is_dry)
        except REFUSED as error:
            self._note(error, explain(error), several)
        except Exception as error:
            if several:
                traceback.print_exc()
            self._note(error, f"{type(error).__name__}: {error}", several)
        except SystemExit as end:
            if not several or end.code in (0, None, *STOPPED):
                raise
            self._note(ConfigError(str(end.code)), f"ended with {end.code}, see above", several)

    def _note(self, error: Exception, reason: str, several: bool) -> None:
        self.error = error
        if several:
            own = [override for override in HydraConfig.get().overrides.task if override not in self.typed]
            self.failed.append(f"{' '.join(own) or 'the job'}: {reason}")
            print(f"error: {self.failed[-1]}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Raise the error of a single job, or list the failed jobs of several.

        Raises:
            SystemExit: some of several jobs failed.
        """
        if self.failed:
            print(f"{len(self.failed)} of {self.begun} jobs failed:", *self.failed, sep="\n  ", file=sys.stderr)
            raise SystemExit(1)
        if self.error:
            raise self.error
