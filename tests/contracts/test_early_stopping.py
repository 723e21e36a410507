"""A validation loss changes no training, and an end of training before its last epoch leaves the best one."""

from pathlib import Path
from unittest.mock import patch

import pytest
from _pytest.mark import ParameterSet

from see_lightning.config.effects import check_effects
from see_lightning.engine.validation import Validation
from see_lightning.errors import ConfigError
from tests.contracts.conftest import FIRST, FULL, METHODS, ORDINARY, TRAINING
from tests.runs import toy

#: Of the four planned epochs the second is the best; with a patience of one the third is the last.
LOSSES = (2.0, 1.0, 3.0, 0.0)
TASKS = "order.tasks=[sky,ice]"
SETTINGS = (TASKS, "optim.epochs=4", "valid_size=3")
STOPPING = (*SETTINGS, "optim.early_stopping=1")
CASES = [one for one in ORDINARY + FULL if one.values[0][0] in (*TRAINING, "planted")]


def daily(*methods: str) -> list[ParameterSet]:
    """These methods, and one of each set of traits; the others with ``make test-all``."""
    chosen = {*FIRST, *methods}
    return [
        pytest.param(*one.values, id=one.id, marks=() if one.values[0][0] in chosen else pytest.mark.nightly)
        for one in CASES
    ]


SNAPSHOTS = ("ilora", "coso")  # with more state than the trained weights


@pytest.fixture(scope="session")
def data(base) -> Path:
    return toy.write_validation(toy.write_tasks(base / "with validation rows"))


def trained(directory: Path) -> dict[str, bytes]:
    """All files of the stages but ``expert.json``, which counts steps and names the data."""
    paths = sorted((directory / "tasks").rglob("*"))
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in paths
        if path.is_file() and path.name != "expert.json"
    }


def scripted(validation: Validation) -> float:
    return LOSSES[len(validation.losses)]


def end_after_the_best(validation: Validation, trainer, _) -> None:
    """In place of the whole callback: training ends after its second epoch, and nothing is put back."""
    validation.losses.append(scripted(validation))
    if len(validation.losses) == 2:
        validation.stopped = trainer.should_stop = True


@pytest.mark.parametrize("method", daily(*SNAPSHOTS), indirect=True)
def test_a_method_that_ends_early_is_the_one_that_was_trained_until_the_best_epoch(data, method, tmp_path):
    with patch.object(Validation, "_loss", scripted):
        stopped = toy.run(toy.compose(data, tmp_path / "stopped", *method, *STOPPING))
    with patch.object(Validation, "on_train_epoch_end", end_after_the_best):
        until = toy.run(toy.compose(data, tmp_path / "until", *method, *STOPPING))
    found = toy.read_results(stopped.directory)["validation"]
    assert {tuple(losses) for losses in found["loss"]} == {LOSSES[:3]}
    assert set(found["kept_epoch"]) == {2}
    assert set(found["epochs"]) == {3}
    assert len(stopped.steps) * 2 == len(until.steps) * 3
    assert trained(stopped.directory) == trained(until.directory)


@pytest.mark.parametrize("method", daily(), indirect=True)
def test_a_validation_loss_moves_no_weight_and_no_answer(data, method, tmp_path):
    without = toy.run(toy.compose(data, tmp_path / "without", *method, *SETTINGS[:2]))
    validated = toy.run(toy.compose(data, tmp_path / "validated", *method, *SETTINGS))
    found = toy.read_results(validated.directory)["validation"]
    assert set(found["kept_epoch"]) == set(found["epochs"]) == {4}
    assert "validation" not in toy.read_results(without.directory)
    assert validated.steps == without.steps
    assert trained(validated.directory) == trained(without.directory)


@pytest.mark.parametrize("method", sorted({*METHODS} - {*TRAINING}))
@pytest.mark.parametrize("setting", ["valid_size=3", "optim.early_stopping=1"])
def test_a_method_that_trains_nothing_refuses_both_settings(data, method, setting, tmp_path):
    typed = [f"method={method}", *STOPPING]
    cfg = toy.compose(data, tmp_path, *typed)
    with pytest.raises(
        ConfigError, match=f"{setting.partition('=')[0]} has no effect here: method={method} trains nothing"
    ):
        check_effects(cfg, [setting], several=False)
