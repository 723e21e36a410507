"""How likely a finished run finds the reference answers: ``python -m see_lightning.perplexity RUN_DIR``."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from see_lightning.config import validate
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.measured import measured_once
from see_lightning.frame import frame
from see_lightning.run_files import well_shaped
from see_lightning.trust import NOTHING, Trust, add_arguments, load_config, trust_in

DESCRIPTION = """\
The perplexity of the reference answers to a finished run's test queries, each under the model that answers that query after
the last task: the adapted model, the task's own expert (stl), or the expert or base model with which the walk ended (see).
Prints a table and keeps every answer's negative log-likelihood as perplexity.json in the run's directory."""
EPILOG = """\
The token that ends an answer counts; the word with which an expert of see accepts, and the blank behind it, are given and do
not. Reads the model and the data, unless perplexity.json is there and belongs to the run as it is."""
FILE = "perplexity.json"


@frame()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the perplexities of a run, and measure them if that was not done yet.

    Args:
        arguments: as typed; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m see_lightning.perplexity", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "run_dir", type=Path, help="runs/<order>/<method>/<key>/seed=<n>, or runs/<order>/<method>/latest"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="instead of perplexity.json in the run's directory, into which nothing is written then: for a run of"
        " others, or a read-only one. No link",
    )
    add_arguments(parser)
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_args(words)
    path, command = find_run(given.run_dir) / FILE, shlex.join(["python", "-m", "see_lightning.perplexity", *words])
    measured = measured_once(path, command, partial(measure, trust=trust_in(given)), out=given.out)
    with well_shaped(path):
        _print(measured)
    print(given.out or path)


def measure(results: Mapping[str, Any], ledger: Ledger, trust: Trust = NOTHING) -> dict[str, Any]:
    """What ``perplexity.json`` says of the answers.

    Args:
        results: of the run.
        ledger: of the run.
        trust: what of its settings may be run.

    Raises:
        LedgerError: a file of the run is damaged, or tokenizer, template or data are others than in the run.
        DataError: the data cannot be read.
    """
    # Late, because these import torch, which takes longer than a refusal should.
    from dataclasses import asdict

    from see_lightning.engine.ensemble import load_method, read_tasks
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
            rows=config.data.eval_batch,
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
    """A row for each task, and one for all."""
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


if __name__ == "__main__":
    main()
