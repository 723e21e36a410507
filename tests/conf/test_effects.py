"""A setting that was typed and does not act is refused; what the project itself documents, runs and sweeps is not."""

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from see_lightning.config.effects import EFFECTS, check_effects
from see_lightning.config.overrides import translate
from see_lightning.config.validation import validate
from see_lightning.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINE = ["order=jsonl", "benchmark.reader.folder=/mine", "order.tasks=[a,b]"]

# overrides that have no effect, the setting that is named, and what makes it act
IDLE = [
    (["model.name=Qwen/Qwen2.5-0.5B"], "model.name", ["model=hub"]),
    (["model=tiny", "model.name=/my/model"], "model.name", ["model=hub"]),
    (["model.prompt=plain", "model.system_prompt=Be brief"], "model.system_prompt", ["model.prompt=chat"]),
    (["method=base", "optim.lr=1"], "optim.lr", ["method=seqft"]),
    (["method=base", "adapter.rank=4"], "adapter.rank", ["method=seqft"]),
    (["method=icl_replay", "optim.epochs=4"], "optim.epochs", ["method=seqft"]),
    (["method=seqft", "adapter=full", "adapter.rank=4"], "adapter.rank", ["adapter=lora"]),
    (["method=mtl", "adapter=full", "adapter.alpha=4"], "adapter.alpha", ["adapter=lora"]),
    (["method=seqft", "adapter=full", "adapter.dropout=0.2"], "adapter.dropout", ["adapter=lora"]),
    (["method=osft", "adapter.rank=4"], "adapter.rank", ["method=seqft"]),
    (["method=base", "valid_size=4"], "valid_size", ["method=seqft"]),
    (["valid_size=4", "optim.epochs=1", "optim.early_stopping=1"], "optim.early_stopping", ["optim.epochs=3"]),
    (["method=seqft", "adapter=full", "adapter.quantization=int8"], "adapter.quantization", ["adapter=lora"]),
    (["adapter.cache_gb=8"], "adapter.cache_gb", ["adapter=activated_lora"]),
    (["method=stl", "data.resample=once"], "data.resample", ["method=replay"]),
    (["ratio=0", "data.resample=once"], "data.resample", ["ratio=0.5"]),
    (["method=gem", "ratio=0", "method.reference_batch=2"], "method.reference_batch", ["ratio=0.5"]),
    (["method=gem", "ratio=0", "method.memory_strength=1"], "method.memory_strength", ["ratio=0.5"]),
    (["method=agem", "data.resample=once"], "data.resample", ["method=replay"]),
    (["method=inscl", "ratio=0", "method.max_instructions=5"], "method.max_instructions", ["ratio=0.5"]),
    (["method=kmeans_replay", "ratio=0", "method.clusters=5"], "method.clusters", ["ratio=0.5"]),
    (["method=der", "ratio=0", "method.logit_weight=1"], "method.logit_weight", ["ratio=0.5"]),
    (["method=der", "ratio=0", "method.answer_weight=1"], "method.answer_weight", ["ratio=0.5"]),
    (["method=der", "ratio=0", "method.replay_batch=4"], "method.replay_batch", ["ratio=0.5"]),
    (["method=der", "method.logit_weight=0", "method.logits_per_token=9"], "method.logits_per_token", ["method.logit_weight=1"]),
    (["method=der", "method.logit_weight=0", "method.distance=kl"], "method.distance", ["method.logit_weight=1"]),
    (["method=ssr", "ratio=0", "method.demonstrations=9"], "method.demonstrations", ["ratio=0.5"]),
    (["method=ssr", "ratio=0", "method.texts_per_row=2"], "method.texts_per_row", ["ratio=0.5"]),
    (["method=ssr", "ratio=0", "method.max_new_tokens=9"], "method.max_new_tokens", ["ratio=0.5"]),
    (["method=seqft", "indicators.pos=yes"], "indicators.pos", ["method=see"]),
    (["method.general_source=/mine.jsonl"], "method.general_source", ["method.general_negatives=4"]),
    (["method.general_source=/mine.jsonl"], "method.general_source", ["router=joint"]),
    (["method.general_source=/mine.jsonl"], "method.general_source", ["method.calibrate_on=3", "method.ood_examples=4"]),
    (["method.wordings_per_example=2"], "method.wordings_per_example", ["method.instruction_variants=[as_is,none]"]),
    (["router=argmax", "method.second_chance=on"], "method.second_chance", ["router=propose"]),
    (["method.reuse_share=0.8"], "method.reuse_share", ["method.reuse=accept"]),
    (["method.reuse_gain=0.8"], "method.reuse_gain", ["method.reuse=accept"]),
    (["method.rewordings=model"], "method.rewordings", ["method.instruction_variants=[as_is,reworded]"]),
    (["method=replay", "data.min_negatives=5"], "data.min_negatives", ["method=see"]),
    (["method=replay", "data.calibrate_on=train"], "data.calibrate_on", ["method=see"]),
    (["router=centroid", "method.second_chance=on"], "method.second_chance", ["router=propose"]),
    (["method.calibrate_on=10", "method.margin=0.4"], "method.margin", ["method.calibrate_on=train"]),
    (["ratio=0", "method.min_negatives=5"], "method.min_negatives", ["ratio=0.1"]),
    (["method=replay", "data.max_negatives=5"], "data.max_negatives", ["method=see"]),
    (["method.target_recall=0.9"], "method.target_recall", ["method.calibrate_on=10"]),
    (["method.ood_examples=60"], "method.ood_examples", ["method.calibrate_on=10"]),
    (["method.calibrate_on=10", "method.margin=0.5"], "method.margin", ["method.ood_examples=60"]),
    (["method.probe=8"], "method.probe", ["method.warm_start=loss"]),
    (["method=exssnet", "method.probe=8"], "method.probe", ["method.warm_start=knn"]),
    (["method=exssnet", "method.score_share=0", "method.score_lr=1"], "method.score_lr", ["method.score_share=0.5"]),
    (["method=lwf", "method.strength=0", "method.temperature=3"], "method.temperature", ["method.strength=0.5"]),
    (["method=lamol", "method.gamma=0", "method.writing=0.5"], "method.writing", ["method.gamma=0.1"]),
    (["method=lamol", "method.gamma=0", "method.top_k=5"], "method.top_k", ["method.gamma=0.1"]),
    (["method=conpet", "ratio=0", "method.old_per_new=2"], "method.old_per_new", ["ratio=0.1"]),
    (["method=ilora", "ratio=0", "method.consistency=2"], "method.consistency", ["ratio=0.1"]),
    (["method=ilora", "ratio=0", "data.resample=once"], "data.resample", ["ratio=0.1"]),
    (["method=sdft", "method.teacher=base", "method.follow=0.1"], "method.follow", ["method.teacher=average"]),
    (["method=any_ssr", "router=knn", "method.features=64"], "method.features", None),
    (["method=any_ssr", "router=knn", "method.ridge=1"], "method.ridge", None),
    (["method=any_ssr", "router=knn", "method.layer=2"], "method.layer", None),
    (["method=any_ssr", "router=knn", "method.wordings=[as_is]"], "method.wordings", None),
    (["method=moelora", "method.experts=1", "method.top_k=1", "method.balance=1"], "method.balance", ["method.experts=2"]),
    (["method=l2p", "method.top_k=10", "method.diversify=true"], "method.diversify", ["method.top_k=3"]),
    (["method=sapt", "ratio=0", "method.strength=2"], "method.strength", ["ratio=0.1"]),
    (["order.visits=3"], "order.visits", ["order.stream=recurring"]),
    (["order.stream=recurring", "order.share=0.2"], "order.share", ["order.stream=blurry"]),
    (["ood.size=3"], "ood.size", ["ood=trace_500"]),
    (["experiment=superni_5_ood", "ood=none", "ood.size=3"], "ood.size", ["ood=trace_500"]),
    (["ood.variants=[input_only]"], "ood.variants", ["ood=trace_500"]),
    (["ood=trace_500", "ood.dir=/mine"], "ood.dir", ["ood=folder"]),
    (["method=mtl", "ood=trace_500", "ood.every=true"], "ood.every", ["method=see"]),
    (["evaluate.url=http://host:1/v1"], "evaluate.url", ["evaluate.engine=vllm"]),
    (["evaluate.check=3"], "evaluate.check", ["evaluate.engine=vllm"]),
    (["evaluate.tolerance=0.2"], "evaluate.tolerance", ["evaluate.engine=vllm"]),
    (["evaluate.text_tolerance=0.2"], "evaluate.text_tolerance", ["evaluate.engine=vllm"]),
    (["benchmark.paraphrases.news=Classify"], "benchmark.paraphrases.news", ["variants=[paraphrased]"]),
    ([*MINE, "+benchmark.tasks={a:{score:rouge_l},b:{score:rouge_l}}", "benchmark.default.score=accuracy"],
     "benchmark.default.score", ["order.tasks=[a,c]"]),
    ([*MINE, "+benchmark.tasks={a:{max_new_tokens:4},b:{max_new_tokens:4}}", "benchmark.default.max_new_tokens=9"],
     "benchmark.default.max_new_tokens", ["order.tasks=[a,c]"]),
    (["logger=wandb", "logger.mode=disabled", "logger.name=mine"], "logger.name", ["logger.mode=offline"]),
    (["+trainer.limit_val_batches=2"], "trainer.limit_val_batches", None),
    (["ratio=0.9", "method.ratio=0.1"], "ratio", None),
    (["data.min_negatives=3", "method.min_negatives=5"], "data.min_negatives", None),
    (["data.max_negatives=3", "method.max_negatives=5"], "data.max_negatives", None),
    (["data.calibrate_on=9", "method.calibrate_on=train"], "data.calibrate_on", None),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "name", "cure"), IDLE, ids=[" ".join(case[0]) for case in IDLE])
