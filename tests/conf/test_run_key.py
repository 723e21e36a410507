"""The run key: one experiment, one key, however its command was spelt."""

import re

import pytest
from omegaconf import OmegaConf

from see_lightning.config import identity
from see_lightning.config.identity import method_name, numbers_config, run_key
from see_lightning.config.search_path import CONF

JSONL = ("order=jsonl", "order.tasks=[a]")


def test_a_key_is_eight_hex_digits_and_the_same_every_time(composed):
    assert re.fullmatch(r"[0-9a-f]{8}", run_key(composed()))
    assert run_key(composed()) == run_key(composed())


@pytest.mark.parametrize(
    "spelling",
    [
        ["method=see"],
        ["method=see", "order=pocket_5", "model=smollm2_135m"],
        ["ratio=0.1"],
        ["method.ratio=0.1"],
        ["order.tasks=[news,sentiment,simplify,french,words]"],
        ["seed=3"],
        ["trainer=gpu"],
        ["trainer.devices=2"],
        ["logger=csv"],
        ["logger=tensorboard", "logger.timeout=3"],
        ["logger=mlflow", "logger.tracking_uri=http://localhost:5000"],
        ["paths.runs=/elsewhere", "paths.cache=/there", "paths.data=/mine"],
        ["benchmark.licence=other", "benchmark.citation=other", "benchmark.tasks.news.citation=other"],
        ["train_size=100"],
        ["protocol=trace"],
        ["ood=natural_instructions", "ood.size=7"],
        ["variants=[input_only,paraphrased]", "benchmark.paraphrases.news=mine"],
        [
            "method.general_source=mine.jsonl",
            "method.target_recall=0.5",
            "method.ood_examples=9",
            "method.margin=1",
            "method.probe=9",
        ],  # of what is off
    ],
    ids=" ".join,
)
def test_the_same_experiment_spelt_differently_has_the_same_key(composed, spelling):
    assert run_key(composed(*spelling)) == run_key(composed())


