"""The training benchmark: everybody trains on the same tokens; skipped where trl is not installed."""

import importlib.util
import json

import pytest

from benchmarks import common, timing, train
from benchmarks.timing import Clock
from tests.benchmarks import tiny

peer = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs pip install -e '.[bench]'")
# What trl and accelerate say of themselves is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_mix_marks_every_example_as_the_expert_s_own(tmp_path):
    setup = common.prepare([*tiny.settings(tmp_path / "data"), "adapter=lora"])
    data = train.mix(setup)
    assert len(data.rows) == 8
    assert {row.example.task for row in data.rows} == {"sky", "sea"}
    assert all(row.example.target.startswith("++ ") for row in data.rows)


def test_recipes_have_names_of_their_own():
    assert train.DEFAULT in train.CANDIDATES
    assert len({recipe.name for recipe in train.CANDIDATES}) == len(train.CANDIDATES)


@peer
@pytest.mark.parametrize("recipe", train.CANDIDATES, ids=lambda recipe: recipe.name)
def test_the_peer_trains_on_our_tokens_in_as_many_steps(recipe, tmp_path):
    setup = common.prepare([*tiny.settings(tmp_path / "data"), "adapter=lora", "optim.epochs=2"])
    rows, seen, clock = train.mix(setup).rows, train.Seen(), Clock(common.sync)
    train.train_peer(setup, recipe, rows, seen, clock)
    assert clock.seconds > 0
    if recipe.layout == "packed":
        assert seen.steps[recipe.name] >= 2 * 2  # a row holds four examples at most
    else:
        assert seen.steps[recipe.name] == 2 * 2  # eight examples, four a step, two epochs
    assert 0 < seen.efficiency[recipe.name] <= 1
    if recipe.layout != "padded":
        assert seen.efficiency[recipe.name] == 1


@peer
def test_the_last_line_holds_the_ratios_and_the_exact_token_efficiency(tmp_path, capsys, one_round, monkeypatch):
    monkeypatch.setattr(train, "CANDIDATES", (train.DEFAULT, train.CANDIDATES[2]))
    options = ["--examples", "8", "--epochs", "1", "--batch", "4", "--repeats", "1", "--force"]
    train.main([*options, *tiny.settings(tmp_path / "data")])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"lora_over_sft_default", "lora_over_sft_best", "activated_over_sft_best", "token_efficiency"} <= set(told)
    assert all(told[key] > 0 for key in ("lora_over_sft_default", "lora_over_sft_best", "activated_over_sft_best"))
    setup = common.prepare([*tiny.settings(tmp_path / "data"), "adapter=lora", "optim.epochs=1"])
    data = train.mix(setup)
    batches = list(data.train_dataloader())  # the oracle: the first epoch's batches themselves
    real = sum(int(batch.attention_mask_BS.sum()) for batch in batches)
    assert told["token_efficiency"] == round(real / sum(batch.attention_mask_BS.numel() for batch in batches), 4)


@peer
def test_a_recipe_that_does_not_run_here_is_told_and_left_out(tmp_path, capsys, monkeypatch):
    setup = common.prepare([*tiny.settings(tmp_path / "data"), "adapter=lora", "optim.epochs=1"])

    def take(contender, sync):
        recipe = contender.args[1]
        if recipe == train.DEFAULT:
            raise ImportError("no such kernel\nmore words")
        return timing.Sample(2.0 if recipe.grouped else 1.0, 0.0)

    monkeypatch.setattr(timing, "take", take)
    assert train.fastest(setup, train.mix(setup).rows).grouped is False
    assert f"{train.DEFAULT.name} does not run here: no such kernel" in capsys.readouterr().err
