"""Test paraphrases stay unseen: nothing that trains reads them, and no built-in rewording makes one of them."""

import ast
import json
import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from see_lightning.config.search_path import CONF, register
from see_lightning.config.validation import validate
from see_lightning.data.checks import RowChecks
from see_lightning.data.general import general_rows
from see_lightning.engine.build import build_tasks, build_template
from see_lightning.engine.build_further import build_variants
from see_lightning.errors import ConfigError
from see_lightning.methods.see import See
from see_lightning.tasks.selection import content
from see_lightning.tasks.variants import definition
from see_lightning.tasks.wordings import KINDS, cut, noised, reworded
from tests.runs import toy

PACKAGE = Path(__file__).parents[2] / "see_lightning"
DRAWS = 40  # of each definition
#: Everything that may know the setting: it checks it, leaves it out of keys, builds test queries with it, or reports it.
READERS = {
    *("config/identity.py", "engine/contents.py"),
    *("config/effects.py", "engine/build_further.py", "engine/report_again.py", "engine/results.py"),
    "engine/router_comparison.py",
    *("config/sources.py", "tasks/paraphrases.py", "tasks/task.py", "tasks/variants.py"),
}


def worded(text: str) -> str:
    """A text's words with single spaces between them, in small letters."""
    return content(text).lower()


def leaks(prompts: list[str], paraphrases: list[str]) -> list[tuple[str, str]]:
    """Each training prompt that equals or contains a paraphrase, in whole words, with that paraphrase."""
    given = [(prompt, f" {worded(prompt)} ") for prompt in prompts]
    return [(prompt, text) for prompt, words in given for text in paraphrases if f" {worded(text)} " in words]


def names_in(path: Path) -> set[str]:
    """The names of variables, attributes, arguments and keys in a module; its comments and docstrings are no code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found |= {getattr(node, field, None) for field in ("id", "attr", "arg", "name")}
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found.add(node.value)
    return {name for name in found if isinstance(name, str)}


def benchmark_of(order: str):
    register()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = compose("run", overrides=[f"order={order}"])
    return instantiate(cfg.benchmark), list(cfg.order.tasks)


def test_no_module_that_trains_reads_the_paraphrases():
    reading = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(name == "paraphrases" or name.startswith("benchmark.paraphrases") for name in names_in(path))
    }
    assert reading <= READERS, "test paraphrases are for test queries alone"
    assert {"tasks/task.py", "engine/build_further.py"} <= reading, "or the search finds nothing"


def test_a_leak_is_found():
    assert leaks(["Please:  Reword IT,\nsame meaning\n\na line"], ["reword it, same meaning", "tldr"]) == [
        ("Please:  Reword IT,\nsame meaning\n\na line", "reword it, same meaning")
    ]


@pytest.mark.parametrize("reword", [reworded, cut, noised], ids=lambda one: one.__name__)
@pytest.mark.parametrize("order", ["pocket_5", pytest.param("superni_10", marks=pytest.mark.data)])
def test_no_built_in_rewording_makes_a_paraphrase(order, reword):
    benchmark, tasks = benchmark_of(order)
    definitions = [definition(benchmark.reader.read(name, RowChecks()).train) for name in tasks]
    paraphrases = [text for texts in benchmark.paraphrases.values() for text in texts]
    made = [reword(text, random.Random(draw)) for text in definitions for draw in range(DRAWS)]
    assert len(set(made)) > 2 * len(definitions), "the texts do vary"
    assert not leaks([*definitions, *made], paraphrases)


def test_no_general_instruction_is_a_paraphrase():
    paraphrases = [
        text for order in ("pocket_5",) for texts in benchmark_of(order)[0].paraphrases.values() for text in texts
    ]
    assert not leaks([row.prompt for row in general_rows("built_in")], paraphrases)


def test_no_row_that_a_run_trains_on_has_a_paraphrase(base, tmp_path, monkeypatch):
    trained: list[str] = []
    examples = See.training_examples

    def noted(method, task, memory):
        found = examples(method, task, memory)
        trained.extend(row.prompt for row in found)
        return found

    monkeypatch.setattr(See, "training_examples", noted)
    kinds = f"method.instruction_variants=[{','.join(KINDS)}]"
    settings = ("method=see", "optim.epochs=1", kinds, "method.general_negatives=4", "model.max_length=512")
    toy.run(toy.compose(toy.defined_in(base), tmp_path, *toy.DEFINED, *settings, *toy.VARIANTS))
    assert len(trained) >= sum(toy.TASKS.values())
    assert any(not prompt.startswith(tuple(toy.TASKS)) for prompt in trained), "wordings vary"
    assert not leaks(trained, ["say sky", "a sea", "now: ice"])


@pytest.mark.parametrize("kinds", ["reworded", "noised"])
def test_a_file_of_rewordings_with_a_test_paraphrase_is_refused_where_it_is_evaluated(base, tmp_path, kinds):
    """Where definitions are not reworded, the file is not read."""
    file = tmp_path / "rewordings.jsonl"
    file.write_text(json.dumps({"task": "sky", "rewordings": ["Please:  SAY\nsky"]}) + "\n")
    settings = ("method=see", f"method.instruction_variants=[{kinds}]", f"method.rewordings={file}")
    cfg = toy.compose(toy.defined_in(base), tmp_path, *toy.DEFINED, *settings, *toy.VARIANTS)
    if kinds == "noised":
        assert build(cfg)
        return
    with pytest.raises(ConfigError, match=r"has the paraphrase of sky that variants=\[paraphrased\] evaluates"):
        build(cfg)
    assert build(toy.compose(toy.defined_in(base), tmp_path, *toy.DEFINED, *settings, "variants=[input_only]"))


def build(cfg):
    config = validate(cfg)
    template = build_template(config)
    return build_variants(cfg, config, template, build_tasks(cfg, config, template))
