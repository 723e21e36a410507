"""Which runs train the same experts, by what their method's class declares."""

import sys

import pytest

from see_lightning.engine.grow import trains_alike

MINE = '''
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Traits


class Trained(OneAdapterMethod):
    """Its ``keep`` changes what is trained."""


class Set(OneAdapterMethod):
    traits = Traits(after_training={"keep"})
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "mine_of_this_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine_of_this_test", None)


def noted(target: str, **settings: object) -> dict[str, object]:
    return {
        "method": {"_target_": target, **settings},
        "benchmark": {"reader": {"_target_": "none"}, "tasks": {}},
        "order": {"tasks": []},
        "model": {"source": "tiny", "name": "tiny"},
    }


@pytest.mark.parametrize(
    ("cls", "alike"), [("Trained", False), ("Set", True)], ids=["keep is trained by", "keep acts after training"]
)
def test_a_setting_acts_after_training_only_where_the_method_says_so(cls, alike):
    target = f"mine_of_this_test.{cls}"
    assert trains_alike(noted(target, keep=0.1, rank=2), noted(target, keep=0.2, rank=2)) == alike
    assert not trains_alike(noted(target, keep=0.1, rank=2), noted(target, keep=0.1, rank=4))


def test_another_method_trains_other_experts():
    theirs = noted("mine_of_this_test.Trained", keep=0.1)
    assert not trains_alike(theirs, noted("mine_of_this_test.Set", keep=0.1))
