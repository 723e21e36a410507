"""Answering test queries on several ranks, one thread each, beside one rank with one thread: the same queries.

    SEE_DATA=DIR python benchmarks/ranks.py RUN_DIR

The experts of a finished run answer the first test queries of each of its tasks, more of them than the run tested if so
asked, nothing remembered. A sample is the time from when all ranks are ready to when the last one has its share.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

import json
import tempfile
import time

import torch

from benchmarks import common, timing
from benchmarks.timing import Clock, Contender
from see_lightning.config.trust import load_config
from see_lightning.config.validation import validate
from see_lightning.engine.build import build_tasks
from see_lightning.engine.distributed import Ranks, join, place, supervise
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.loaded_run import load_method
from see_lightning.engine.pages import kept_pages
from see_lightning.tasks.datamodule import query_loader
from see_lightning.tasks.sharding import shard_of


def work(run_dir: Path, queries: int, out: Path) -> None:
    """What each rank does; the first one writes seconds, and the number of answers of each rank."""
    torch.set_num_threads(1)
    here = place()
    ranks = join(here, gpu=False) if here else Ranks()
    cfg = load_config(run_dir / "config.yaml")
    method = load_method(cfg, Ledger(run_dir).read()).eval()
    cfg.test_size = queries
    config = validate(cfg)
    tasks = build_tasks(cfg, config, method.template)
    shares = shard_of(tasks, method.template, rank=ranks.rank, ranks=ranks.size)
    answered = 0
    ranks.gather(None)  # until all are ready
    started = time.perf_counter()
    with torch.inference_mode(), kept_pages():
        # In one stream on several ranks, one process task by task, as a run does.
        for portion in [[task] for task in shares.values()] if ranks.size == 1 else [list(shares.values())]:
            for batch in query_loader(
                portion, method.template, batch_size=config.data.eval_batch_size, tell_task=method.needs_task_id
            ):
                answered += len(method.answer(batch))
    seconds = time.perf_counter() - started
    told = ranks.gather((seconds, answered))
    if ranks.first:
        out.write_text(json.dumps({"seconds": max(s for s, _ in told), "answered": [n for _, n in told]}))
    ranks.leave()


def measure(run_dir: Path, queries: int, size: int, seen: dict[int, list[int]], clock: Clock) -> None:
    """One sample on so many ranks, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "told.json"
        command = [sys.executable, __file__, str(run_dir), "--queries", str(queries), "--work", str(out)]
        code = supervise(command, size)
        if code:
            raise RuntimeError(f"a rank ended with {code}")
        told = json.loads(out.read_text())
    clock.seconds += told["seconds"]
    seen[size] = told["answered"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = common.options(__doc__)
    parser.add_argument("run_dir", type=Path, help="of a finished run: runs/<order>/<method>/<key>/seed=<n>")
    parser.add_argument("--queries", type=common.positive, default=8, help="test queries of each task")
    parser.add_argument("--ranks", type=common.positive, default=2, help="how many beside one")
    parser.add_argument("--work", type=Path, help="for the ranks themselves: where the first one writes")
    args = common.parse(parser, arguments)
    if args.work:
        work(args.run_dir, args.queries, args.work)
        return
    seen: dict[int, list[int]] = {}
    names = {size: f"{size} rank{'s' * (size > 1)}" for size in (1, args.ranks)}
    contenders: dict[str, Contender] = {
        name: partial(measure, args.run_dir.resolve(), args.queries, size, seen) for size, name in names.items()
    }
    rounds = timing.alternate(contenders, repeats=args.repeats, sync=common.sync, tell=common.tell)
    notes = {"queries of each rank": {names[size]: " + ".join(map(str, counts)) for size, counts in seen.items()}}
    timing.print_times("Evaluation", rounds, unit="queries", amount=sum(seen[1]), notes=notes)
    ratios = {"ranks_over_one": timing.compare(rounds, names[1], names[args.ranks], force=args.force)}
    timing.print_ratios(ratios)
    print(timing.result_line({"ranks": args.ranks, "queries": sum(seen[1])}, ratios, forced=args.force))


if __name__ == "__main__":
    common.main(main)
