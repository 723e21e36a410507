"""Test queries answered by a server that speaks vLLM's API: the same results as without it, or a refusal."""

import pytest

from see_lightning.engine import launch
from see_lightning.errors import ConfigError, Refusal
from see_lightning.inference.vllm import VllmServer
from see_lightning.models.tiny import tiny_model
from tests.runs import toy
from tests.runs.vllm_stand_in import StandIn, serving

# The default targets of the toy contain the vocabulary head, which vLLM does not adapt.
BODY = ("adapter.targets=[q_proj,v_proj,o_proj,down_proj]", "model.dtype=fp32")


@pytest.mark.parametrize(
    "more",
    [
        ("method=see",),
        ("method=see", "router=propose"),
        ("method=see", "method.calibrate_on=2", "data.eval_batch_size=3"),
        ("method=stl",),
        ("method=any_ssr",),
    ],
    ids=["walk", "propose", "thresholds", "stl", "any_ssr"],
)
def test_a_server_gives_the_answers_of_this_process(tmp_path, more):
    data, stand_in = toy.write_tasks(tmp_path / "data"), StandIn(tiny_model())
    local = toy.run(toy.compose(data, tmp_path / "local", *BODY, *more))
    with serving(stand_in) as url:
        engine = ("evaluate.engine=vllm", f"evaluate.url={url}")
        remote = toy.run(toy.compose(data, tmp_path / "remote", *BODY, *more, *engine))
    assert remote.directory.relative_to(tmp_path / "remote") == local.directory.relative_to(tmp_path / "local")
    assert toy.read_answers(remote.directory) == toy.read_answers(local.directory)
    results = toy.read_results(remote.directory)
    assert "engine" not in toy.read_results(local.directory)
    assert results["engine"]["url"] == url
    stages = results["engine"]["stages"]
    assert list(stages) == ["01-sky", "02-sea", "03-ice"]
    assert all(one["other_expert"] == one["other_text"] == 0 < one["checked"] <= 8 for one in stages.values())
    assert any("answered by vLLM" in notice for notice in results["notices"])
    assert results["counts"]["generations"] == toy.read_results(local.directory)["counts"]["generations"]
    assert {name.partition("-")[0] for name, _ in stand_in.asked} >= {"sky", "sea", "ice"}
    if more == ("method=see",):
        assert results["counts"]["prefills"] == 0, "nothing but the check ran here"


def test_verdicts_have_their_log_odds(tmp_path):
    data, stand_in = toy.write_tasks(tmp_path / "data"), StandIn(tiny_model())
    local = toy.run(toy.compose(data, tmp_path / "local", *BODY))
    with serving(stand_in) as url:
        remote = toy.run(toy.compose(data, tmp_path / "remote", *BODY, "evaluate.engine=vllm", f"evaluate.url={url}"))
    pairs = 0
    for stage in ("01-sky", "02-sea", "03-ice"):
        ours, theirs = (toy.read_answers(one.directory, "remembered")[stage] for one in (local, remote))
        known = {(one["id"], one["expert"]): one for one in ours}
        for one in theirs:
            other = known[one["id"], one["expert"]]
            assert one["verdict"] == other["verdict"]
            if one["log_odds"] is not None:
                pairs += 1
                assert one["log_odds"] == pytest.approx(other["log_odds"], abs=1e-3)
    assert pairs > 10


def test_a_server_that_does_not_apply_the_adapters_is_refused_before_it_answers(tmp_path):
    data = toy.write_tasks(tmp_path / "data")
    with serving(StandIn(tiny_model(), serves_base=True)) as url:
        cfg = toy.compose(data, tmp_path / "runs", *BODY, "evaluate.engine=vllm", f"evaluate.url={url}")
        with pytest.raises(
            Refusal, match=r"to another expert than this process, more than evaluate.tolerance=0.1 allows"
        ):
            toy.run(cfg)


@pytest.mark.parametrize("method", ["stl", "any_ssr"])
def test_where_this_process_chooses_the_expert_other_texts_tell_that_no_adapter_is_applied(tmp_path, method):
    data = toy.write_tasks(tmp_path / "data")
    more = (f"method={method}", "evaluate.text_tolerance=0.3", "optim.epochs=20")
    with serving(StandIn(tiny_model(), serves_base=True)) as url:
        cfg = toy.compose(data, tmp_path / "runs", *BODY, *more, "evaluate.engine=vllm", f"evaluate.url={url}")
        with pytest.raises(
            Refusal, match="by another text than this process, more than evaluate.text_tolerance=0.3 allows"
        ):
            toy.run(cfg)


