"""Activations that are computed again in the backward pass give every method the same weights."""

from unittest.mock import patch

import pytest
import torch
from _pytest.mark import ParameterSet
from safetensors.torch import load_file

from see_lightning.adapters import adapted_model
from tests.contracts.conftest import FIRST, FULL, ORDINARY, TRAINING
from tests.runs import toy

SETTINGS = ("order.tasks=[sky,ice]", "optim.epochs=2", "adapter.dropout=0.1", "model.dtype=fp32")
#: Their trained weights act over a KV cache: those of a prefix.
OVER_A_CACHE = ("progprompt", "l2p")
#: With weights of layers, gates or masks of their own in the forward pass.
GATED = ("moelora", "gainlora", "moses", "coso")
CASES = [one for one in ORDINARY + FULL if one.values[0][0] in (*TRAINING, "planted")]


def daily() -> list[ParameterSet]:
    chosen = {*FIRST, *GATED, *OVER_A_CACHE}
    return [
        pytest.param(*one.values, id=one.id, marks=() if one.values[0][0] in chosen else pytest.mark.nightly)
        for one in CASES
    ]


@pytest.mark.parametrize("method", daily(), indirect=True)
def test_a_method_trains_the_same_weights(base, method, tmp_path):
    data, counted = toy.data_in(base), []
    plain = toy.run(toy.compose(data, tmp_path / "plain", *method, *SETTINGS, "model.gradient_checkpointing=off"))
    recompute = adapted_model.checkpoint
    with patch.object(adapted_model, "checkpoint", lambda *args, **more: counted.append(1) or recompute(*args, **more)):
        again = toy.run(toy.compose(data, tmp_path / "again", *method, *SETTINGS, "model.gradient_checkpointing=on"))
    assert bool(counted) == (method[0].removeprefix("method=") not in OVER_A_CACHE)
    assert plain.directory.parent.name == again.directory.parent.name, "the run key has changed"
    files = [path.relative_to(plain.directory) for path in sorted(plain.directory.rglob("*.safetensors"))]
    assert files
    for file in files:
        wanted, found = load_file(plain.directory / file), load_file(again.directory / file)
        assert wanted.keys() == found.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{file}: {name}")
