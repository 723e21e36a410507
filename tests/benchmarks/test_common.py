"""Options of the benchmarks, and that what they train is what a run trains."""

import json

import pytest
import torch

from benchmarks import common
from benchmarks.timing import Clock
from see_lightning.errors import ConfigError
from see_lightning.tasks.datamodule import TaskDataModule
from see_lightning.tasks.memory import Memory
from tests.benchmarks import tiny
from tests.runs import toy


def test_options_and_settings_may_stand_in_any_order():
    args = common.parse(common.options("what it does"), ["model=tiny", "--threads", "1", "optim.lr=1"])
    assert (args.threads, args.repeats, args.force, args.overrides) == (1, 3, False, ["model=tiny", "optim.lr=1"])
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--repeats", "2"], "give at least 3, or --force"),
        (["--repeats", "0"], "must be at least 1; got 0"),
        (["--threads", "x"], "invalid"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        common.parse(common.options("what it does"), given)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_few_samples_are_enough_for_who_insists():
    assert common.parse(common.options("what it does"), ["--repeats", "1", "--force"]).repeats == 1


def test_an_adapter_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(common.argparse.ArgumentTypeError, match=r"adapter=lara; there are activated_lora, full, lora"):
        common.adapter_names("lora,lara")
    assert common.adapter_names("lora,activated_lora") == ["lora", "activated_lora"]


def test_lists_of_numbers_are_separated_by_commas():
    assert common.numbers("1,2,16") == [1, 2, 16]


def test_of_two_values_for_a_setting_the_later_counts():
    cfg = common.compose(["order=superni_10", "optim.lr=1", "model=tiny", "order=pocket_5", "optim.lr=2"])
    assert (cfg.order.name, cfg.optim.lr, cfg.model.name) == ("pocket_5", 2, "tiny")


def test_a_missing_peer_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match=r"need no_such_peer: pip install"):
        common.require("no_such_peer")
    common.require("peft")


def test_training_here_is_training_in_a_run(tmp_path):
    """Same weights after the first task, tensor for tensor: the same examples, order, seeds and steps."""
    setup = common.prepare([*tiny.settings(tmp_path / "data"), "adapter=lora"])
    seen = toy.run(
        common.compose([*tiny.settings(tmp_path / "data"), "adapter=lora", f"paths.runs={tmp_path / 'runs'}"])
    )
    task = setup.tasks[0]
    method = setup.method()
    data = TaskDataModule(
        task.name,
        method.training_examples(task, Memory(setup.config.seed)),
        setup.template,
        batch_size=setup.config.optim.global_batch_size,
        run_seed=setup.config.seed,
    )
    fitted = common.fit(setup, method, task, data, Clock(common.sync))
    method.save(task.name, tmp_path / "expert")
    stage = f"01-{task.name}"
    run = (seen.directory / "tasks" / stage / "expert" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "expert" / "adapter_model.safetensors").read_bytes() == run
    trained = json.loads((seen.directory / "ledger.json").read_text())["stages"][stage]["trained"]
    assert (fitted.steps, fitted.tokens, fitted.computed) == tuple(trained[k] for k in ("steps", "tokens", "computed"))
    assert fitted.token_efficiency == fitted.tokens / fitted.computed
