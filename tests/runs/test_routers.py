"""A run by another router takes over experts, has a key of its own only where it routes otherwise, and is calibrated with it."""

import pytest

from see_lightning import load_ensemble
from see_lightning.cli import study
from see_lightning.config.identity import numbers_config, run_key
from see_lightning.config.validation import validate
from see_lightning.engine.router import decides_everything, settle_router
from see_lightning.errors import ConfigError, Refusal
from see_lightning.tasks.datamodule import query_batch
from tests.nightly import all_but
from tests.runs import toy


def settled(base, *settings: str) -> str:
    """The run key by which ``launch`` finds these settings."""
    cfg = toy.compose(toy.data_in(base), base / "nowhere", *settings)
    settle_router(cfg, validate(cfg))
    return run_key(cfg)


@pytest.mark.parametrize(
    ("plain", "named"),
    [
        (("method=stl",), ("method=stl", "router=oracle")),
        (("method=see",), ("router=walk",)),
        (("method=seqft",), ("method=seqft", "router=none")),
        (("method=sema",), ("method=sema", "router=density")),
        (("method=moses", "method.task_id=key"), ("method=moses", "router=centroid")),
        (("method=moses", "method.task_id=entropy"), ("method=moses", "router=gradient")),
        (("method=exssnet", "method.task_id=key"), ("method=exssnet", "router=centroid")),
    ],
)
def test_a_router_that_is_the_methods_own_is_in_no_key(base, plain, named):
    assert settled(base, *named) == settled(base, *plain)


@pytest.mark.parametrize(
    "named", [("router=centroid",), ("router=density",), ("router=density", "router.reject_above=3")]
)
def test_another_router_has_a_key_of_its_own(base, named):
    keys = {settled(base, "method=stl", *some) for some in ((), ("router=entropy",), named)}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("router", "kept"),
    [("centroid.Centroid", {}), ("density.Density", {"descriptor": "gaussian", "reject_above": 0})],
)
def test_features_as_they_always_were_are_in_no_key(base, router, kept):
    name = router.partition(".")[0]
    cfg = toy.compose(toy.data_in(base), base / "nowhere", "method=stl", f"router={name}")
    assert numbers_config(cfg)["router"] == {"_target_": f"see_lightning.routing.{router}", **kept}
    others = ("router.layer=1", "router.wordings=[input_only]", "router.target_recall=0.9")
    assert (
        len({settled(base, "method=stl", f"router={name}", *some) for some in ((), *((one,) for one in others))}) == 4
    )


def test_own_settings_of_a_router_make_it_another_than_the_methods_own(base):
    assert settled(base, "method=sema", "router=density", "router.reject_above=3") != settled(base, "method=sema")


@pytest.mark.parametrize("router", all_but(["centroid"], ["oracle", "centroid", "density", "entropy", "gradient"]))
def test_experts_with_verdicts_are_routed_too_and_answer_behind_their_indicator(base, tmp_path, router):
    walked = toy.run(toy.compose(toy.data_in(base), tmp_path, "method=see"))
    routed = toy.run(toy.compose(toy.data_in(base), tmp_path, "method=see", f"router={router}"))
    assert (walked.fits, routed.fits) == (3, 0)
    *_, said = toy.read_answers(walked.directory).values()
    *_, answers = toy.read_answers(routed.directory).values()
    accepted = {(one["expert"], one["id"]): one["text"] for one in said if one["expert"] != "base"}
    same = [one for one in answers if (one["expert"], one["id"]) in accepted]
    assert same or router == "entropy"  # which here finds those surest that do not accept
    assert all(one["text"] == accepted[one["expert"], one["id"]] for one in same)
    assert all(one["verdicts"] == [] for one in answers)
    with pytest.raises(Refusal, match="without verdicts"):
        study.run_study(routed.directory, None, ["newest"])


@pytest.mark.parametrize("case", all_but(["stl arrow"], ["stl arrow", "see spectr"]))
def test_a_mixture_answers_and_results_name_the_expert_with_the_largest_weight(base, tmp_path, case):
    method, router = case.split()
    seen = toy.run(toy.compose(toy.data_in(base), tmp_path, f"method={method}", f"router={router}"))
    *_, answers = toy.read_answers(seen.directory).values()
    *_, responses = toy.read_answers(seen.directory, "remembered").values()
    assert {one["expert"] for one in answers} <= set(toy.TASKS)
    mixed = {one["id"]: one["text"] for one in responses if one["expert"] == f"({router})"}
    assert mixed == {one["id"]: one["text"] for one in answers}
    *_, trained = seen.methods
    prompts = toy.prompts(base)
    for one in answers[:3]:
        queries = query_batch([prompts[one["id"]]], trained.template, max_new_tokens=4)
        (alone,) = trained.generate_as(f"({router})", queries)
        assert alone.text == one["text"]


