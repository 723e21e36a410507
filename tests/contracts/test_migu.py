"""``optim.migu`` with every method of one LoRA adapter: what the method does stays, and most rows stay bit for bit."""

from unittest.mock import patch

import pytest

from see_lightning.engine.launch import launch
from see_lightning.errors import ConfigError
from see_lightning.methods.migu import LargestRows
from tests.contracts.conftest import METHODS, TRAINING, takes_migu
from tests.nightly import all_but
from tests.runs import toy

SHARE = 0.8


@pytest.mark.parametrize("name", all_but(["agem", "ewc", "seqft"], [name for name in METHODS if takes_migu(name)]))
def test_from_the_second_task_on_a_step_keeps_most_rows(base, tmp_path, name):
    held, shares = [], []
    edit, after = LargestRows.edit_gradients, LargestRows.after_step

    def matrices(method):
        return [weight.detach().clone() for weight in method.trained_weights()]

    def edit_gradients(method):
        held[:] = matrices(method)
        edit(method)

    def after_step(method):
        after(method)
        moved = [(old != new).any(1) for old, new in zip(held, matrices(method), strict=True)]
        shares.append(max((int(rows.sum()) - 1) / len(rows) for rows in moved))

    with (
        patch.object(LargestRows, "edit_gradients", edit_gradients),
        patch.object(LargestRows, "after_step", after_step),
    ):
        seen = toy.run(toy.compose(toy.data_in(base), tmp_path, f"method={name}", f"optim.migu={SHARE}"))
    (method,) = seen.methods
    weights = [weight for pair in method.pool.pairs(method.ADAPTER).values() for weight in pair]
    assert {id(one) for one in method.trained_weights()} == {id(one) for one in weights}
    first = toy.read_results(seen.directory)["counts"]["steps"][0]
    assert max(shares[:first]) > 1 - SHARE, "the first task updates all rows"
    assert 0 <= max(shares[first:]) <= 1 - SHARE
    assert seen.directory.parent != toy.whole(base, f"method={name}").directory.parent


@pytest.mark.parametrize("name", [name for name in TRAINING if not takes_migu(name)])
def test_other_methods_refuse_it_before_a_folder_is_made(base, tmp_path, name):
    with pytest.raises(ConfigError, match=rf"optim.migu=0.8 chooses rows of one LoRA adapter.*method={name}[ .]"):
        launch(toy.compose(toy.data_in(base), tmp_path / "runs", f"method={name}", "optim.migu=0.8"), "test")
    assert not (tmp_path / "runs").exists()


def test_whole_layers_have_no_such_rows(base, tmp_path):
    with pytest.raises(ConfigError, match=r"leave it out of method=seqft with adapter=full\."):
        launch(toy.compose(toy.data_in(base), tmp_path, "method=seqft", *toy.FULL, "optim.migu=0.8"), "test")
