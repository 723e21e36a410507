"""What a method may do within a step: once a step, in this order, and nothing of it in a method that does nothing."""

import pytest

from see_lightning.engine.ledger import Ledger
from tests.runs import toy

MINE = '''
from see_lightning.methods.seqft import SeqFt

CALLS = []


class Hooked(SeqFt):
    """Notes the hooks, and has a penalty of a chosen scale."""

    def penalty(self):
        CALLS.append("penalty")
        return 3 * sum(p.sum() for p in self.parameters() if p.requires_grad) * self.scale

    scale = 0.0

    def edit_gradients(self):
        gradients = [p.grad for p in self.parameters() if p.requires_grad]
        assert all(g is not None for g in gradients)
        CALLS.append("edit_gradients")

    def after_step(self):
        CALLS.append("after_step")
'''


@pytest.fixture
def hooked(tmp_path, monkeypatch):
    (tmp_path / "hooked_method.py").write_text(MINE)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "hooked.yaml").write_text("_target_: hooked_method.Hooked\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import hooked_method

    hooked_method.CALLS.clear()
    return hooked_method, (f"hydra.searchpath=[file://{tmp_path}/conf]", "method=hooked", "order.tasks=[sky]")


def test_each_is_called_once_a_step_in_their_order(base, tmp_path, hooked):
    """Also where a step is computed in many parts."""
    module, words = hooked
    run = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *words, "optim.max_tokens_per_microbatch=40"))
    (steps,) = toy.read_results(run.directory)["counts"]["steps"]
    assert steps == len(module.CALLS) / 3 > 1
    assert ["penalty", "edit_gradients", "after_step"] * int(steps) == module.CALLS


def test_the_loss_of_a_stage_is_that_of_its_rows_without_the_penalty(base, tmp_path, hooked, monkeypatch):
    module, words = hooked
    monkeypatch.setattr(module.Hooked, "penalty", lambda self: self.trained_weights()[0].sum() * 0 + 1000)
    run = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *words))
    plain = toy.whole(base, "method=seqft", "order.tasks=[sky]")
    losses = [Ledger(one.directory).read().stage("01-sky")["trained"]["loss"] for one in (run, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_penalty_that_is_no_number_ends_the_task(base, tmp_path, hooked, monkeypatch):
    module, words = hooked
    monkeypatch.setattr(module.Hooked, "scale", float("nan"))
    with pytest.raises(Exception, match="the penalty is nan"):
        toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *words))