@pytest.mark.parametrize(
    "change",
    [
        ["ratio=0.2"], ["method.general_negatives=1"], ["method.other_instructions=1"], ["method.calibrate_on=1"], ["method.max_negatives=9"],
        ["method.warm_start=loss"], ["method.warm_start=knn"],
        ["method.ratio=0.2"], ["method=replay"], ["method=seqft"], ["optim.lr=0.123"], ["optim=ssr"],
        ["train_size=200"], ["test_size=100"],
        ["valid_size=5"], ["valid_size=5", "optim.early_stopping=1"],
        ["order.tasks=[sentiment,news,simplify,french,words]"],
        ["order.tasks=[news,sentiment]"], ["model=tiny"], ["model.dtype=fp32"], ["model.max_length=512"],
        ["adapter.rank=4"], ["adapter.targets=[q_proj]"], ["data.resample=once"], ["indicators.pos=mine"],
        ["benchmark.tasks.news.score=exact_match"], ["+benchmark.tasks.words.max_new_tokens=25"], ["benchmark.version='0'"],
        ["adapter=activated_lora"], ["adapter.activated=true"], ["adapter.full=true"], ["adapter=full"],
        ["+trainer.max_steps=10"], ["+trainer.precision=16-mixed"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_whatever_can_change_a_number_changes_the_key(composed, change):
    assert run_key(composed(*change)) != run_key(composed())


def test_answers_that_are_trained_on_are_in_the_key_unless_they_are_the_last(composed):
    last, of_all = (
        composed(*JSONL, "benchmark.reader.folder=/a", f"benchmark.reader.train_on={one}") for one in ("last", "all")
    )
    assert run_key(last) == run_key(composed(*JSONL, "benchmark.reader.folder=/a")) != run_key(of_all)
    del last.benchmark.reader.train_on  # as a run of an earlier version has it
    assert run_key(last) == run_key(composed(*JSONL, "benchmark.reader.folder=/a"))


def test_a_number_is_the_same_in_every_notation(composed):
    keys = {run_key(composed(f"optim.lr={lr}")) for lr in ("0.0005", "5e-4", "5.0E-04")}
    assert keys == {run_key(composed("optim.lr=0.0005", "optim.weight_decay=0"))}


def test_the_place_of_the_data_does_not_enter_the_key(composed, monkeypatch):
    keys = set()
    for place in ("/here", "/there"):
        monkeypatch.setenv("SEE_DATA", place)
        cfg = composed("order=superni_5")
        assert cfg.benchmark.reader.folder == f"{place}/ssr_ni_split"
        keys.add(run_key(cfg))
        assert cfg.benchmark.reader.folder == f"{place}/ssr_ni_split", "making the key changed the configuration"
    assert len(keys) == 1


def test_the_folder_of_ones_own_tasks_counts_where_nothing_is_known_of_its_content(composed):
    keys = {run_key(composed(*JSONL, f"benchmark.reader.folder={folder}")) for folder in ("/one", "/two")}
    assert len(keys) == 2


@pytest.mark.parametrize("method", ["seqft", "mtl", "stl", "base"])
def test_the_ratio_does_not_enter_the_key_of_a_method_that_rehearses_nothing(composed, method):
    assert run_key(composed(f"method={method}", "ratio=0.5")) == run_key(composed(f"method={method}"))


@pytest.mark.parametrize("method", ["seqft", "mtl", "stl", "base"])
def test_how_is_rehearsed_does_not_enter_the_key_of_a_method_that_rehearses_nothing(composed, method):
    assert run_key(composed(f"method={method}", "data.resample=once")) == run_key(composed(f"method={method}"))


def test_a_whole_number_is_the_same_ratio_with_and_without_its_point(composed):
    keys = {run_key(composed(spelling)) for spelling in ("ratio=1", "ratio=1.0", "method.ratio=1", "method.ratio=1.0")}
    assert len(keys) == 1


def test_a_method_s_whole_numbers_are_the_same_with_and_without_their_points(composed):
    for method, spellings in (
        ("sema", ("threshold=2", "threshold=2.0", "reject_above=0.0")),
        ("see", ("target_recall=1 method.calibrate_on=9", "target_recall=1.0 method.calibrate_on=9")),
    ):
        keys = {run_key(composed(f"method={method}", *f"method.{one}".split())) for one in spellings}
        assert len(keys) == 1
    assert run_key(composed("method=sema", "method.threshold=2.5")) != run_key(composed("method=sema"))


def test_tasks_that_are_not_in_the_order_do_not_enter_the_key(composed):
    two = ["order.tasks=[news,words]"]
    assert run_key(composed(*two, "+benchmark.tasks.french.max_new_tokens=7")) == run_key(composed(*two))
    assert set(numbers_config(composed(*two))["benchmark"]["tasks"]) == {"news", "words"}


def test_a_method_is_named_by_its_module(composed):
    assert [method_name(composed(f"method={name}")) for name in ("see", "seqft", "base")] == ["see", "seqft", "base"]


def test_paraphrases_leave_the_key_of_runs_from_before_there_were_any(composed):
    earlier = composed()
    OmegaConf.set_struct(earlier, False)
    del earlier.benchmark.paraphrases
    del earlier.variants
    assert run_key(earlier) == run_key(composed()) == run_key(composed("variants=[paraphrased]"))


def test_the_rule_of_the_longest_answer_leaves_earlier_keys_and_a_protocol_is_its_number(composed):
    order = "order=superni_5"
    earlier = composed(order)
    OmegaConf.set_struct(earlier, False)
    del earlier.benchmark.max_new_tokens
    del earlier.benchmark.protocol_max_new_tokens
    here = run_key(earlier)
    assert run_key(composed(order)) == run_key(composed(order, "benchmark.max_new_tokens=training")) == here
    assert run_key(composed(order, "benchmark.protocol_max_new_tokens=99")) == here
    keys = [run_key(composed(order, f"benchmark.max_new_tokens={rule}")) for rule in ("protocol", 512, 50)]
    assert keys[0] == keys[1]
    assert len({here, *keys}) == 3


def test_the_source_of_rewordings_and_the_version_of_the_rules_enter_the_key_where_definitions_are_varied(
    composed, monkeypatch
):
    none, reworded = "method.instruction_variants=[as_is,none]", "method.instruction_variants=[as_is,reworded]"
    plain = run_key(composed())
    keys = [
        run_key(composed(kinds, f"method.rewordings={of}"))
        for kinds in (none, reworded)
        for of in ("built_in", "model")
    ]
    assert keys[0] == keys[1]  # nothing is reworded
    assert len({plain, *keys}) == 4
    monkeypatch.setattr(identity, "REWORDING_VERSION", 99)
    assert run_key(composed()) == plain
    assert run_key(composed(reworded)) not in keys


def test_settings_that_came_later_and_are_off_leave_the_keys_of_earlier_runs(composed):
    earlier = composed()
    OmegaConf.set_struct(earlier, False)
    for name in (
        "general_negatives",
        "general_source",
        "other_instructions",
        "calibrate_on",
        "target_recall",
        "ood_examples",
        "margin",
        "warm_start",
        "probe",
        "instruction_variants",
        "rewordings",
        "wordings_per_example",
    ):
        del earlier.method[name]
    del earlier.valid_size, earlier.optim.early_stopping
    del earlier.method.min_negatives
    del earlier.data.min_negatives
    del earlier.method.max_negatives
    del earlier.data.max_negatives
    assert run_key(earlier) == run_key(composed("method.min_negatives=0")) == run_key(composed("data.min_negatives=0"))


@pytest.mark.parametrize(
    "settings",
    [
        ["train_size=120"],
        ["train_size=12", "ratio=1"],
        ["train_size=null", "ratio=0"],
        ["method=replay"],
        ["ratio=0.12"],
    ],
    ids=" ".join,
)
def test_a_least_number_of_refusals_that_the_ratio_gives_anyway_leaves_the_key(composed, settings):
    assert run_key(composed(*settings)) == run_key(composed(*settings, "data.min_negatives=0"))


@pytest.mark.parametrize(
    "settings",
    [[], ["train_size=114"], ["train_size=null"], ["train_size=120", "method.calibrate_on=1"], ["train_size=120", "data.on_bad_row=skip"]],
    ids=" ".join,
)  # fmt: skip
def test_a_least_number_of_refusals_has_a_key_where_it_may_make_a_difference(composed, settings):
    assert run_key(composed(*settings)) != run_key(composed(*settings, "method.min_negatives=0"))


@pytest.mark.parametrize(
    "experiment", ["superni_5_small", "superni_10_small method=see", "trace_3_small method=see", "ssr_superni_10"]
)
def test_published_experiments_go_by_the_ratio_alone(composed, experiment):
    cfg = composed(*f"experiment={experiment}".split())
    assert cfg.method.min_negatives == 0


@pytest.mark.parametrize(
    "key",
    [
        ("superni_5", "5ed98b1d", "experiment=superni_5_small"),
        ("superni_10", "59c631e1", "experiment=superni_10_small"),
        ("trace_3", "b4fec522", "experiment=trace_3_small method=see"),
    ],
)
def test_keys_of_published_runs_stay(composed, key):
    order, digits, command = key
    assert (CONF.parent / "results" / order / "see" / digits).is_dir()
    assert run_key(composed(*command.split())) == digits


@pytest.mark.parametrize(
    "used", ["method.general_negatives=1", "method.other_instructions=1", "method.calibrate_on=1 method.ood_examples=1"]
)
def test_where_general_instructions_come_from_and_which_they_are_enter_the_key_where_any_are_used(
    composed, monkeypatch, used
):
    before = run_key(composed())
    keys = {run_key(composed(*used.split())), run_key(composed(*used.split(), "method.general_source=mine.jsonl"))}
    monkeypatch.setattr(identity, "GENERAL_VERSION", 1)
    keys.add(run_key(composed(*used.split())))
    assert len(keys) == 3
    assert run_key(composed()) == before


def test_a_router_that_reads_general_instructions_has_their_source_in_the_key(composed, monkeypatch):
    before = run_key(composed("router=joint"))
    keys = {before, run_key(composed("router=joint", "method.general_source=mine.jsonl"))}
    assert run_key(composed("router=walk", "method.general_source=mine.jsonl")) == run_key(composed("router=walk"))
    monkeypatch.setattr(identity, "GENERAL_VERSION", 3)
    keys.add(run_key(composed("router=joint")))
    assert len(keys) == 3


def test_what_a_threshold_looks_at_has_a_key_where_there_is_a_threshold(composed):
    on = "method.calibrate_on=3"
    keys = [
        run_key(composed(on, *more))
        for more in ((), ("method.ood_examples=2",), ("method.ood_examples=2", "method.margin=1"))
    ]
    assert len(set(keys)) == 3
    assert run_key(composed(on, "method.margin=1")) == keys[0]
    train = "method.calibrate_on=train"
    assert run_key(composed(train, "method.margin=1")) != run_key(composed(train)), "refused rows are looked at"


@pytest.mark.parametrize("setting", ["general_source", "min_negatives", "probe", "margin", "target_recall"])
def test_a_setting_that_another_method_has_by_the_same_name_enters_its_key(composed, setting):
    """A method without the switch that turns the setting off in See."""
    keys = {run_key(composed("method=seqft", f"+method.{setting}={value}")) for value in (1, 2)}
    assert len(keys) == 2
