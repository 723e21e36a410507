"""Check a benchmark's files: ``python -m see_lightning.data check BENCHMARK [key=value ...]``."""

import argparse
from collections.abc import Iterator, Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from see_lightning.config import instantiate, register
from see_lightning.data.audit import PartAudit, audit, warnings
from see_lightning.data.example import DataError
from see_lightning.data.reader import Reader
from see_lightning.frame import frame
from see_lightning.overrides import translate
from see_lightning.refusals import CONF

DESCRIPTION = """\
Count what stands in your copy of a benchmark: rows, different prompts, rows of other parts that stand in train, the longest
prompt in characters, labels, and the sha256 of each file. Nothing is trained and nothing is changed."""


@frame()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the audit of a benchmark.

    Args:
        arguments: as typed; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m see_lightning.data", description=DESCRIPTION)
    parser.add_argument("command", choices=["check"], help="audit a benchmark's files")
    parser.add_argument("benchmark", metavar="BENCHMARK", help="one of conf/benchmark, such as trace_500")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="as for run.py, such as paths.data=DIR")
    parser.add_argument("--task", action="append", metavar="NAME", help="only this one; may be given several times")
    given = parser.parse_intermixed_args(arguments)
    console = Console()
    config = _composed(given.benchmark, given.settings)
    reader: Reader = instantiate(config.reader)
    there, absent = _tasks(reader, config, given.task)
    for task in there:
        _print(console, task, audit(reader.parts(task)))
    if absent:
        console.print(f"not there: {', '.join(absent)}", soft_wrap=True)


def _composed(benchmark: str, settings: Sequence[str]) -> DictConfig:
    """The resolved benchmark as a run would see it."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("run", overrides=[f"benchmark={benchmark}", *translate(settings, several=False)]).benchmark
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise DataError(f"{missing[0]} is not set; give {missing[0]}=...")
    OmegaConf.resolve(config)
    assert isinstance(config, DictConfig)
    return config


def _tasks(reader: Reader, config: DictConfig, asked: list[str] | None) -> tuple[list[str], list[str]]:
    """The tasks to look at, and those of the benchmark that are not there."""
    if asked:
        return asked, []
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
    for line in (*_labels(parts), *warnings(parts)):
        console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
    console.print()


def _labels(parts: dict[str, PartAudit]) -> Iterator[str]:
    for name, part in parts.items():
        if part.labels:
            yield f"{name} answers: {', '.join(f'{label} {rows}' for label, rows in part.labels.items())}"


if __name__ == "__main__":
    main()
