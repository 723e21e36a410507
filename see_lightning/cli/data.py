"""Check a benchmark's files: ``see-lightning data check BENCHMARK [key=value ...]``."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from see_lightning.cli.command import Parser, command
from see_lightning.config.compose import composed
from see_lightning.config.explain import explain
from see_lightning.config.instantiate import instantiate
from see_lightning.config.validation import validate
from see_lightning.data.audit import PartAudit, audit, warnings
from see_lightning.data.reader import Reader
from see_lightning.errors import DataError, Refusal

DESCRIPTION = """\
Count your copy of a benchmark: rows, different prompts, rows of other parts that are also in train, the longest prompt in
characters, labels, the sha256 of each file, and the lengths in tokens against model.max_length. Then read every task as a run
does, and print the run's notes and errors, and the rows that data.on_bad_row=skip would leave out. The exit code is 1 if a
task would stop a run. Nothing is trained and nothing is changed."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a benchmark, settings and tasks."""
    parser.add_argument("action", choices=["check"], help="audit a benchmark's files")
    parser.add_argument("benchmark", metavar="BENCHMARK", help="one of conf/benchmark, such as trace_500")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="as for run.py, such as paths.data=DIR")
    parser.add_argument("--task", action="append", metavar="NAME", help="only this one; may be given several times")


@command("data", DESCRIPTION, add_arguments)
def main(given: argparse.Namespace) -> None:
    """Print the audit of a benchmark; a task at which a run would stop ends the command with exit code 1."""
    console = Console()
    config = _composed(given.benchmark, given.settings)
    reader: Reader = instantiate(config.benchmark.reader)
    present, absent = _tasks(reader, config.benchmark, given.task)
    facts_of, notices_of = _as_a_run(config)
    stops = 0
    for task in present:
        notices: Sequence[str]
        try:
            _print(console, task, audit(reader.parts(task)))
            notices, refused = notices_of(task), False
        except Refusal as error:
            notices, refused = [f"a run stops at {task}: {explain(error)}"], True
            stops += 1
        _print_lines(console, facts_of(task, unusable=refused or config.data.on_bad_row == "skip"))
        _print_lines(console, (line.removeprefix(f"{task}: ") for line in notices))
        console.print()
    if absent:
        console.print(f"not there: {', '.join(absent)}", soft_wrap=True)
    if stops:
        console.print(f"{stops} of {len(present)} tasks would stop a run", soft_wrap=True)
        raise SystemExit(1)


def _composed(benchmark: str, settings: Sequence[str]) -> DictConfig:
    """The configuration of a run that takes all rows, with the benchmark resolved."""
    own = ["order.name=check", "train_size=null", "test_size=null", f"benchmark={benchmark}"]
    config = composed([*own, *settings])
    missing = sorted(OmegaConf.missing_keys(config.benchmark))
    if missing:
        raise DataError(f"{missing[0]} is not set; give {missing[0]}=...")
    OmegaConf.resolve(config.benchmark)
    return config


def _as_a_run(config: DictConfig) -> tuple[Callable[..., Iterable[str]], Callable[[str], Sequence[str]]]:
    """Two functions of a task's name: facts about its rows, and the notices of a run on them, which raises its refusals."""
    from see_lightning.engine.build import build_tasks, build_template  # late: it takes seconds to import
    from see_lightning.engine.data_check import row_facts

    typed = validate(config)
    template = build_template(typed)

    def notices_of(task: str) -> Sequence[str]:
        (read,) = build_tasks(config, replace(typed, order=replace(typed.order, tasks=[task], stream="none")), template)
        return read.notices

    return partial(row_facts, config, typed, template), notices_of


def _tasks(reader: Reader, config: DictConfig, chosen: list[str] | None) -> tuple[list[str], list[str]]:
    """The tasks to check, and the benchmark's tasks without files."""
    if chosen:
        return chosen, []
    readable = reader.tasks()
    wanted = [str(task) for task in config.tasks] or readable
    return [task for task in wanted if task in readable], [task for task in wanted if task not in readable]


def _print(console: Console, task: str, parts: dict[str, PartAudit]) -> None:
    table = Table(title=task, title_justify="left", title_style="bold", box=None)
    table.add_column("")
    for column in ("rows", "prompts", "in train", "longest"):
        table.add_column(column, justify="right")
    table.add_column("sha256")
    for name, part in parts.items():
        numbers = map(str, (part.rows, part.prompts, "" if name == "train" else part.in_train, part.longest))
        table.add_row(name, *numbers, " ".join(digest[:12] for digest in part.sha256.values()))
    console.print(table)
    _print_lines(console, (*_labels(parts), *warnings(parts)))


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)


def _labels(parts: dict[str, PartAudit]) -> Iterator[str]:
    for name, part in parts.items():
        if part.labels:
            yield f"{name} answers: {', '.join(f'{label} {rows}' for label, rows in part.labels.items())}"