def test_no_task_is_trained_before_the_server_answers(tmp_path):
    engine = ("evaluate.engine=vllm", "evaluate.url=http://127.0.0.1:1/v1")
    with pytest.raises(Refusal, match="no vLLM server answers"):
        launch.launch(toy.compose(toy.write_tasks(tmp_path / "data"), tmp_path / "runs", *BODY, *engine), "test")
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_grown_run_tells_who_answered_before(tmp_path):
    data = toy.write_tasks(tmp_path / "data")
    with serving(StandIn(tiny_model())) as url:
        engine = ("evaluate.engine=vllm", f"evaluate.url={url}")
        toy.run(toy.compose(data, tmp_path / "runs", *BODY, "order.tasks=[sky]", *engine))
    grown = toy.run(toy.compose(data, tmp_path / "runs", *BODY, "order.tasks=[sky,sea]"))
    assert grown.fits == 1
    assert list(toy.read_results(grown.directory)["engine"]["stages"]) == ["01-sky"]


def test_an_interrupted_run_goes_on_with_another_engine(tmp_path):
    data = toy.write_tasks(tmp_path / "data")
    toy.run(toy.compose(data, tmp_path / "runs", *BODY, "order.tasks=[sky,sea]"))
    whole = toy.run(toy.compose(data, tmp_path / "other", *BODY))
    with serving(StandIn(tiny_model())) as url:
        engine = ("evaluate.engine=vllm", f"evaluate.url={url}")
        seen = toy.run(toy.compose(data, tmp_path / "runs", *BODY, *engine))
    assert seen.fits == 1, "the first two experts were taken over"
    assert toy.read_answers(seen.directory) == toy.read_answers(whole.directory)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("method=seqft",), "of method=seqft with these settings depend on each other or are none"),
        (("method=see", "method.warm_start=loss"), "depend on each other"),
        (("method=see", *toy.ACTIVATED), "choose adapter=lora"),
        (("method=see", "adapter.quantization=int8"), "leave out adapter.quantization"),
        (("method=stl", "router=logo"), "sums several adapters"),
        (("method=see", "trainer.devices=2"), "choose trainer.devices=1"),
        (("method=see", "model.quantization=int8"), "leave out adapter.quantization and model.quantization"),
        (("method=see", "evaluate.url=localhost:8000"), "must begin with http://"),
        (("method=see", "evaluate.engine=sglang"), "evaluate.engine must be one of local, vllm"),
        (("method=see", "evaluate.tolerance=2"), "between 0 and 1"),
    ],
)
def test_what_a_server_cannot_run_is_refused_before_a_folder_is_made(tmp_path, more, said):
    engine = () if any("evaluate.engine" in one for one in more) else ("evaluate.engine=vllm",)
    with pytest.raises(ConfigError, match=said):
        launch.launch(toy.compose(toy.write_tasks(tmp_path / "data"), tmp_path / "runs", *engine, *more), "test")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("ledger.json"))


def test_no_server_and_one_that_loads_no_adapters_are_told_with_the_command_that_starts_one(tmp_path):
    with pytest.raises(
        Refusal, match=r"no vLLM server answers at http://127.0.0.1:1/v1: .* vllm serve BASE --enable-lora"
    ):
        VllmServer("http://127.0.0.1:1/v1", [2])
    with serving(StandIn(tiny_model(), loads=False)) as url:
        server = VllmServer(url, [2])
        with pytest.raises(
            ConfigError, match=r"load_lora_adapter refused: 404 .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        ):
            server.add("mine", tmp_path)
        with pytest.raises(ConfigError, match=r"completions refused: 404 .*does not exist.*base-model"):
            server.complete("other", [[5, 6]], [2])


def test_another_form_of_answer_is_told(monkeypatch):
    with serving(StandIn(tiny_model())) as url:
        server = VllmServer(url, [2])
        monkeypatch.setattr(
            server, "_send", lambda path, body=None: {"choices": [{"text": "hi", "finish_reason": "stop"}]}
        )
        with pytest.raises(ConfigError, match="another form than vLLM's"):
            server.complete(None, [[5]], [1])
