"""Which methods are held to the contracts: all that have a file in ``conf/method``, and one that is not ours.

No method is named here. What is asked of one, and what is left to ``make test-all`` (the mark ``nightly``), is chosen by
what its class declares. The tests of one method and kind of adapters share one run and one process.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_class

from see_lightning.config.search_path import CONF
from see_lightning.methods.setup import Traits
from tests.runs import toy

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))

PLANTED_PY = '''
"""Trains on the first half of each task and a row for each past one, and closes every answer with a bang."""

import torch

from see_lightning.methods.method import OneAdapterMethod


class Planted(OneAdapterMethod):
    def __init__(self, setup, *, bang):
        super().__init__(setup)
        self.bang = bang
        self.learned = torch.zeros(())

    def training_examples(self, task, memory):
        return list(task.train[: len(task.train) // 2 + int(self.learned)])

    def end_task(self, task, memory):
        self.learned += 1

    def state(self):
        return {"learned": self.learned}

    def load_state(self, task, tensors):
        self.learned = tensors["learned"]

    def report(self):
        return {"learned": int(self.learned)}

    def answer(self, queries):
        return [answer._replace(text=answer.text + self.bang) for answer in super().answer(queries)]
'''
PLANTED_YAML = '_target_: planted_method.Planted\nbang: "!"\n'


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """Where the toy's data and its undisturbed runs lie; one place for all tests of a session."""
    return tmp_path_factory.getbasetemp() / "toy"


def declared(name: str) -> Traits:
    """What a method's class declares, with the arguments of its YAML file: of like ones, one stands for all."""
    arguments = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())
    cls = get_class(arguments["_target_"])
    # Which settings act after training changes no contract; whole layers and ``optim.migu`` have tests of their own.
    weights = "lora" if cls.traits.weights == "any" else cls.traits.weights
    router = cls.router_for(arguments)
    return replace(cls.traits, router=router, after_training=frozenset(), weights=weights, one_lora=False)


def takes_migu(name: str) -> bool:
    """Whether a method has one LoRA adapter, of which a step may update the largest rows alone."""
    target = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())["_target_"]
    return get_class(target).traits.one_lora


def may_train_whole_layers(name: str) -> bool:
    """Whether a method takes ``adapter=full``, and LoRA adapters too."""
    target = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())["_target_"]
    return get_class(target).traits.weights == "any"


def edits_forward(name: str) -> bool:
    """Whether a method reads prompts or moves weights in its own way, so that activated adapters are a case of its own."""
    traits = declared(name)
    return traits.learns_refusals or not traits.shardable or not traits.peft_loadable


#: The first of each set of traits. Every interruption is tried on these, three on the others.
FIRST = {declared(name): name for name in reversed(METHODS)}.values()
TRAINING = [name for name in METHODS if declared(name).schedule != "frozen" and declared(name).trains]
ORDINARY = [pytest.param((name, ()), id=name) for name in [*METHODS, "planted"]]
ACTIVATED = [
    pytest.param(
        (name, toy.ACTIVATED), id=f"{name}-activated", marks=() if edits_forward(name) else pytest.mark.nightly
    )
    for name in TRAINING
    if declared(name).takes_activated and (edits_forward(name) or name in FIRST)
]
FULL = [pytest.param((name, toy.FULL), id=f"{name}-full") for name in TRAINING if may_train_whole_layers(name)]
#: Those on which every interruption is tried; then those on which three are.
SWEPT = [
    pytest.param(*one.values, id=one.id, marks=one.marks if one.values[0][0] in FIRST else pytest.mark.nightly)
    for one in ORDINARY + ACTIVATED
]
SAMPLED = [one for one in ORDINARY + ACTIVATED if one.values[0][0] not in FIRST] + FULL


@pytest.fixture
def whole(base, method) -> toy.Seen:
    """An undisturbed run of the method."""
    return toy.whole(base, *method)


@pytest.fixture(scope="session", params=ORDINARY + ACTIVATED + FULL)
def method(request, tmp_path_factory):
    """Overrides that choose a method and its adapters; "planted" is added as anybody would: a module and a YAML file."""
    name, settings = request.param
    if name != "planted":
        yield (f"method={name}", *settings)
        return
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted_method.py").write_text(PLANTED_PY)
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "conf" / "method" / "planted.yaml").write_text(PLANTED_YAML)
    sys.path.insert(0, str(folder))
    yield (f"hydra.searchpath=[file://{folder}/conf]", "method=planted")
    sys.path.remove(str(folder))
