"""Ask a finished run: ``see-lightning ask RUN_DIR "query" ["query" ...]``."""

import argparse
import sys

from see_lightning.cli.command import Parser, at_least, command
from see_lightning.config.trust import add_trust
from see_lightning.frame import print_exactly


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run and queries."""
    parser.add_run_dir()
    parser.add_argument("query", nargs="+", help="the query with its instruction; '-' reads one from standard input")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=128, help="longest answer (default 128)")
    parser.add_argument("--task", help="task of the queries, for a method that needs it, such as stl")
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    parser.add_argument("--dtype", help="bf16 or fp32 (default: the run's own)")
    add_trust(parser)


@command("ask", "Ask the experts of a run.", add_arguments)
def main(given: argparse.Namespace) -> None:
    """Print each answer, the expert that gave it, and the experts' verdicts; a pipe gets answers unchanged."""
    from see_lightning.engine.ensemble import load_ensemble

    ensemble = load_ensemble(
        given.run_dir,
        max_new_tokens=given.max_new_tokens,
        device=given.device,
        dtype=given.dtype,
        trust=given.trust,
        trust_remote_code=given.trust_remote_code,
    )
    queries = [sys.stdin.read().removeprefix("\ufeff") if query == "-" else query for query in given.query]
    replies = ensemble.answer(queries, task=given.task)
    for reply in replies:
        walk = " -> ".join(f"{name} {verdict}" for name, verdict in reply.verdicts.items()) or "no expert asked"
        print_exactly(reply.text.strip())
        print(f"  by {reply.expert or 'the adapted model'} ({walk})")
