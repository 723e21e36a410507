"""Several processes do a run together, and end with what one process gives."""

import json
import os
import signal
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from see_lightning.engine import launch
from see_lightning.engine.preemption import AGAIN
from see_lightning.methods.method import Method
from tests.runs import toy

# Ranks compute different rows, and so draw different dropout; without it the same numbers are to come out, as long as steps
# are not so long that the last digit of a sum decides what is learned.
CALM = ("adapter.dropout=0", "model.dtype=fp32", "optim.lr=4e-3")
SETTINGS = [("method=see",), ("method=see", *toy.ACTIVATED), ("method=seqft",), ("method=mtl",), ("method=base",)]


def together(base: Path, runs: Path, size: int, *settings: str) -> tuple[Any, Path]:
    """What each rank shall do, and the run directory it will have."""
    alone = toy.whole(base, *CALM, *settings).directory
    cfg = toy.compose(
        toy.data_in(base), runs, *CALM, *settings, "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={size}"
    )
    return lambda: launch.launch(cfg, "test"), runs / alone.relative_to(base / "whole")


def outcome(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answers without what the number of ranks may change, and the results that must be the same."""
    results = toy.read_results(directory)
    counts = {name: results["counts"][name] for name in ("train_examples", "negatives", "steps", "truncated")}
    answers = toy.read_answers(directory)
    return answers, {"matrix": results["matrix"], "metrics": results["metrics"], **counts}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: " ".join(s[:2]))
def test_several_ranks_give_the_answers_and_metrics_of_one(base, tmp_path, settings, size):
    work, directory = together(base, tmp_path / "runs", size, *settings)
    log = tmp_path / "log"
    assert toy.ended(toy.start_ranks(size, work, log)) == [0] * size, log.read_text()[-3000:]
    alone = toy.whole(base, *CALM, *settings).directory
    assert outcome(directory) == outcome(alone)
    assert log.read_text().count("results.json") == 1, "one rank speaks"


def test_the_examples_of_each_step_and_its_loss_do_not_hang_on_the_number_of_ranks(base, tmp_path, monkeypatch):
    seen = {}
    for size in (1, 2, 4):
        diary = tmp_path / f"{size}"
        diary.mkdir()
        step = Method.training_step

        @wraps(step)
        def noted(method: Method, batch: Any, batch_idx: int, diary: Path = diary, step: Any = step) -> Any:
            loss = step(method, batch, batch_idx)
            with (diary / os.environ.get("RANK", "0")).open("a") as file:
                file.write(json.dumps([batch.ids, loss.item()]) + "\n")
            return loss

        work, _ = together(base, tmp_path / f"runs {size}", size, "method=see", "optim.lr=1e-3", "adapter.alpha=8")
        with monkeypatch.context() as patch:
            patch.setattr(Method, "training_step", noted)
            log = tmp_path / f"log {size}"
            assert toy.ended(toy.start_ranks(size, work, log)) == [0] * size, log.read_text()[-3000:]
        ranks = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(diary.iterdir())]
        assert len(ranks) == size
        seen[size] = [
            (sorted(id_ for ids, _ in shares for id_ in ids), sum(loss for _, loss in shares) / size)
            for shares in zip(*ranks, strict=True)
        ]
    alone = seen[1]
    for size in (2, 4):
        assert [ids for ids, _ in seen[size]] == [ids for ids, _ in alone]
        assert [loss for _, loss in seen[size]] == pytest.approx([loss for _, loss in alone], abs=1e-5)
    assert len({len(ids) for ids, _ in alone}) > 1, "the last step of an epoch has fewer examples"


@pytest.mark.parametrize(("told", "code"), [(signal.SIGUSR1, AGAIN), (signal.SIGUSR2, AGAIN), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("phase", ["in training", "in answering"])
def test_a_signal_to_one_rank_stops_all_in_good_order(base, tmp_path, told, code, phase):
    import torch

    work, directory = together(base, tmp_path / "runs", 2, "method=see")
    log = tmp_path / "log"

    def told_once() -> None:
        number = iter(range(1, 10_000))

        def tell(call: int) -> None:
            here = torch.is_grad_enabled() == (phase == "in training")
            if os.environ["RANK"] == "1" and here and next(number) == 5:
                os.kill(os.getpid(), told)

        with toy.count_model_calls(tell):
            work()

    assert toy.ended(toy.start_ranks(2, told_once, log)) == [code, 0], log.read_text()[-3000:]
    assert not (directory / "results.json").exists()
    assert toy.ended(toy.start_ranks(2, work, log)) == [0, 0], log.read_text()[-3000:]
    assert outcome(directory) == outcome(toy.whole(base, *CALM, "method=see").directory)


def test_a_signal_to_one_rank_while_data_are_loaded_stops_all_before_training(base, tmp_path, monkeypatch):
    work, directory = together(base, tmp_path / "runs", 2, "method=see")
    build, log = launch.build_tasks, tmp_path / "log"

    def told_while_loading(*given: Any) -> Any:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return build(*given)

    monkeypatch.setattr(launch, "build_tasks", told_while_loading)
    assert toy.ended(toy.start_ranks(2, work, log)) == [143, 0], log.read_text()[-3000:]
    assert not (directory / "tasks").exists(), "a stage was begun"


def test_a_refusal_of_the_first_rank_is_told_once(base, tmp_path):
    work, directory = together(base, tmp_path / "runs", 2, "method=see")
    directory.mkdir(parents=True)
    (directory / "ledger.json").write_text("{")
    log = tmp_path / "log"
    assert toy.ended(toy.start_ranks(2, work, log)) == [1, 0]
    assert log.read_text().count(f"LedgerError: {directory / 'ledger.json'} is damaged") == 1, log.read_text()[-3000:]
