"""Ask a finished run: ``python -m see_lightning.ask RUN_DIR "query" ["query" ...]``."""

import argparse
import sys
from collections.abc import Sequence

from see_lightning.frame import frame, print_exactly
from see_lightning.refusals import at_least
from see_lightning.trust import add_arguments


@frame()
def main(words: Sequence[str] | None = None) -> None:
    """Print each answer, who gave it, and what the experts said; into a pipe, answers go as they are.

    Args:
        words: as typed; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m see_lightning.ask", description="Ask the experts of a run.")
    parser.add_argument("run_dir", help="runs/<order>/<method>/<key>/seed=<n>, or runs/<order>/<method>/latest")
    parser.add_argument("query", nargs="+", help="the query with its instruction; '-' reads one from standard input")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=128, help="longest answer (default 128)")
    parser.add_argument("--task", help="for a method that must be told the task, such as stl")
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    parser.add_argument("--dtype", help="bf16 or fp32 (default: the run's own)")
    add_arguments(parser)
    arguments = parser.parse_args(words)

    from see_lightning.engine.ensemble import load_ensemble

    ensemble = load_ensemble(
        arguments.run_dir,
        max_new_tokens=arguments.max_new_tokens,
        device=arguments.device,
        dtype=arguments.dtype,
        trust=arguments.trust,
        trust_remote_code=arguments.trust_remote_code,
    )
    queries = [sys.stdin.read().removeprefix("\ufeff") if query == "-" else query for query in arguments.query]
    replies = ensemble.answer(queries, task=arguments.task)
    for reply in replies:
        asked = " -> ".join(f"{name} {verdict}" for name, verdict in reply.verdicts.items()) or "no expert asked"
        print_exactly(reply.text.strip())
        print(f"  by {reply.expert or 'the adapted model'} ({asked})")


if __name__ == "__main__":
    main()