def test_a_router_that_needs_experts_on_the_prompt_is_refused_for_activated_ones(base):
    settled(base, "method=stl", "router=perplexity")
    with pytest.raises(ConfigError, match="router=perplexity .* activated experts do not act on the prompt"):
        settled(base, "method=stl", "router=perplexity", *toy.ACTIVATED)


@pytest.mark.parametrize("router", ["arrow", "spectr", "logo", "gradient"])
def test_a_router_that_reads_updates_of_layers_is_refused_for_prompts(base, router):
    with pytest.raises(
        ConfigError, match=f"method=progprompt cannot be routed by router={router}; it takes router=analytic"
    ):
        settled(base, "method=progprompt", f"router={router}")
    settled(base, "method=progprompt", "router=perplexity")


def test_descriptions_of_other_tasks_are_refused_before_training(base, tmp_path):
    other = ("method=stl", "router=description", "router.descriptions={sand: Grains.}")
    with pytest.raises(ConfigError, match="a text for 'sand', which is no task of this run. .*sky, sea, ice"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, *other))


def test_proposed_experts_alone_decide_and_continue_from_their_verdicts(base, tmp_path):
    walked = toy.run(toy.compose(toy.data_in(base), tmp_path, "method=see"))
    said = [one for block in toy.read_answers(walked.directory, "remembered").values() for one in block]
    verdicts = {(one["expert"], one["id"]): one["verdict"] for one in said if one["verdict"]}
    alone = toy.run(toy.compose(toy.data_in(base), tmp_path / "alone", "method=see", "router=propose"))
    beside = toy.run(toy.compose(toy.data_in(base), tmp_path, "method=see", "router=propose"))
    assert (walked.fits, alone.fits, beside.fits) == (3, 3, 0)
    assert toy.read_answers(alone.directory) == toy.read_answers(beside.directory)
    *_, answers = toy.read_answers(alone.directory).values()
    for one in answers:
        (asked,) = one["asked"]
        assert one["verdicts"] == [verdicts[asked, one["id"]]]
        assert one["expert"] == (asked if one["verdicts"] == ["pos"] else "base")
    answered = [block for stage in toy.read_answers(alone.directory).values() for block in stage]
    proposed = {(expert, one["id"]) for one in answered for expert in one["asked"]}
    results = toy.read_results(alone.directory)
    assert results["counts"]["decisions"] == len(proposed) < len(verdicts)
    by_base = {one["id"] for one in answered if one["expert"] == "base"}
    assert results["counts"]["prefills"] == len(answered) + len(proposed) + len(by_base)
    assert results["routing"]["asked"] == 1
    assert results["router"] == "propose"
    with pytest.raises(Refusal, match="was routed by propose, which asks few experts"):
        study.run_study(alone.directory, None, ["newest"])


def test_another_router_proposes_where_it_is_named_and_has_a_key_of_its_own(base):
    plain = ("method=see", "router=propose")
    others = [("router@router.by=density",), ("router.by.layer=1",), ("router.experts=2",)]
    assert len({settled(base, *plain, *some) for some in ((), *others)}) == 4
    with pytest.raises(ConfigError, match="takes no 'descriptr'"):
        settled(base, *plain, "router@router.by=density", "+router.by.descriptr=gaussian")
    with pytest.raises(ConfigError, match="method=stl cannot be routed by router=propose"):
        settled(base, "method=stl", "router=propose")


@pytest.mark.parametrize(
    ("few", "told"),
    [
        (("router=density", "train_size=3"), r"router=density .* needs 4 different ones .* sky has 3"),
        (("router=density", "router.target_recall=0.9"), r"router=density .* 20% of them are held out .* sky has 4"),
    ],
    ids=["density", "threshold"],
)
def test_a_task_with_too_few_prompts_for_the_router_is_refused_before_training(base, tmp_path, few, told):
    with pytest.raises(ConfigError, match=told):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "method=stl", *few))


@pytest.mark.parametrize(
    ("router", "everything"), [("centroid", True), ("density", True), ("knn", False), ("analytic", False)]
)
def test_newer_routers_of_features_do_not_ask_experts_for_verdicts(base, router, everything):
    cfg = toy.compose(toy.data_in(base), base / "nowhere", "method=see", f"router={router}")
    assert decides_everything(cfg) is everything


def test_held_out_rows_set_thresholds_that_a_loaded_run_has_too(base, tmp_path):
    settings = ("method=stl", "order.tasks=[sea,ice]", "router=centroid", "router.target_recall=0.5")
    routed = toy.run(toy.compose(toy.data_in(base), tmp_path, *settings))
    router, loaded = routed.methods[0].router, load_ensemble(routed.directory, max_new_tokens=4).method.router
    assert {name: len(kept["held_out"]) for name, kept in loaded.kept.items()} == {"sea": 1, "ice": 2}
    assert loaded.thresholds().tolist() == router.thresholds().tolist()
    assert min(router.thresholds().tolist()) > -1
    answers = [one for some in toy.read_answers(routed.directory).values() for one in some]
    assert {one["expert"] for one in answers} >= {"ice", "base"}
