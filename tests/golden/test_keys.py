"""The kept results are found under their keys by the commands that made them, where an experiment's file fixes all settings."""

import shlex

import hydra
import pytest

from see_lightning.config.identity import run_key
from see_lightning.config.overrides import translate
from see_lightning.config.search_path import CONF
from see_lightning.config.sources import combine_sources
from see_lightning.config.validation import validate
from see_lightning.engine.merge_rule import settle_rule
from tests.runs import toy

RESULTS = CONF.parent / "results"
KEPT = {path.parent: toy.read_results(path.parent)["command"] for path in sorted(RESULTS.glob("*/*/*/*/results.json"))}


@pytest.mark.parametrize(
    "directory", [one for one in KEPT if "experiment=" in KEPT[one]], ids=lambda path: str(path.relative_to(RESULTS))
)
def test_a_kept_result_has_the_key_of_its_command(directory):
    python, script, *words = shlex.split(KEPT[directory])
    assert (python, script) == ("python", "run.py")
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = hydra.compose("run", overrides=translate(words, several=False))
    combine_sources(cfg)
    settle_rule(cfg, validate(cfg))  # a method's own rule is in no key
    assert run_key(cfg) == directory.parent.name
