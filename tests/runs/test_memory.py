"""Micro-batches of auto size, in runs and in what is made of them."""

import pytest

from see_lightning import load_ensemble
from see_lightning.engine import memory_plan, session
from see_lightning.engine.footprint import Footprint
from see_lightning.engine.memory_plan import MemoryPlan
from see_lightning.errors import ConfigError
from tests.runs import toy

AUTO = "optim.max_tokens_per_microbatch=auto"
WIDE = ("model.dtype=fp32", "adapter.dropout=0")


def test_a_run_with_auto_is_the_run_without(base, tmp_path):
    auto = toy.run(toy.compose(toy.data_in(base), tmp_path / "auto", AUTO, *WIDE))
    plain = toy.run(toy.compose(toy.data_in(base), tmp_path / "plain", *WIDE))
    assert auto.directory.parent.name == plain.directory.parent.name, "the run key has changed"
    ours, theirs = (toy.read_results(one.directory) for one in (auto, plain))
    assert (ours["matrix"], ours["counts"]["steps"]) == (theirs["matrix"], theirs["counts"]["steps"])
    assert load_ensemble(auto.directory).answer(["skysky111?"])


@pytest.mark.parametrize("method", ["see", "merge"])
def test_experts_that_are_taken_over_need_no_plan(base, tmp_path, monkeypatch, method):
    first, then = {
        "see": ((), ("data.calibrate_on=train",)),
        "merge": (("rule=average",), ("rule=frank_wolfe", "rule.rows=2")),
    }[method]
    chosen = (f"method={method}", AUTO)
    toy.run(toy.compose(toy.data_in(base), tmp_path, *chosen, *first))
    monkeypatch.setattr(session, "plan_memory", None)
    assert toy.run(toy.compose(toy.data_in(base), tmp_path, *chosen, *then)).fits == 0


def test_a_plan_of_the_first_rank_is_followed_and_told(base, tmp_path, monkeypatch, capsys):
    plan = MemoryPlan(16, True, Footprint(2**30, 0, 0, 0))
    monkeypatch.setattr(session, "plan_memory", lambda *_: plan)
    seen = toy.run(toy.compose(toy.data_in(base), tmp_path, AUTO, *WIDE))
    assert "micro-batches of at most 16 tokens: 1.0 GiB by the estimate" in capsys.readouterr().err
    (method,) = seen.methods
    assert method.optim.max_tokens_per_microbatch == 16
    assert "_checkpointed" in repr(method.pool.model.get_decoder().layers[0].forward)


def test_too_little_memory_is_refused_before_anything_is_trained(base, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_plan, "available_bytes", lambda _: 2**20)
    with pytest.raises(ConfigError, match="a micro-batch of one row"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, AUTO))


@pytest.mark.parametrize("value", ["0", "1.5", "most"])
def test_a_number_of_tokens_is_checked(base, tmp_path, value):
    with pytest.raises(ConfigError, match="optim.max_tokens_per_microbatch is a whole number from 1 on, or auto"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, f"optim.max_tokens_per_microbatch={value}"))