def test_a_typed_setting_without_effect_is_refused_until_something_makes_it_act(composed, typed, name, cure):
    cfg = composed(*typed)
    validate(cfg)
    with pytest.raises(ConfigError, match=f"^{re.escape(name)} has no effect here: "):
        check_effects(cfg, typed, several=False)
    if cure:
        acting = [*typed, *cure]
        assert check_effects(composed(*acting), acting, several=False) == (acting, [])


def test_every_rule_has_a_case():
    hard = {pattern for effect in EFFECTS if not effect.soft for pattern in effect.settings}
    tried = {pattern for pattern in hard for _, name, _ in IDLE if fnmatch(name, pattern)}
    assert hard - tried <= {"logger.project", "logger.entity", "logger.group", "logger.tags", "trainer.*test*"}


def test_the_named_model_is_told_with_what_loads_it(composed):
    typed = ["model.name=Qwen/Qwen2.5-0.5B"]
    with pytest.raises(ConfigError, match=r"write model=hub model\.name=Qwen/Qwen2\.5-0\.5B\.$"):
        check_effects(composed(*typed), typed, several=False)


@pytest.mark.parametrize(
    "typed",
    [
        ["method=mtl", "ratio=0.01"],
        ["method=base", "adapter=lora"],
        ["paths.data=/d"],
        ["router=centroid", "method.calibrate_on=9", "method.target_recall=0.5"],
        ["router=density", "method.calibrate_on=train", "method.margin=0.5"],
        ["method=sema", "router=centroid", "method.reject_above=2"],
        ["method=progprompt", "optim.lr=1e-3"],
        ["method=l2p", "optim.lr=1e-3"],
    ],
)
def test_what_commands_for_all_methods_set_is_only_told(composed, typed):
    own, (note,) = check_effects(composed(*typed), typed, several=False)
    assert own == typed
    assert note.startswith(f"{typed[-1].split('=')[0]} has no effect here: ")


