"""Which methods are held to the contracts: all that have a file in ``conf/method``, and one that is not ours."""

import sys
from pathlib import Path

import pytest

from see_lightning.refusals import CONF
from tests.runs import toy

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))

PLANTED_PY = '''
"""Trains on the first half of each task, and closes every answer with a bang."""

from see_lightning.methods.method import OneAdapterMethod


class Planted(OneAdapterMethod):
    def __init__(self, *, pool, template, optim, run_seed, bang):
        super().__init__(pool=pool, template=template, optim=optim, run_seed=run_seed)
        self.bang = bang

    def training_examples(self, task, memory):
        return list(task.train[: len(task.train) // 2])

    def answer(self, queries):
        return [answer._replace(text=answer.text + self.bang) for answer in super().answer(queries)]
'''
PLANTED_YAML = '_target_: planted_method.Planted\nbang: "!"\n'


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """Where the toy's data and its undisturbed runs lie; one place for all tests of a session."""
    return tmp_path_factory.getbasetemp() / "toy"


ORDINARY = [pytest.param((name, ()), id=name) for name in [*METHODS, "planted"]]
ACTIVATED = [pytest.param((name, toy.ACTIVATED), id=f"{name}-activated") for name in METHODS if name != "base"]


@pytest.fixture(scope="session", params=ORDINARY + ACTIVATED)
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
