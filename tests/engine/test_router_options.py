"""The routers that a run's experts can be routed by, from settings alone: which is its own, and which cannot route them."""

import pytest

from see_lightning.config.trust import Trust
from see_lightning.engine.router_options import router_options
from tests.runs import toy


def options_of(tmp_path, *settings, words=(), trust=()):
    cfg = toy.compose(tmp_path / "data", tmp_path / "runs", *settings)
    return {option.name: option for option in router_options(cfg, words, Trust(tuple(trust)))}


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        (("method=see",), "walk"),
        (("method=stl",), "oracle"),
        (("method=sema",), "density"),
        (("method=sema", "method.reject_above=3"), "density reject_above=3"),
        (("method=stl", "router=density", "router.reject_above=3"), "density reject_above=3"),
        (("method=stl", "router=centroid"), "centroid"),
        (("method=moses", "method.task_id=key"), "centroid"),
        (
            ("method=see", "router=joint", "router.target_recall=0.9", "router.by.layer=1"),
            "joint by.layer=1 target_recall=0.9",
        ),
        (("method=see", "router=joint"), "joint"),
        (("method=stl", "router=knn", "router.k=3", "router.wordings=[input_only]"), "knn k=3 'wordings=[input_only]'"),
    ],
)
def test_the_run_s_own_router_is_there_once(tmp_path, settings, own):
    options = options_of(tmp_path, *settings)
    assert [name for name, option in options.items() if option.settings is None] == [own]
    assert len(options) == len(set(options))
    assert {"walk", "oracle", "centroid", "density"} <= set(options) | {own}


def test_settings_follow_the_name_with_or_without_their_group(tmp_path):
    words = ["density reject_above=3", "density router.reject_above=3", "propose router@router.by=knn by.layer=1"]
    first, second, third = options_of(tmp_path, "method=see", words=words).values()
    assert first.settings == second.settings
    assert first.settings["reject_above"] == 3
    assert third.settings["by"]["_target_"].endswith("knn.Knn")
    assert third.settings["by"]["layer"] == 1


def test_a_router_keeps_what_the_run_s_own_keeps_if_only_its_shares_differ(tmp_path):
    words = ["joint bare_recall=0.9", "joint target_recall=0.5 confidence=0.5", "joint by.layer=1", "centroid"]
    options = options_of(tmp_path, "method=see", "router=joint", words=words)
    assert [option.has_state for option in options.values()] == [True, True, False, False]
    assert not options_of(tmp_path, "method=see", words=words[:1])[words[0]].has_state


def test_experts_that_do_not_act_on_the_whole_prompt_cannot_be_routed_by_it(tmp_path):
    options = options_of(tmp_path, "method=stl", *toy.ACTIVATED)
    assert options["perplexity"].cannot == "needs experts that act on the whole prompt"
    assert options_of(tmp_path, "method=stl")["perplexity"].cannot == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("layer: 1\n", "its file names no class; write _target_: MODULE.CLASS into conf/router/mine.yaml"),
        ("_target_: collections.Counter\n", "add --trust collections.Counter"),
    ],
)
def test_a_file_of_the_user_that_is_no_router_has_the_reason(tmp_path, monkeypatch, content, reason):
    (tmp_path / "conf" / "router").mkdir(parents=True)
    (tmp_path / "conf" / "router" / "mine.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    assert reason in options_of(tmp_path, "method=stl", words=["mine"])["mine"].cannot
    trusted = options_of(tmp_path, "method=stl", words=["mine"], trust=["collections.Counter"])["mine"]
    assert "is no router" in trusted.cannot or "_target_: " in trusted.cannot