@pytest.mark.parametrize(
    "typed",
    [
        ["router=walk", "method.calibrate_on=9", "method.target_recall=0.5"],
        ["router=propose", "method.calibrate_on=9", "method.target_recall=0.5", "method.second_chance=on"],
        ["method=sema", "router=density", "router.reject_above=2", "method.reject_above=2"],
        ["method=lwf", "method.strength=0.5", "method.temperature=4"],
        ["method=mas", "method.strength=2"],
        ["method=lamol", "method.gamma=0.1", "method.writing=1", "method.top_k=5", "method.max_new_tokens=64"],
        ["method=conpet", "method.ratio=0.2", "method.old_per_new=2"],
        ["method=l2", "method.strength=2"],
        ["method=ilora", "method.ratio=0.1", "method.resample=once", "method.decay=0.5", "method.consistency=2"],
        ["method=sdft", "method.teacher=base", "method.direction=forward", "method.max_new_tokens=9"],
        ["method=sdft", "method.follow=1", "method.demonstration='Say {answer} to {prompt}'"],
        ["method=moram", "method.temperature=0.1"],
        ["method=icl_replay", "ratio=0.5", "method.examples=8"],
        ["router=centroid", "method.calibrate_on=9", "method.target_recall=0.5", "method.reuse=accept"],
    ],
)
def test_settings_that_the_chosen_method_or_router_uses_act(composed, typed):
    assert check_effects(composed(*typed), typed, several=False) == (typed, [])


