"""A class that cannot be imported, or is none that is wanted, is refused in one line."""

import sys

import pytest
from omegaconf import OmegaConf

from see_lightning.config.effects import check_effects
from see_lightning.config.instantiate import NotImportable, bind, instantiate
from see_lightning.errors import ConfigError
from see_lightning.methods.lookup import method_class

ZERO_SHOT = """
from see_lightning.methods.base import Base
from see_lightning.methods.setup import Traits

class ZeroShot(Base):
    traits = Traits(schedule="frozen")
"""


def nested(node):
    return OmegaConf.create({"_target_": "outer.outer", "part": node})


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("no_such_module.X", "No module named 'no_such_module'"),
        ("broken.X", "ZeroDivisionError: division by zero"),
        ("needs.X", "No module named 'no_such_library'"),
        ("see_lightning.methods.see.Seee", "No module named 'see_lightning.methods.see.Seee'"),
        ("see_lightning.methods.see.See.nope", "has no attribute 'nope'"),
        (".relative", "invalid dotstring"),
        ("", "Empty path"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_line_that_tells_why(tmp_path, monkeypatch, target, told):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "outer.py").write_text("def outer(part): return part")
    (tmp_path / "needs.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    for read in (bind, method_class, lambda node: instantiate(nested(node))):
        with pytest.raises(NotImportable) as refused:
            read({"_target_": target})
        assert told in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("target", ["json", "builtins.dict", "math.pi"])
def test_what_cannot_be_called_with_settings_is_refused(target):
    with pytest.raises(ConfigError, match=f"^{target} is no class or function whose arguments Python knows"):
        bind({"_target_": target})


@pytest.mark.parametrize("target", ["torch.nn.Linear", "builtins.len", "see_lightning.methods.setup"])
def test_what_is_no_method_is_refused(target):
    with pytest.raises(
        ConfigError, match=f"^method._target_={target} is no method: .*see_lightning.methods.method.Method"
    ):
        method_class({"_target_": target})


def test_a_setting_of_training_has_no_effect_under_a_method_that_declares_to_train_nothing(
    composed, tmp_path, monkeypatch
):
    (tmp_path / "zero_shot.py").write_text(ZERO_SHOT)
    monkeypatch.syspath_prepend(tmp_path)
    typed = ["method=base", "method._target_=zero_shot.ZeroShot", "optim.lr=1"]
    with pytest.raises(ConfigError, match=r"^optim\.lr has no effect here: method=zero_shot trains nothing"):
        check_effects(composed(*typed), typed, several=False)
    sys.modules.pop("zero_shot")
