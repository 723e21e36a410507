"""What a method keeps beside its adapters is saved, restored and counted without code of its own."""

import pytest
import torch
from safetensors.torch import load_file

from see_lightning.adapters.composites import Dense, Sum
from see_lightning.adapters.files import STATE
from see_lightning.config.schema import OptimConfig
from see_lightning.engine.grow import _without_answers
from see_lightning.errors import ConfigError
from see_lightning.methods.method import ExpertMethod, OneAdapterMethod
from see_lightning.methods.setup import Setup


class Fisher(OneAdapterMethod):
    """Two tensors that share memory."""

    both = torch.arange(6.0)

    def state(self):
        return {"own": self.both[:4], "part": self.both[2:]}

    def load_state(self, task, tensors):
        self.loaded = task, tensors


class Keys(ExpertMethod):
    """A key for each task."""

    def __init__(self, setup):
        super().__init__(setup)
        self.keys = {}

    def route(self, queries):
        return list(self.keys)

    def state(self):
        return self.keys

    def load_state(self, task, tensors):
        self.keys = tensors


def make(make_pool, template, method, *names):
    return method(Setup(make_pool(*names), template, OptimConfig(), 0))


def test_the_state_comes_back_with_the_adapter(make_pool, template, tmp_path):
    method = make(make_pool, template, Fisher, "shared")
    method.save("sky", tmp_path)
    again = make(make_pool, template, Fisher)
    again.restore("sky", tmp_path)
    task, tensors = again.loaded
    assert task == "sky"
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"own": [0, 1, 2, 3], "part": [2, 3, 4, 5]}
    assert again.pool.digest("shared") == method.pool.digest("shared")


def test_tasks_before_a_state_leave_no_file_and_are_restored_without_one(make_pool, template, tmp_path):
    method = make(make_pool, template, Keys, "sky", "sea")
    method.save("sky", tmp_path / "sky")
    method.keys["sea"] = torch.ones(3)
    method.save("sea", tmp_path / "sea")
    assert [(tmp_path / task / STATE).exists() for task in ("sky", "sea")] == [False, True]
    again = make(make_pool, template, Keys)
    for task in ("sky", "sea"):
        again.restore(task, tmp_path / task)
    assert again.pool.names == ["sky", "sea"]
    assert again.keys["sea"].tolist() == [1, 1, 1]


def test_the_state_counts_as_stored(make_pool, template):
    method = make(make_pool, template, Keys, "sky")
    assert "state" not in method.storage()
    method.keys["sky"] = torch.ones(3, dtype=torch.float64)
    assert method.storage()["state"] == 24


def test_a_state_that_holds_no_numbers_is_refused(make_pool, template, tmp_path):
    method = make(make_pool, template, Keys, "sky")
    method.keys["sky"] = torch.tensor([1.0, float("nan")])
    with pytest.raises(ConfigError, match="sky holds nan or inf"):
        method.save("sky", tmp_path)
    assert not (tmp_path / STATE).exists()


def test_a_task_that_is_ended_again_makes_its_state_again():
    files = {f"expert/{name}": "0" for name in ("adapter_model.safetensors", STATE, "expert.json")}
    noted = {"trained": {"files": files}, "answers": {}, "remembered": {}}
    assert list(_without_answers(noted, ended=False)["trained"]["files"]) == ["expert/adapter_model.safetensors"]


def test_files_of_a_state_are_plain_safetensors(make_pool, template, tmp_path):
    make(make_pool, template, Fisher, "shared").save("sky", tmp_path)
    assert load_file(tmp_path / STATE).keys() == {"own", "part"}


def test_composites_are_counted_by_their_adapters_once_or_by_their_own_weights(make_pool, template):
    method = make(make_pool, template, Fisher, "a", "b")
    method.both = torch.empty(0)
    method.pool.register("both", Sum(method.pool, ["a", "b"], [1.0, 1.0]))
    one = method.pool.adapter_bytes("a")
    assert (method.storage()["pool"], method.storage()["weights"]) == (one, 2 * one)
    dense = Dense({layer: torch.zeros_like(part.weight) for layer, part in method.pool.layers.items()})
    method.pool.register("dense", dense)
    assert method.storage()["weights"] == 2 * one + sum(part.weight.nbytes for part in method.pool.layers.values())
