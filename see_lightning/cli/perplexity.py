"""Perplexity of the reference answers under a finished run: ``see-lightning perplexity RUN_DIR``."""

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

from see_lightning.cli.command import Parser, command
from see_lightning.config.trust import NOTHING, Trust, add_trust, load_config, trust_in
from see_lightning.config.validation import validate
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.measured import PERPLEXITY, measured_once
from see_lightning.files.run_files import well_shaped

DESCRIPTION = """\
The perplexity of the reference answers to a finished run's test queries, each under the model that answers that query after
the last task: the adapted model, the task's own expert (stl), or the expert or base model with which the walk ended (see).
Prints a table and keeps every answer's negative log-likelihood as perplexity.json in the run's directory."""
EPILOG = """\
The token that ends an answer counts; the positive indicator of an expert of see, and the blank after it, do not. Reads
the model and the data, unless perplexity.json is there and belongs to the run as it is."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, and another file for the output."""
    parser.add_run_dir()
    parser.add_out(PERPLEXITY)
    add_trust(parser)


@command("perplexity", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Print the perplexities of a run; measure them unless they are in its directory."""
    path = find_run(given.run_dir) / PERPLEXITY
    measured = measured_once(path, given.command, partial(measure, trust=trust_in(given)), out=given.out)
    with well_shaped(path):
        _print(measured)
    print(given.out or path)


def measure(results: Mapping[str, Any], ledger: Ledger, trust: Trust = NOTHING) -> dict[str, Any]:
    """Measure the perplexities: the content of ``perplexity.json``.

    Args:
        results: of the run.
        ledger: of the run.
        trust: the code named in its settings that may run.

    Raises:
        LedgerError: a file of the run is damaged, or tokenizer, template or data differ from the run's.
        DataError: the data cannot be read.
    """
    # Late, because these import torch, which takes longer than a refusal should.
    from dataclasses import asdict

    from see_lightning.engine.loaded_run import load_method, read_tasks
    from see_lightning.evaluation.likelihood import likelihoods, perplexity

    cfg = load_config(ledger.directory / "config.yaml", trust)
    config = validate(cfg)
    method = load_method(cfg, ledger).eval()
    *_, last = ledger.content["stages"]
    answers = ledger.answers(last)
    found = {
        task.name: likelihoods(
            method,
            task,
            [record for record in answers if record["task"] == task.name],
            rows=config.data.eval_batch_size,
        )
        for task in read_tasks(cfg, ledger, method.template)
    }
    return {
        "perplexity": perplexity((one.nll, one.tokens) for task in found.values() for one in task),
        "tasks": {
            name: {
                "perplexity": perplexity((one.nll, one.tokens) for one in task),
                "queries": [asdict(one) for one in task],
            }
            for name, task in found.items()
        },
    }


def _print(measured: dict[str, Any]) -> None:
    """Print a row for each task, and one for all."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from see_lightning.reporting.terminal import print_table
    from see_lightning.reporting.words import number

    table = Table("task", *(Column(name, justify="right") for name in ("answers", "tokens", "perplexity")))
    table.box = box.SIMPLE_HEAD
    every = [query for task in measured["tasks"].values() for query in task["queries"]]
    rows = [(name, task["queries"], task["perplexity"]) for name, task in measured["tasks"].items()]
    for name, queries, value in [*rows, ("all", every, measured["perplexity"])]:
        tokens = sum(query["tokens"] for query in queries)
        table.add_row(
            Text(name), number(len(queries)), number(tokens), number(value, 3), end_section=name == rows[-1][0]
        )
    print_table(table, Console())
