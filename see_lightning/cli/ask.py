"""Ask a finished run: queries, a file of them, or a conversation in the terminal."""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from see_lightning.cli.command import Parser, at_least, command
from see_lightning.config.trust import add_trust
from see_lightning.errors import ConfigError
from see_lightning.files.text import visible
from see_lightning.frame import print_exactly

if TYPE_CHECKING:
    from see_lightning.engine.asking import Reply, Request
    from see_lightning.engine.ensemble import Ensemble


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, queries, and how answers are generated."""
    parser.add_run_dir()
    parser.add_argument("query", nargs="*", help="the query with its instruction; '-' reads one from standard input")
    form = 'lines {"prompt": "..."} or {"messages": [...]}, optionally with "id" and "task"'
    parser.add_argument("--file", type=Path, metavar="PROMPTS", help=f"answer all queries of a JSONL file: {form}")
    out = "JSONL file of the answers, in the order of the queries; the same command continues an interrupted one"
    parser.add_argument("--out", type=Path, metavar="ANSWERS", help=out)
    parser.add_argument("--chat", action="store_true", help="answer lines from the terminal, each by itself")
    parser.add_argument(
        "--expert", metavar="NAME", help="an expert, or base, that answers without being asked for a verdict"
    )
    parser.add_argument("--task", help="task of the queries, for a method that needs it, such as stl")
    add_sampling(parser)
    parser.add_argument("--max-new-tokens", type=at_least(1), default=128, help="longest answer (default 128)")
    add_machine(parser)


def add_sampling(parser: Parser) -> None:
    """Add the options of sampling."""
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="sample at T; 0, the default: greedy"
    )
    top_p = "sample from the fewest most probable tokens with this probability in all (default 1)"
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help=top_p)
    parser.add_argument("--seed", type=int, help="of the sampling: the same seed gives the same answer")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end an answer before TEXT; may be repeated"
    )


def add_machine(parser: Parser) -> None:
    """Add the options of the machine, and of what may run on it."""
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    parser.add_argument("--dtype", help="bf16 or fp32 (default: the run's own)")
    add_trust(parser)


@command("ask", "Ask the experts of a run.", add_arguments)
def main(given: argparse.Namespace) -> None:
    """Print each answer, the expert that gave it, and the experts' verdicts; a pipe gets answers unchanged."""
    ways = [bool(given.query), given.file is not None, given.chat]
    if sum(ways) != 1:
        raise ConfigError("give queries, or --file PROMPTS --out ANSWERS, or --chat: one of the three.")
    if (given.out is None) != (given.file is None):
        raise ConfigError("--file PROMPTS and --out ANSWERS go together: the queries, and where their answers go.")
    form = make_form(given)
    if given.file:
        _answer_file(given, form)
    elif given.chat:
        _chat(given, form)
    else:
        queries = [sys.stdin.read().removeprefix("\ufeff") if query == "-" else query for query in given.query]
        for reply in load(given).reply([replace(form, query=query) for query in queries]):
            print_exactly(reply.text.strip())
            print(f"  {_who(reply)}")


def make_form(given: argparse.Namespace) -> "Request":
    """How answers are generated, as a request without its query.

    Raises:
        ConfigError: a number is out of its range.
    """
    from see_lightning.engine.asking import Request

    return Request(
        "",
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        seed=given.seed,
        stop=tuple(given.stop),
        task=given.task,
        expert=given.expert,
    )


def load(given: argparse.Namespace) -> "Ensemble":
    """Load the run that the arguments name."""
    from see_lightning.engine.ensemble import load_ensemble

    return load_ensemble(
        given.run_dir,
        max_new_tokens=given.max_new_tokens,
        device=given.device,
        dtype=given.dtype,
        trust=given.trust,
        trust_remote_code=given.trust_remote_code,
    )


def _who(reply: "Reply") -> str:
    walk = " -> ".join(f"{name} {verdict}" for name, verdict in reply.verdicts.items()) or "no expert asked"
    return f"by {reply.expert or 'the adapted model'} ({walk})"


def _answer_file(given: argparse.Namespace, form: "Request") -> None:
    from see_lightning.engine.ask_file import AnswerFile, answer_file, check_lengths, read_prompts

    rows = read_prompts(given.file, form)  # before the model is loaded
    ensemble = load(given)
    asked = json.dumps([ensemble.digest, asdict(replace(form, task=None))])
    answers = AnswerFile(given.out, rows, hashlib.sha256(asked.encode()).hexdigest()[:16])
    check_lengths(ensemble, rows[answers.done :])
    begun, start = answers.done, time.monotonic()
    if begun:
        print(f"{begun} of {len(rows)} answers are in {visible(str(given.out))}", file=sys.stderr)
    for done in answer_file(ensemble, answers):
        rate = (done - begun) / max(1e-9, time.monotonic() - start)
        left = f"{(len(rows) - done) / rate:.0f} s left" if done < len(rows) else "done"
        print(f"{done} of {len(rows)} answered, {rate:.1f} a second, {left}", file=sys.stderr)
    print(visible(str(given.out)))


def _chat(given: argparse.Namespace, form: "Request") -> None:
    from see_lightning.engine.ask_file import chat

    ensemble = load(given)
    if sys.stdin.isatty():
        print("Each line is answered by itself, without the lines before it. Ctrl-D ends.", file=sys.stderr)
    for reply in chat(ensemble, form, _lines(), lambda part: print(visible(part), end="", flush=True)):
        print(f"\n  {_who(reply)}")


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")