@pytest.mark.parametrize(
    "typed",
    [
        ["method=gem", "method.ratio=0.2", "method.reference_batch=2", "method.memory_strength=1"],
        ["method=inflora", "method.threshold=0.9", "method.threshold_step=0.01", "method.rows=10"],
        ["method=nlora", "method.sparsity=1e-4"],
        ["method=migu", "method.frozen=0.5"],
        ["method=seqlora_merge", "method.exponent=1"],
        ["method=coso", "adapter=full", "method.rank=8", "method.sketch=9", "method.every=1", "method.decay=0.5"],
        ["method=coso", "method.threshold=0.9"],
        ["method=osft", "adapter=full", "method.min_retained=0.2", "method.target_retained=0.5", "method.rows=10"],
        ["method=gpm", "method.threshold=0.9", "method.threshold_step=0.01", "method.rows=10"],
    ],
)
def test_settings_of_projecting_methods_act(composed, typed):
    assert check_effects(composed(*typed), typed, several=False) == (typed, [])


def test_in_one_of_several_jobs_it_is_told_and_is_no_part_of_the_job_s_own_command(composed):
    typed = ["method=see", "model.prompt=plain", "model.system_prompt=Be brief", "seed=1"]
    own, notes = check_effects(composed(*typed), typed, several=True)
    assert own == ["method=see", "model.prompt=plain", "seed=1"]
    assert len(notes) == 1


@pytest.mark.parametrize(
    "typed",
    [["method.target_recall=0"], ["method.ood_examples=0"], ["model.prompt=plain", "model.system_prompt=null"], ["~method.target_recall"],
     ["hydra.verbose=true"], ["experiment=superni_5_small", "method=stl"], ["model.source=hub", "model.name=a/b"]],
)  # fmt: skip
def test_what_switches_off_and_what_files_set_is_not_asked(composed, typed):
    assert check_effects(composed(*typed), typed, several=False) == (typed, [])


def commands() -> list[str]:
    """What the README, the documents, the files of conf and published results say to type."""
    texts = [
        path.read_text(encoding="utf-8") for name in ("*.md", "docs/*.md", "conf/**/*.yaml") for path in ROOT.glob(name)
    ]
    found = {line for text in texts for line in re.findall(r"python run\.py ((?:[\w.+]+=[^\s`]+ ?|-m ?)+)", text)}
    for path in ROOT.glob("results/**/results.json"):
        found.add(json.loads(path.read_text(encoding="utf-8"))["command"].removeprefix("python run.py "))
    return sorted(line.strip(" `|") for line in found)


@pytest.mark.parametrize("command", commands())
def test_no_documented_command_types_what_has_no_effect(composed, command):
    words = shlex.split(command)
    several = "-m" in words
    overrides = translate([word for word in words if word != "-m"], several=several)
    single = [
        override.split(",")[0] if several else override for override in overrides if not override.startswith("hydra")
    ]
    if any(re.search("=[A-Z]+$|OWNER|\\.\\.\\.", word) for word in single):
        return
    if "order=hub" in single:
        single.append("benchmark.reader.datasets={a:{path:p,prompt:q,answer:r}}")
    single = [override for override in single if override != "benchmark=mine"]  # a file of the reader's own
    cfg = composed(*single)
    own, notes = check_effects(cfg, single, several=False)
    assert own == single
    assert not notes or several


@pytest.mark.parametrize("path", sorted(ROOT.glob("sweeps/*.yaml")), ids=lambda path: path.stem)
def test_no_sweep_sets_what_has_no_effect_in_any_of_its_jobs(composed, path):
    parameters = yaml.safe_load(path.read_text())["parameters"]
    methods = parameters.get("method", {}).get("values", [parameters.get("method", {}).get("value", "see")])
    typed = [f"{name}={given.get('value', given.get('values', [None])[-1])}" for name, given in parameters.items()]
    for override in typed:
        ran = [[one for one in typed if not one.startswith("method=")] + [f"method={method}"] for method in methods]
        assert any(not check_effects(composed(*own), [override], several=False)[1] for own in ran)
