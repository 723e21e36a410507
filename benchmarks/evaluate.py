"""The results matrix of a SEE run: evaluation that remembers, beside asking everything again after every task.

    SEE_DATA=DIR python benchmarks/evaluate.py

The experts of a small run (or those of a finished one, `--run DIR`) are evaluated as the run itself does it, each time from
nothing remembered; and naively: the same batches and the same way to answer, after each task every query of the matrix. Ours
lets every expert decide on every query besides, which naive evaluation does not do. Loading models is outside the times.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

from benchmarks import common, timing
from benchmarks.common import Setup
from benchmarks.timing import Clock
from see_lightning.config.instantiate import instantiate
from see_lightning.config.trust import load_config
from see_lightning.engine.launch import launch, run_directory
from see_lightning.engine.ledger import Ledger, dump
from see_lightning.engine.stages import Stage, plan_stages
from see_lightning.errors import ConfigError
from see_lightning.evaluation.evaluate import evaluate
from see_lightning.files.writing import write_text

SETTINGS = ("method=see", "order=superni_5", "ratio=0.1", "optim=small", "train_size=32", "test_size=8")
OURS, NAIVE = "ours, remembering", "naive, asking everything again"


@dataclass
class Evaluated:
    """What an evaluation counted and answered.

    Args:
        counts: decisions, generations, prefills.
        answers: a record per stage and query.
    """

    counts: dict[str, int] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)


class FinishedRun:
    """The experts of a run that is done, in a copy that may be evaluated again and again.

    Args:
        directory: of the run.
        place: an empty folder for the copy.
    """

    def __init__(self, directory: Path, place: Path) -> None:
        self.cfg = load_config(directory / "config.yaml")
        self.cfg.paths.runs = str(place)
        self.setup: Setup = common.built(self.cfg)
        self.copy = run_directory(self.cfg, self.setup.config)
        shutil.copytree(directory, self.copy)
        self.stages: list[Stage] = plan_stages("sequential", self.setup.tasks)

    def forget(self, *kinds: str) -> None:
        """Take out of the copy what was said, kind by kind: ``answers``, ``remembered``; and the results made from it.

        What stays keeps no costs, so that the next results count what is computed from here on.
        """
        ledger = Ledger(self.copy).read()
        for name, stage in ledger.content["stages"].items():
            for kind in kinds:
                stage[kind] = {}
                (ledger.folder(name) / f"{kind}.jsonl").unlink(missing_ok=True)
            for block in stage.get("remembered", {}).values():
                block.pop("counts", None)
        write_text(self.copy / "ledger.json", dump(ledger.content))
        (self.copy / "results.json").unlink(missing_ok=True)

    def evaluate(self, clock: Clock) -> Evaluated:
        """As the run itself: what its ledger does not hold is computed. The time is what the run says of it."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            path = launch(self.cfg, "benchmarks/evaluate.py")
        results = json.loads(path.read_text(encoding="utf-8"))
        clock.seconds += sum(results["timing"]["evaluate_s"])
        ledger = Ledger(self.copy).read()
        answers = [{"stage": stage.name, **record} for stage in self.stages for record in ledger.answers(stage.name)]
        return Evaluated(results["counts"], answers)

    def evaluate_naively(self, clock: Clock) -> Evaluated:
        """After each task, every query that the matrix asks then is walked and answered."""
        setup, method = self.setup, self.setup.method()
        ledger = Ledger(self.copy).read()
        counts: Counter[str] = Counter()
        answers = []
        for stage in self.stages:
            assert stage.task is not None
            method.restore(stage.task.name, ledger.verified(stage.name) / "expert")
            for task in stage.tests:
                with clock:
                    trainer = instantiate(setup.cfg.trainer)(
                        logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False
                    )
                    records = evaluate(trainer, method, [task], batch_size=setup.config.data.eval_batch_size)[task.name]
                answers += [{"stage": stage.name, **record} for record in records]
        counts.update(method.counts)
        return Evaluated(dict(counts), answers)


def expected_answers(answers: Sequence[dict[str, Any]]) -> int:
    """How often somebody had to answer: once for each pair of a query and who answered it, whatever the stage."""
    return len({(record["task"], record["id"], record["expert"]) for record in answers})


def same_texts(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> int:
    """How many answers are the same, from the same expert."""

    def told(records: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], tuple[str, str]]:
        return {(r["stage"], r["task"], r["id"]): (r["expert"], r["text"]) for r in records}

    ours, theirs = told(one), told(other)
    return sum(theirs.get(key) == answer for key, answer in ours.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = common.options(__doc__)
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="a finished run of method=see; else a small one is made"
    )
    parser.add_argument("--adapter", type=common.adapter_names, default=["activated_lora"], help="of the small run")
    args = common.parse(parser, arguments)
    with tempfile.TemporaryDirectory() as folder:
        directory = args.run or small_run([*SETTINGS, f"adapter={args.adapter[0]}", *args.overrides], Path(folder))
        if not (directory / "results.json").exists():
            raise ConfigError(f"--run {directory} holds no finished run; give the folder that has results.json in it.")
        finished = FinishedRun(directory, Path(folder) / "copy")
        measure(finished, args.repeats, args.force)


def small_run(overrides: Sequence[str], folder: Path) -> Path:
    """Train the experts, and leave what the run prints to standard error."""
    cfg = common.compose([*overrides, f"paths.runs={folder / 'runs'}"])
    with contextlib.redirect_stdout(sys.stderr):
        return launch(cfg, "benchmarks/evaluate.py").parent


def measure(run: FinishedRun, repeats: int, force: bool) -> None:
    """Alternate both ways, check the counts, evaluate once more, and print."""
    seen: dict[str, Evaluated] = {}

    def ours(clock: Clock) -> None:
        run.forget("answers", "remembered")
        seen[OURS] = run.evaluate(clock)

    def naive(clock: Clock) -> None:
        seen[NAIVE] = run.evaluate_naively(clock)

    print(run.setup.conditions())
    rounds = timing.alternate({OURS: ours, NAIVE: naive}, repeats=repeats, sync=common.sync, tell=common.tell)
    run.forget("answers", "remembered")
    remembered = run.evaluate(Clock(common.sync))
    run.forget("answers")  # the matrix is asked for again, by a process that remembers
    again = run.evaluate(Clock(common.sync))

    queries = sum(len(task.test) for task in run.setup.tasks)
    asked = len(remembered.answers)
    notes = {
        key: {name: str(evaluated.counts.get(key, 0)) for name, evaluated in seen.items()}
        for key in ("decisions", "generations", "prefills", "decided_again")
    }
    timing.print_times(
        f"The matrix of {len(run.setup.tasks)} tasks, {queries} queries, {asked} answers in it",
        rounds,
        unit="answers",
        amount=asked,
        notes=notes,
    )
    counts = {
        "decisions": seen[OURS].counts["decisions"],
        "expected_decisions": len(run.setup.tasks) * queries,
        "answers": seen[OURS].counts["generations"],
        "expected_answers": expected_answers(seen[OURS].answers),
        "second_run_decisions": again.counts["decisions"],
        "second_run_answers": again.counts["generations"],
        "naive_decisions": seen[NAIVE].counts["decisions"],
        "naive_answers": seen[NAIVE].counts["generations"],
        "same_answers": [same_texts(seen[OURS].answers, seen[NAIVE].answers), asked],
    }
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    ratios = {"over_naive": timing.compare(rounds, NAIVE, OURS, force=force)}
    timing.print_ratios(ratios)
    print(timing.result_line(counts, ratios, forced=force))


if __name__ == "__main__":
    common.main(main)
