"""What people and sweeps type becomes what Hydra reads; what can be read in two ways is refused with both of them."""

import re
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from see_lightning.config import overrides
from see_lightning.config.former_names import SETTINGS
from see_lightning.config.overrides import translate
from see_lightning.errors import ConfigError

PARSER = OverridesParser.create()


def value(override: str) -> object:
    """What Hydra takes from an override."""
    return PARSER.parse_override(override).value()


@pytest.mark.parametrize(
    ("word", "read"),
    [
        # null, by its Python name, wherever it is allowed
        ("model.system_prompt=None", ["model.system_prompt=null"]),
        ("model.system_prompt='None'", ["model.system_prompt='None'"]),
        ("train_size=None", ["train_size=null"]),
        ("order.name=None", ["order.name=None"]),
        ("order.tasks=[None,qa]", ["order.tasks=[None,qa]"]),
        ("ood.tasks=None", ["ood.tasks=null"]),
        ("method.warm_start=None", ["method.warm_start=none"]),
        ("method=glob(s*)", ["method=glob(s*)"]),
        # a number stays one beside words such as auto and training
        ("trainer.devices=2", ["trainer.devices=2"]),
        ("benchmark.max_new_tokens=40", ["benchmark.max_new_tokens=40"]),
        ("benchmark.version=2", ['benchmark.version="2"']),
        ("model.revision=12", ['model.revision="12"']),
        ("method.temperature=None", ["method.temperature=null"]),
        ("+trainer.max_time=None", ["+trainer.max_time=null"]),
        ("logger=None", ["logger=none"]),
        ("logger=null", ["logger=none"]),
        ("logger=False", ["logger=none"]),
        ("ood=None", ["ood=none"]),
        ("~ood", ["ood=none"]),
        ("router=null", ["~router"]),
        ("experiment=None", ["~experiment"]),
        ("router=none", ["router=none"]),
        # settings of a group in one dict, as a nested W&B sweep hands them over
        ("optim={'lr': 0.001, 'epochs': 2}", ["optim.lr=0.001", "optim.epochs=2"]),
        ("optim={'lr': '1e-3', 'warmup': inf}", ["optim.lr=0.001", "optim.warmup=inf"]),
        ("optim={lr:1e-3}", ["optim.lr=0.001"]),
        ("data={'eval_batch': 4}", ["data.eval_batch_size=4"]),
        ("model={'trust_remote_code': True, 'system_prompt': None}",
         ["model.trust_remote_code=true", "model.system_prompt=null"]),
        ("model={'system_prompt': 'None'}", ['model.system_prompt="None"']),
        ("+method={'keep': -0.5}", ["+method.target_recall=-0.5"]),
        ("logger={}", []),
        # lists
        ("order.tasks=('a', 'b')", ['order.tasks=["a","b"]']),
        ("order.tasks=(a,)", ["order.tasks=[a]"]),
        ("adapter.targets=['q_proj', 'v_proj']", ["adapter.targets=['q_proj', 'v_proj']"]),
        ("adapter.targets=q_proj,v_proj", ["adapter.targets=[q_proj,v_proj]"]),
        ("logger.tags=[é,b]", ['logger.tags=["é",b]']),
        # numbers and switches
        ("optim.lr='1e-3'", ["optim.lr=0.001"]),
        ("method.keep='0.95'", ["method.target_recall=0.95"]),
        ("method.own_pool='True'", ["method.own_pool=true"]),
        ("seed=1.0", ["seed=1"]),
        ("seed=1.5", ["seed=1.5"]),
        ("train_size=1e3", ["train_size=1000"]),
        # texts that look like numbers, and texts that the grammar has no room for
        ("paths.runs=2024.10", ['paths.runs="2024.10"']),
        ("benchmark.reader.folder=1e3", ['benchmark.reader.folder="1e3"']),
        ("model.system_prompt=Be brief, please", ['model.system_prompt="Be brief, please"']),
        ("+benchmark.reader.datasets={a:{path:/data/rün=1,prompt:q}}",
         ['+benchmark.reader.datasets={a:{path:"/data/rün=1",prompt:q}}']),
        ("+benchmark.tasks.20Minuten.score=sari", ["+benchmark.tasks={20Minuten:{score:sari}}"]),
        # Hydra's own grammar is left alone
        ("optim.lr=range(1,4)", ["optim.lr=range(1,4)"]),
        ("paths.runs=${paths.data}/runs", ["paths.runs=${paths.data}/runs"]),
        ("~method.keep", ["~method.target_recall"]),
        ("model.system_prompt=", ["model.system_prompt="]),
    ],
)  # fmt: skip
def test_a_value_is_read_as_python_and_people_spell_it(word, read):
    assert translate([word], several=False) == read
    for override in read:
        PARSER.parse_override(override)


