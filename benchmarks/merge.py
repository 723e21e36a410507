"""The time of a merge by each rule of ``conf/rule``, beside the mean of the same adapters.

    python benchmarks/merge.py RUN_DIR

The experts of a finished run, in their order, are merged into the change of each layer's weights, which a model would add.
This is measured, on one thread, and not the reading of files. Rules that need rows of the tasks are left out: a run has their
time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

import argparse

import torch

from benchmarks.common import sync, tell
from benchmarks.timing import (
    ENOUGH,
    Clock,
    Contender,
    Ratio,
    alternate,
    compare,
    print_ratios,
    print_times,
    result_line,
)
from see_lightning.adapters.peft_folder import PeftFolder
from see_lightning.cli.merge import adapters_at
from see_lightning.config.compose import composed
from see_lightning.config.search_path import options
from see_lightning.engine.merge_rule import make_rule
from see_lightning.merging.changes import dense
from see_lightning.merging.rule import MergeRule, TaskVector
from see_lightning.seeds import seed

BASELINE = "average"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="of a finished run with experts, or a folder of one adapter")
    parser.add_argument(
        "--repeats", type=int, default=ENOUGH, help="clean samples wanted of each rule (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="report ratios from a busy machine too, marked as such")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folders = adapters_at(given.run_dir)
    vectors = [TaskVector(PeftFolder(folder).changes(), seed(0, str(n), "merge")) for n, folder in enumerate(folders)]
    rules = {path.stem: make_rule(composed(["method=merge", f"rule={path.stem}"]).rule) for path in options("rule")}
    measured = {name: rule for name, rule in rules.items() if not rule.rows}
    if left_out := sorted(rules.keys() - measured.keys()):
        tell(f"left out, since they need rows of the tasks: {', '.join(left_out)}")
    contenders = {name: _merge(rule, vectors) for name, rule in measured.items()}
    rounds = alternate(contenders, repeats=given.repeats, sync=sync, tell=tell)
    print_times(f"merging {len(vectors)} adapters", rounds, unit="adapters", amount=len(vectors), per_second=False)
    ratios: dict[str, Ratio] = {
        f"{name}_by_{BASELINE}": compare(rounds, name, BASELINE, force=given.force)
        for name in contenders
        if name != BASELINE
    }
    print_ratios(ratios)
    print(result_line({"adapters": len(vectors), "layers": len(vectors[0].changes)}, ratios, forced=given.force))


def _merge(rule: MergeRule, vectors: Sequence[TaskVector]) -> Contender:
    def merge(clock: Clock) -> None:
        with clock, torch.inference_mode():
            for change in rule.merge(vectors).values():
                dense(change)

    return merge


if __name__ == "__main__":
    main()
