"""The validation loss is the loss of what answers, it ends training when it falls no more, and all ranks agree on it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from see_lightning.engine import launch
from see_lightning.engine.train_stage import Diverged
from see_lightning.engine.validation import Validation
from see_lightning.methods.method import Method
from see_lightning.models.tiny import tiny_model
from tests.runs import toy
from tests.runs.test_ranks import CALM

VALID = 5  # with four rows a step: two passes, of which the second has one row
SETTINGS = (f"valid_size={VALID}", "order.tasks=[sky,ice]")


@pytest.fixture(scope="session")
def data(base) -> Path:
    return toy.write_validation(toy.write_tasks(base / "with five validation rows"), VALID)


def losses_of(given: list[float]) -> Callable[[Validation], float]:
    """In place of the loss: a value for each epoch."""
    return lambda validation: given[len(validation.losses)]


@pytest.fixture
def scripted(data, tmp_path):
    """Runs a method whose losses are given: the section of the results, and the run."""

    def run(losses: list[float], *settings: str):
        with patch.object(Validation, "_loss", losses_of(losses)):
            seen = toy.run(toy.compose(data, tmp_path / "scripted", "method=seqft", *SETTINGS, *settings))
        return toy.read_results(seen.directory)["validation"], seen

    return run


@pytest.mark.parametrize(
    ("losses", "patience", "epochs", "kept"),
    [
        ([5, 4, 3, 2, 1], 1, 5, 5),
        ([1, 2, 3, 4, 5], 1, 2, 1),
        ([1, 2, 3, 4, 5], 3, 4, 1),
        ([3, 2, 2, 1, 0], 1, 3, 2),  # an equal loss has not fallen, and the earlier epoch is kept
        ([3, 4, 2, 3, 1], 2, 5, 5),
        ([1, 2, 3, 4, 5], 9, 5, 1),  # never ends early, and the best epoch is kept all the same
        ([3, 1, 2, 2, 2], 0, 5, 5),  # without a patience the last one is kept
    ],
)
def test_training_ends_when_the_loss_has_not_fallen_for_as_many_epochs(scripted, losses, patience, epochs, kept):
    found, seen = scripted(losses, "optim.epochs=5", f"optim.early_stopping={patience}")
    best = losses.index(min(losses[:epochs])) + 1
    assert found == {
        "loss": [losses[:epochs]] * 2,
        "best_epoch": [best] * 2,
        "kept_epoch": [kept] * 2,
        "epochs": [epochs] * 2,
        "rows": [VALID] * 2,
    }
    assert toy.read_results(seen.directory)["counts"]["steps"] == [epochs * 1, epochs * 3]


def test_the_rate_follows_the_schedule_of_all_planned_epochs(scripted):
    step, rates = Method.training_step, []

    def noted(method, batch, batch_idx):
        rates.append(method.trainer.optimizers[0].param_groups[0]["lr"])
        return step(method, batch, batch_idx)

    with patch.object(Method, "training_step", noted):
        scripted([1, 2, 3, 4, 5], "optim.epochs=5", "optim.early_stopping=1")
        early, rates[:] = list(rates), []
        scripted([1, 2, 3, 4, 5], "optim.epochs=5")
    assert early == [*rates[:2], *rates[5:11]]


@pytest.mark.parametrize("method", ["seqft", "see"])
@pytest.mark.parametrize("reduction", ["tokens", "examples"])
def test_the_loss_is_the_mean_over_the_target_tokens_of_what_is_kept(data, method, reduction, tmp_path):
    settings = (
        f"method={method}",
        *SETTINGS,
        "optim.epochs=3",
        f"optim.loss_reduction={reduction}",
        "model.dtype=fp32",
    )
    seen = toy.run(toy.compose(data, tmp_path, *settings, "optim.max_tokens_per_microbatch=40"))
    found = toy.read_results(seen.directory)["validation"]
    template = seen.methods[0].template
    for (name, folder), losses in zip(seen.trained_stages(), found["loss"], strict=True):
        task, before = name.split("-")[1], "++ " if method == "see" else ""
        model = PeftModel.from_pretrained(tiny_model(), folder).eval()
        lines = [json.loads(line) for line in (data / f"{task}.validation.jsonl").read_text().splitlines()]
        total, labels = 0.0, 0
        for line in lines:
            prompt, target = template.prompt_ids(line["prompt"]), template.target_ids(before + line["answer"])
            with torch.no_grad():
                logits_SV = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            total += cross_entropy(logits_SV, torch.tensor(target), reduction="sum").item()
            labels += len(target)
        assert losses[-1] == pytest.approx(total / labels, abs=2e-5)


@pytest.mark.parametrize("method", ["see", "mtl"])
def test_a_run_that_was_broken_off_ends_early_where_the_other_did(data, method, tmp_path):
    settings = (f"method={method}", *SETTINGS, "optim.early_stopping=1", "optim.epochs=6")
    whole = toy.run(toy.compose(data, tmp_path / "whole", *settings))
    resumed, interruptions = toy.broken_off(toy.compose(data, tmp_path / "resumed", *settings))
    assert interruptions > 3
    assert toy.kept(resumed.directory) == toy.kept(whole.directory)
    assert len(toy.read_results(whole.directory)["validation"]["loss"]) == (1 if method == "mtl" else 2)


@pytest.mark.parametrize("trainer", ["ddp", pytest.param("fsdp", marks=pytest.mark.nightly)])
def test_ranks_compute_their_shares_of_the_loss_and_end_together(data, tmp_path, trainer):
    """Ranks have unlike numbers of rows, and one has none in the last pass."""
    settings = ("method=see", *SETTINGS, *CALM, "optim.epochs=8", "optim.early_stopping=1")
    alone = toy.read_results(toy.run(toy.compose(data, tmp_path / "alone", *settings)).directory)
    assert min(alone["validation"]["epochs"]) < 8, "no training ends early"
    ranks = (f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2")
    cfg, log = toy.compose(data, tmp_path / "runs", *settings, *ranks), tmp_path / "log"
    diary, step = tmp_path / "diary", Validation.on_train_epoch_end

    def noted(validation, running, module):
        step(validation, running, module)
        with (diary.with_suffix(f".{validation.ranks.rank}")).open("a") as file:
            file.write(f"{validation.losses} {running.should_stop}\n")

    with patch.object(Validation, "on_train_epoch_end", noted):
        processes = toy.start_ranks(2, lambda: launch.launch(cfg, "test"), log)
        assert toy.ended(processes) == [0, 0], log.read_text()[-3000:]
    (path,) = (tmp_path / "runs").glob("*/*/*/*/results.json")
    together = toy.read_results(path.parent)
    assert diary.with_suffix(".0").read_text() == diary.with_suffix(".1").read_text() != ""
    for name in ("best_epoch", "kept_epoch", "epochs", "rows"):
        assert together["validation"][name] == alone["validation"][name]
    for one, other in zip(together["validation"]["loss"], alone["validation"]["loss"], strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert together["counts"]["validation_tokens"] == alone["counts"]["validation_tokens"]


def test_validation_tokens_and_seconds_are_counted_apart(data, tmp_path):
    settings = ("method=seqft", "order.tasks=[sky,ice]", "optim.epochs=3")
    without = toy.read_results(toy.run(toy.compose(data, tmp_path / "without", *settings)).directory)
    seen = toy.run(toy.compose(data, tmp_path / "validated", *settings, f"valid_size={VALID}"))
    results, template = toy.read_results(seen.directory), seen.methods[0].template
    assert results["counts"]["train_tokens"] == without["counts"]["train_tokens"]
    answers = {"sky": "x", "ice": "zz"}
    assert results["counts"]["validation_tokens"] == [
        3
        * sum(
            len(template.prompt_ids(f"{task}{task}{n}?")) + len(template.target_ids(answer))
            for n in range(500, 500 + VALID)
        )
        for task, answer in answers.items()
    ]
    pairs = zip(results["timing"]["validate_s"], results["timing"]["train_s"], strict=True)
    assert all(0 < part < whole for part, whole in pairs)
    assert "validate_s" not in without["timing"]


def test_a_loss_that_is_no_number_is_refused(data, tmp_path):
    def endless(method, part):
        return method.logits(part) * torch.inf

    cfg = toy.compose(data, tmp_path, "method=seqft", *SETTINGS, "optim.epochs=3")
    with (
        patch.object(Method, "validation_logits", endless),
        pytest.raises(Diverged, match="the validation loss is nan"),
    ):
        toy.run(cfg)


def test_rows_are_held_out_where_there_are_no_validation_rows(base, tmp_path):
    seen = toy.run(toy.compose(toy.data_in(base), tmp_path, "method=see", "order.tasks=[sea,ice]", "valid_size=3"))
    counts = toy.read_results(seen.directory)["counts"]
    assert [made - refused for made, refused in zip(counts["train_examples"], counts["negatives"], strict=True)] == [
        5,
        9,
    ]
    for name, folder in seen.trained_stages():
        lines = [json.loads(line) for line in (folder.parent / "examples.jsonl").read_text().splitlines()]
        assert all(line["task"] == name.split("-")[1] or line["target"] == "--" for line in lines)


def test_other_validation_rows_of_ones_own_are_another_run(data, tmp_path):
    other = toy.write_validation(toy.write_tasks(tmp_path / "other"), VALID + 1)
    keys = []
    for folder in (data, other):
        for settings in ((), ("valid_size=5",)):
            seen = toy.run(
                toy.compose(folder, tmp_path / "runs", "method=stl", "order.tasks=[sky]", "optim.epochs=1", *settings)
            )
            keys.append(seen.directory.parent.name)
    without, with_rows, without_again, with_others = keys
    assert without == without_again
    assert len({without, with_rows, with_others}) == 3


def test_a_logger_has_the_losses_under_a_name_of_their_own(data, tmp_path):
    seen = toy.run(toy.compose(data, tmp_path, "method=seqft", *SETTINGS, "optim.epochs=3", "logger=csv"))
    found = toy.read_results(seen.directory)["validation"]["loss"]
    for stage, losses in zip(sorted((seen.directory / "tasks").iterdir()), found, strict=True):
        (path,) = stage.rglob("metrics.csv")
        head, *lines = [line.split(",") for line in path.read_text().splitlines()]
        column = head.index("val/loss")
        assert [round(float(line[column]), 6) for line in lines if line[column]] == losses


def test_the_console_tells_the_epoch_that_is_kept(scripted, capsys):
    scripted([2, 1, 3, 4, 5], "optim.epochs=5", "optim.early_stopping=1")
    told = re.findall(r"validation loss (\S+) in epoch (\d), which is kept after (\d),", capsys.readouterr().err)
    assert told == [("1.000", "2", "3")] * 2