ODD = [
    "/data/run=1", "/données/é", "/my data/[1]", "/a{b}", "/a (copy)", "a#b", "a;b&c|d", "don't", 'say "so"', "100 %",
    "a<b>c", "it's a=b, [c] {d}", "'quoted", "line\nline", "$HOME/x", "C:\\data\\[x] y\\", "\\\\server\\share", "日本語",
    "a!b^c`d", "x:y=z", "f(x)", "choice(", "ends in \\", "\\[",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("key", ["benchmark.reader.folder", "model.system_prompt", "paths.runs"])
def test_a_text_of_any_characters_is_taken_as_it_stands(key, text):
    (override,) = translate([f"{key}={text}"], several=False)
    assert value(override) == (text if text != "\\[" else "[")  # an escape of Hydra's grammar stays one


def test_a_home_folder_is_found_where_a_shell_does_not_look(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert translate(["benchmark.reader.folder=~/data"], several=False) == ["benchmark.reader.folder=/home/me/data"]


def test_each_value_of_a_multirun_is_read():
    words = ["model.system_prompt=None,brief", "method=see,stl", "seed=0,1"]
    assert translate(words, several=True) == ["model.system_prompt=null,brief", "method=see,stl", "seed=0,1"]
    assert translate(["logger=None,csv"], several=True) == ["logger=none,csv"]


@pytest.mark.parametrize(
    ("word", "several", "told"),
    [
        ("ratio=0.1,0.2", False, "ratio=0.1,0.2 has several values: add -m for a job with each."),
        ("method=see,stl", False, "method=see,stl has several values: add -m for a job with each."),
        ("model.name=a,b", False, "model.name=a,b has several values: add -m"),
        ("benchmark.reader.folder=/a=1,/b", True, "benchmark.reader.folder=/a=1,/b can be read in two ways"),
        ("order.tasks=[qa,qg", False, "order.tasks=[qa,qg cannot be read: a bracket"),
        ("optim={'lr'", False, "optim={'lr' cannot be read"),
        ("method=None", False, "method must be one of agem, any_ssr, base,"),
        ("ratio", False, "'ratio' is no setting with a value: write NAME=VALUE"),
        ("see", False, "Did you mean method=see?"),
        ("=1", False, "'=1' is no setting with a value"),
        ("é=1", False, "there is no setting 'é'"),
    ],
)
def test_what_is_no_setting_or_can_be_read_in_two_ways_is_refused(word, several, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        translate([word], several=several)


@pytest.mark.parametrize("word", ["model.name=a,b", "benchmark.reader.folder=/a=1,/b é"])
def test_what_a_refusal_says_to_type_works(word):
    with pytest.raises(ConfigError) as refused:
        translate([word], several="=1" in word)
    key, _, text = word.partition("=")
    quoted = next(
        one for one in shlex.split(str(refused.value).replace(";", " ").rstrip(".")) if one.startswith(f'{key}="')
    )
    assert value(quoted.rstrip(",")) == text


def test_the_former_name_of_a_setting_and_of_its_value_is_the_setting():
    assert translate(
        [f"{old}=3" for new, old in SETTINGS.items() if "res" not in new and "loss" not in new], several=False
    ) == [f"{new}=3" for new in SETTINGS if "res" not in new and "loss" not in new]
    assert translate(["data.rehearsal=fixed", "method.draw=fresh"], several=False) == [
        "data.resample=once",
        "method.resample=per_task",
    ]
    assert translate(["method=see,mora"], several=True) == ["method=see,moram"]


@pytest.mark.parametrize("word", ["method={keep: 0.9}", "method={'keep': 0.9}"])
def test_the_former_name_of_a_setting_is_one_within_its_group_too(word):
    assert translate([word], several=False) == ["method.target_recall=0.9"]


@pytest.mark.parametrize("plus", ["+", "++"])
def test_the_former_name_of_a_setting_may_have_plus_signs_before_it(plus):
    assert translate([f"{plus}method.leeway=0.5"], several=False) == [f"{plus}method.margin=0.5"]


def test_a_method_s_own_setting_of_that_name_stays_its_own(monkeypatch):
    monkeypatch.setattr(overrides, "_in_files", lambda key: [0.1])
    assert translate(["method.leeway=0.5"], several=False) == ["method.leeway=0.5"]
