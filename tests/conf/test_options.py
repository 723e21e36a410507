"""Every option of every group: it composes, is in range, and fits the class that it names."""

import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import hydra.utils
import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from see_lightning.config.instantiate import bind
from see_lightning.config.search_path import CONF
from see_lightning.config.sources import combine_sources
from see_lightning.config.validation import validate
from see_lightning.errors import ConfigError

OPTIONS = sorted(f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.rglob("*/*.yaml"))
NEEDED = {
    "model=hub": ["model.name=owner/name"],
    "benchmark=jsonl": ["benchmark.reader.folder=/mine"],
    "benchmark=combined": ["+benchmark@benchmark.sources.pocket=pocket"],
    "benchmark=hub": ["benchmark.reader.datasets={a:{path:p,prompt:q,answer:r}}"],
    "order=hub": ["benchmark.reader.datasets={a:{path:p,prompt:q,answer:r}}", "order.tasks=[a,b]"],
    "order=jsonl": ["benchmark.reader.folder=/mine", "order.tasks=[a,b]"],
}
PRESETS = [
    path.stem for path in sorted(CONF.glob("model/*.yaml")) if "source: hub" in path.read_text() and path.stem != "hub"
]
AT_RUN_TIME = {"method": ("setup",), "router": ("method",)}


def targets(node: object, group: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """Every node below ``node`` that names a class, with the group it stands in."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield group, node
        for key, value in node.items():
            yield from targets(value, group or key)


def check(cfg: DictConfig) -> int:
    """Refuse what ``run.py`` would refuse, and count the classes that were bound."""
    validate(cfg)
    combine_sources(cfg)
    nodes = list(targets(OmegaConf.to_container(cfg, resolve=True)))
    for group, node in nodes:
        bind(node, *AT_RUN_TIME.get(group, ()))
    return len(nodes)


def test_the_walk_over_conf_finds_its_options():
    assert len(OPTIONS) >= 25
    assert {"method=see", "order=superni_10", "experiment=ssr_superni_10", "debug=fast", "logger=none"} <= set(OPTIONS)
    assert all("/" not in option for option in OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_composes_and_every_class_takes_what_it_is_given(composed, option):
    assert check(composed(option, *NEEDED.get(option, []))) >= 3  # method, reader with benchmark, trainer


@pytest.mark.parametrize("option", OPTIONS)
def test_a_planted_key_is_caught_in_every_option(composed, option, tmp_path):
    conf = shutil.copytree(CONF, tmp_path / "conf")
    group, name = option.split("=")
    with (conf / group / f"{name}.yaml").open("a") as file:
        file.write("\nplanted: 1\n")
    with pytest.raises((ConfigError, OmegaConfBaseException, HydraException), match="planted"):
        check(composed(option, *NEEDED.get(option, []), conf=conf))


def test_a_misspelt_argument_of_a_method_is_told_with_the_right_one(composed, tmp_path):
    conf = shutil.copytree(CONF, tmp_path / "conf")
    path = conf / "method" / "see.yaml"
    path.write_text(path.read_text().replace("ratio: ", "rato: "))
    with pytest.raises(ConfigError, match=r"methods\.see\.See takes no 'rato'\. Did you mean 'ratio'\?"):
        check(composed("method=see", conf=conf))


def test_an_argument_that_is_missing_is_named(composed, tmp_path):
    conf = shutil.copytree(CONF, tmp_path / "conf")
    path = conf / "method" / "replay.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "resample" not in line))
    with pytest.raises(ConfigError, match=r"Replay needs 'resample', which the configuration does not give"):
        check(composed("method=replay", conf=conf))


def test_no_class_of_ours_swallows_an_argument_it_does_not_know():
    named = {match for path in CONF.rglob("*.yaml") for match in re.findall(r"_target_: (\S+)", path.read_text())}
    assert {"see_lightning.methods.see.See", "see_lightning.data.ssr.SsrReader", "lightning.Trainer"} <= named
    for target in sorted(name for name in named if not name.startswith("lightning.")):
        parameters = inspect.signature(hydra.utils.get_object(target)).parameters.values()
        assert not [p.name for p in parameters if p.kind is p.VAR_KEYWORD], target


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith(("experiment=", "debug="))])
def test_the_command_at_the_head_of_an_experiment_names_it_and_composes(composed, option):
    path = CONF / option.split("=")[0] / f"{option.split('=')[1]}.yaml"
    command = re.match(r"# @package _global_\n# python run\.py (.*?)(  .*)?\n", path.read_text())
    assert command, f"{path} does not begin with its command"
    overrides = shlex.split(command[1])
    assert option in overrides
    assert check(composed(*overrides)) >= 3


@pytest.mark.parametrize("path", sorted((CONF / "method").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_at_the_head_of_a_method_names_it(path: Path):
    assert path.read_text().startswith(f"# python run.py method={path.stem}")


def test_an_experiment_changes_what_it_says(composed):
    cfg = composed("experiment=ssr_superni_10")
    assert (cfg.order.name, cfg.model.name, cfg.trainer.accelerator) == (
        "superni_10",
        "meta-llama/Llama-2-7b-hf",
        "gpu",
    )
    assert (cfg.optim.lr, cfg.optim.global_batch_size, cfg.optim.epochs) == (2e-4, 32, 3)
    assert (cfg.adapter.rank, cfg.adapter.alpha, cfg.adapter.targets) == (8, 32.0, None)  # PEFT's own
    assert (cfg.train_size, cfg.test_size, cfg.method.ratio) == (None, None, 0.1)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_of_the_hub_names_a_commit_that_is_its_own(composed, preset):
    assert re.fullmatch("[0-9a-f]{40}", composed(f"model={preset}").model.revision)
    assert composed(f"model={preset}", "model.revision=main").model.revision == "main"
    assert composed(f"model={preset}", "model.name=owner/other").model.revision is None
    assert composed(f"model={preset}", "model.name=/a/folder").model.revision is None
