"""Settings under the names of version 0.1: in files of the user, in runs, and in run keys."""

import hydra
import pytest
from omegaconf import OmegaConf

from see_lightning.config import overrides
from see_lightning.config.former_names import FIELDS, SETTINGS, with_current_names, with_former_names
from see_lightning.config.identity import run_key
from see_lightning.config.overrides import translate
from see_lightning.config.search_path import CONF, register, register_own_conf
from see_lightning.config.validation import typed
from see_lightning.reporting.runs import read_results

NAMED_BEFORE = """# @package _global_
defaults:
  - override /method: {method}
data: {{rehearsal: fixed, eval_batch: 5}}
optim: {{loss_mean: examples, global_batch: 3}}
method: {{{settings}}}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of the user's own configurations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "method").mkdir()
    register()
    register_own_conf()
    overrides._in_files.cache_clear()
    yield tmp_path / "conf"
    overrides._in_files.cache_clear()


def composed(*overrides):
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra.compose("run", overrides=list(overrides))


def test_a_file_of_the_user_may_have_the_former_names(own):
    (own / "experiment" / "mine.yaml").write_text(NAMED_BEFORE.format(method="see", settings="leeway: 0.5"))
    cfg = composed("experiment=mine")
    assert (cfg.data.resample, cfg.data.eval_batch_size, cfg.optim.loss_reduction) == ("once", 5, "examples")
    assert (cfg.optim.global_batch_size, cfg.method.margin, cfg.method.resample) == (3, 0.5, "once")


def test_a_method_of_the_user_keeps_its_own_names_and_may_refer_to_a_former_one(own):
    (own / "method" / "mine.yaml").write_text("_target_: mine.Mine\nkeep: 1\ndraw: ${data.rehearsal}\n")
    (own / "experiment" / "mine.yaml").write_text(NAMED_BEFORE.format(method="mine", settings="keep: 2"))
    cfg = composed("experiment=mine")
    assert (cfg.method.keep, cfg.method.draw) == (2, "once")


def test_every_former_name_is_read_and_enters_the_key():
    settings = {"method": {"_target_": "see_lightning.methods.moram.MoRAM"}, "data": {}, "optim": {}, "seed": 0}
    for name in SETTINGS:
        group, key = name.split(".")
        settings[group][key] = "once" if key == "resample" else 1
    former = with_former_names(settings)
    assert {f"{group}.{key}" for group in ("method", "data", "optim") for key in former[group]} == {
        *SETTINGS.values(), "method._target_",
    }  # fmt: skip
    assert former["method"]["_target_"] == "see_lightning.methods.mora.Mora"
    assert former["data"]["rehearsal"] == former["method"]["draw"] == "fixed"
    assert with_current_names(former) == with_current_names(settings) == settings


def test_a_configuration_of_either_version_has_one_key():
    cfg = composed("method=see", "method.calibrate_on=5", "method.ood_examples=4")
    former = OmegaConf.create(with_former_names(OmegaConf.to_container(cfg, resolve=True)))
    assert run_key(former) == run_key(cfg) == run_key(typed(former))
    assert typed(former).method.ood_examples == 4


def test_results_of_an_earlier_version_are_read_by_todays_names():
    for path in sorted((CONF.parent / "results").rglob("results.json")):
        results = read_results(path)
        for section in ("routing", "ood"):
            if section in results:
                assert results[section]["fallback_rate"] == results[section]["base_share"]
        if "given" in results:
            assert (results["assigned_expert"], results["is_new_expert"]) == (results["given"], results["expanded"])
        assert results["counts"]["cache_hits"] == results["counts"]["remembered"]
        assert set(FIELDS) & set(results["config"]["method"]) == set()


def test_a_method_may_be_chosen_by_its_former_name_in_a_file(own):
    (own / "experiment" / "mine.yaml").write_text(NAMED_BEFORE.format(method="mora", settings="prune: 0.5"))
    (own / "method" / "mine.yaml").write_text("defaults: [mora]\nprune: 0.5\n")
    assert composed("experiment=mine").method._target_ == "see_lightning.methods.moram.MoRAM"
    assert composed("method=mine").method._target_ == "see_lightning.methods.moram.MoRAM"


def test_a_file_with_former_names_leaves_them_to_the_command_line(own):
    (own / "method" / "mine.yaml").write_text("defaults: [see]\nkeep: 0.5\n")
    words = translate(["method=mine", "method.keep=0.25"], several=False)
    assert composed(*words).method.target_recall == 0.25


def test_a_setting_of_the_users_method_does_not_hide_the_former_name_of_ours(own):
    (own / "method" / "mine.yaml").write_text("_target_: mine.Mine\nkeep: 1\n")
    assert translate(["method=see", "method.keep=0.25"], several=False)[1] == "method.target_recall=0.25"
    assert translate(["method=mine", "method.keep=2"], several=False)[1] == "method.keep=2"


@pytest.mark.parametrize("word", ["data={'rehearsal': 'fixed'}", "data.rehearsal='fixed'", 'data.rehearsal="fixed"'])
def test_a_quoted_former_value_is_read(word):
    assert translate([word], several=False) == ["data.resample=once"]
    assert translate(['method="mora"'], several=False) == ["method=moram"]


def test_a_setting_is_taken_out_by_its_former_name(own):
    assert "target_recall" not in composed(*translate(["~method.keep"], several=False)).method
