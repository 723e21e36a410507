"""The score of each expert of a finished run on each task: ``see-lightning transfer RUN_DIR``."""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from see_lightning.cli.command import Parser, at_least, command
from see_lightning.config.trust import NOTHING, Trust, add_trust, load_config, trust_in
from see_lightning.config.validation import validate
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import FORCED, Ledger
from see_lightning.engine.measured import TRANSFER, measured_once
from see_lightning.errors import Refusal
from see_lightning.files.run_files import well_shaped

DESCRIPTION = """\
The transfer matrix of a finished run: the score of each expert, and of the base model, on each task's test queries,
without routing. The diagonal has the task's own expert, the other cells those of other tasks. Prints a table and keeps it as
transfer.json in the run's directory. For methods with an expert or a part of a shared pool for each task: stl, see, moses,
exssnet, sema."""
EPILOG = """\
An expert of see answers after its positive indicator, even to a query that it would not accept. Cached responses of the run
are reused, and new ones are added to the cache after each task, so that an interrupted command goes on. Reads the model and
the data, unless transfer.json is there and belongs to the run as it is."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, a number of queries, and another file for the output."""
    parser.add_run_dir()
    parser.add_argument(
        "--size", type=at_least(1), metavar="N", help="only the first N test queries of each task (default: all)"
    )
    parser.add_out(TRANSFER)
    add_trust(parser)


@command("transfer", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Print the transfer matrix of a run; measure it unless it is in its directory."""
    path = find_run(given.run_dir) / TRANSFER
    ask = partial(measure, size=given.size, trust=trust_in(given))
    measured = measured_once(path, given.command, ask, {"size": given.size}, given.out)
    with well_shaped(path):
        _print(measured)
    print(given.out or path)


def measure(
    results: Mapping[str, Any], ledger: Ledger, size: int | None = None, trust: Trust = NOTHING
) -> dict[str, Any]:
    """Measure the transfer matrix: the content of ``transfer.json``.

    Args:
        results: of the run.
        ledger: of the run, locked; or an ``Unheld`` one, which does not keep new answers.
        size: test queries of each task, the first ones; None takes all.
        trust: the code named in the run's settings that may run.

    Raises:
        Refusal: the method has no experts.
        LedgerError: a file of the run is damaged, or tokenizer, template or data differ from the run's.
        DataError: the data cannot be read.
    """
    # Late, because these import torch, which takes longer than a refusal should.
    from dataclasses import replace

    from see_lightning.engine.loaded_run import keep_said, load_remembering, read_tasks
    from see_lightning.evaluation.evaluate import adapter_score
    from see_lightning.evaluation.routing import BASE
    from see_lightning.methods.lookup import method_class
    from see_lightning.methods.method import ExpertMethod

    cfg = load_config(ledger.directory / "config.yaml", trust)
    if not issubclass(method_class(cfg.method), ExpertMethod):
        raise Refusal(
            f"{ledger.directory} is a run of {results['method']}, whose answers to all tasks come from one model, so it has"
            f" no experts to compare; give a run of stl, see, moses, exssnet or sema."
        )
    method, rows = load_remembering(cfg, ledger, FORCED), validate(cfg).data.eval_batch_size
    adapters = (None, *method.pool.names)
    tasks = [replace(task, test=task.test[:size]) for task in read_tasks(cfg, ledger, method.template)]
    scores: dict[str, dict[str, float]] = {adapter or BASE: {} for adapter in adapters}
    for task in tasks:
        for adapter in adapters:
            score = scores[adapter or BASE][task.name] = adapter_score(method, adapter, task, batch_size=rows)
            print(f"{adapter or BASE} on {task.name}: {score:.2f}", file=sys.stderr)
        keep_said(method, task, ledger, FORCED)
    return {
        "score": {task.name: task.score for task in tasks},
        "queries": {task.name: len(task.test) for task in tasks},
        "own": {task.name: results.get("given", {}).get(task.name, task.name) for task in tasks},
        "transfer": scores,
    }


def _print(measured: Mapping[str, Any]) -> None:
    """Print a row for each adapter; the score of a task's own expert has a star."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from see_lightning.evaluation.transfer import Transfer
    from see_lightning.reporting.terminal import print_table
    from see_lightning.reporting.words import number

    transfer = Transfer.of(measured, list(measured["score"]))
    heads = [f"{task} {score}" for task, score in measured["score"].items()]
    table = Table(
        "answered by", *(Column(Text(head), justify="right") for head in (*heads, "mean")), box=box.SIMPLE_HEAD
    )
    *_, last = transfer.scores
    for name, row in transfer.rows().items():
        cells = [f"{number(score)}{'*' if transfer.own.get(task) == name else ' '}" for task, score in row.items()]
        table.add_row(Text(name), *map(Text, cells), end_section=name == last)
    print_table(table, Console())
