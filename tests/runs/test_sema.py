"""A run in which one task is explained by another's expert: nothing is trained for it, and everything says so."""

import json
import shutil
from unittest.mock import patch

import pytest

from see_lightning import load_ensemble
from see_lightning.cli import perplexity
from see_lightning.config.validation import validate
from see_lightning.engine import launch
from see_lightning.engine.distributed import Ranks
from see_lightning.engine.router import settle_router
from see_lightning.methods.method import Assignment, Method
from tests.runs import toy

TASKS = ["sky", "sea", "dew", "ice"]
EXPERTS = {"sky": "sky", "sea": "sea", "dew": "sky", "ice": "ice"}
# With these adapters what an expert says can be told from what the base model says.
SEMA = ("method=sema", *toy.ACTIVATED)
IN_ORDER = "order.tasks=[sky,sea,dew,ice]"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The toy's data, and dew, which is sky with other numbers."""
    folder = toy.write_tasks(tmp_path_factory.mktemp("sema") / "data")
    for half, numbers in (("train", range(300, 308)), ("test", range(400, 404))):
        rows = [{"prompt": f"skysky{number}?", "answer": "x"} for number in numbers]
        (folder / f"dew.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def whole(data):
    """An undisturbed run."""
    return toy.run(toy.compose(data, data.parent / "whole", *SEMA, IN_ORDER))


def test_what_is_explained_is_not_trained_and_takes_no_room(whole):
    assert whole.fits == 3
    (method,) = whole.methods
    assert method.pool.names == ["sky", "sea", "ice"]
    results = toy.read_results(whole.directory)
    assert results["given"] == EXPERTS
    assert results["expanded"] == [True, True, False, True]
    assert [list(z) for z in results["z"]] == [[], ["sky"], ["sky", "sea"], ["sky", "sea"]]
    assert [bool(z) and min(z.values()) <= 2 for z in results["z"]] == [False, False, True, False]
    assert results["counts"]["steps"] == [10, 20, 0, 30]
    assert results["counts"]["train_examples"] == [4, 8, 0, 12]
    for part in ("weights", "descriptors"):
        one, *more = results["storage"][part]
        assert [one, *more] == [one, 2 * one, 2 * one, 3 * one]
    assert results["capacity"] == pytest.approx([results["capacity"][0] * experts for experts in (1, 2, 2, 3)])


def test_its_folder_says_whose_expert_answers_for_it_and_why(whole):
    folder = whole.directory / "tasks" / "03-dew"
    assert (folder / "examples.jsonl").read_bytes() == b""
    assert {path.name for path in (folder / "expert").iterdir()} == {"expert.json", "given.json"}
    told = json.loads((folder / "expert" / "expert.json").read_text())
    z = toy.read_results(whole.directory)["z"][2]
    assert (told["expert"], told["expanded"], told["born"], told["z"]) == ("sky", False, None, z)
    assert told["training"] == {"examples": 0, "rehearsed": 0, "negatives": 0, "steps": 0}
    own = json.loads((whole.directory / "tasks" / "04-ice" / "expert" / "expert.json").read_text())
    assert (own["expert"], own["expanded"], own["born"]) == ("ice", True, 4)
    note = f"dew has no expert of its own: that of sky explains it (z {z['sky']:.2f})."
    assert note in toy.read_results(whole.directory)["notices"]
    assert note in (whole.directory / "report.html").read_text(encoding="utf-8")


def test_its_queries_are_routed_right_by_the_expert_that_it_was_given(whole):
    *_, last = toy.read_answers(whole.directory).values()
    routing = toy.read_results(whole.directory)["routing"]
    assert routing["accuracy"] == sum(EXPERTS[one["task"]] == one["expert"] for one in last) / len(last) == 1.0
    assert routing["confusion"][2] == [toy.TESTED, 0, 0, 0, 0]
    assert {one["text"] for one in last if one["task"] == "dew"} == {"x"}, "sky's answer to queries that sky never saw"


def test_the_console_tells_who_gets_an_expert(data, tmp_path, capsys):
    toy.run(toy.compose(data, tmp_path, *SEMA, "order.tasks=[sky,dew]", "optim.epochs=1"))
    told = capsys.readouterr().err
    assert "1/2 01-sky: an expert of its own (z unknown: it is the first)" in told
    assert "2/2 02-dew: explained by the expert of sky, nothing is trained (z -" in told


def test_a_run_interrupted_after_every_commit_ends_the_same(data, whole, tmp_path):
    cfg = toy.compose(data, tmp_path, *SEMA, IN_ORDER)
    resumed, interruptions = toy.broken_off(cfg)
    assert interruptions == 1 + 4 + (2 + 3 + 4 + 4)
    assert toy.kept(resumed.directory) == toy.kept(whole.directory)


def test_a_run_grows_behind_a_task_that_was_explained(data, whole, tmp_path):
    shorter = toy.run(toy.compose(data, tmp_path, *SEMA, "order.tasks=[sky,sea,dew]"))
    grown = toy.run(toy.compose(data, tmp_path, *SEMA, IN_ORDER))
    assert (shorter.fits, grown.fits) == (2, 1)
    assert toy.kept(grown.directory) == toy.kept(whole.directory)


def test_refusing_queries_trains_nothing_anew_and_leaves_them_to_the_base_model(data, whole, tmp_path):
    shutil.copytree(data.parent / "whole", tmp_path, dirs_exist_ok=True)
    refusing = toy.run(toy.compose(data, tmp_path, *SEMA, IN_ORDER, "method.reject_above=10"))
    assert refusing.fits == 0
    plain = toy.run(toy.compose(data, tmp_path, "method=base", *toy.ACTIVATED, IN_ORDER))
    (base,) = toy.read_answers(plain.directory).values()
    spoken = {record["id"]: record["text"] for record in base}
    ours, theirs = (toy.read_answers(run.directory) for run in (refusing, whole))
    by_base = 0
    for stage, records in ours.items():
        for record, before in zip(records, theirs[stage], strict=True):
            by_base += record["expert"] == "base"
            assert record["text"] == (spoken[record["id"]] if record["expert"] == "base" else before["text"])
    # What lies far from all is the task to come, asked before it is learned; dew, as the task to come, is near sky.
    assert {(stage, r["task"]) for stage, records in ours.items() for r in records if r["expert"] == "base"} == {
        ("01-sky", "sea"),
        ("03-dew", "ice"),
    }
    assert by_base == 2 * toy.TESTED
    for stage in ours:
        one, two = (run.directory / "tasks" / stage / "expert" / "given.json" for run in (refusing, whole))
        assert one.read_bytes() == two.read_bytes()


def test_a_loaded_ensemble_answers_for_the_explained_task_and_so_does_perplexity(whole, tmp_path):
    ensemble = load_ensemble(whole.directory, max_new_tokens=4)
    (reply,) = ensemble.answer(["skysky401?"])
    assert (reply.expert, reply.text) == ("sky", "x")
    copy = shutil.copytree(whole.directory, tmp_path / "copy")
    perplexity.main([str(copy)])
    dew = json.loads((copy / "perplexity.json").read_text())["tasks"]["dew"]
    assert {query["expert"] for query in dew["queries"]} == {"sky"}


def test_ranks_that_disagree_are_stopped_before_they_wait_for_each_other(data, tmp_path):
    def gather(ranks, value):
        return [value, Assignment("sky", {})] if isinstance(value, Assignment) else [value]

    cfg = toy.compose(data, tmp_path, *SEMA, "order.tasks=[sky,sea]", "optim.epochs=1")
    with (
        patch.object(Ranks, "gather", gather),
        pytest.raises(RuntimeError, match="02-sea: the ranks chose different experts"),
    ):
        toy.run(cfg)


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_ranks_decide_and_answer_as_one_does(data, tmp_path, trainer):
    calm = (*SEMA, "order.tasks=[sky,dew,sea]", "adapter.dropout=0", "optim.epochs=1")
    alone = toy.run(toy.compose(data, tmp_path / "alone", *calm)).directory
    ranks = (f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2")
    cfg, log = toy.compose(data, tmp_path / "ranks", *calm, *ranks), tmp_path / "log"
    assert toy.ended(toy.start_ranks(2, lambda: launch.launch(cfg, "test"), log)) == [0, 0], log.read_text()[-3000:]
    together = tmp_path / "ranks" / toy.place_of(alone)
    assert toy.read_answers(together) == toy.read_answers(alone)
    one, two = toy.read_results(together), toy.read_results(alone)
    assert {key: one[key] for key in ("given", "z", "storage")} == {key: two[key] for key in ("given", "z", "storage")}
    for stage in ("01-sky", "03-sea"):
        files = [run / "tasks" / stage / "expert" / "descriptor.safetensors" for run in (alone, together)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_methods_that_do_not_reuse_experts_are_not_asked(data, tmp_path):
    with patch.object(Method, "assign", side_effect=AssertionError):
        run = toy.run(toy.compose(data, tmp_path, "method=stl", "order.tasks=[sky,dew]", "optim.epochs=1"))
    assert run.fits == 2
    assert not {"given", "expanded", "z"} & toy.read_results(run.directory).keys()


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["router=density"], True),
        (["router=density", "method.descriptor=autoencoder"], False),
        (["router=density", "method.descriptor=autoencoder", "router.descriptor=autoencoder"], True),
        (["router=density", "router.reject_above=2"], False),
        (["router=density", "router.reject_above=2", "method.reject_above=2"], True),
    ],
)
def test_a_density_that_is_chosen_is_its_own_only_with_its_own_settings(tmp_path, words, own):
    cfg = toy.compose(tmp_path, tmp_path, "method=sema", *words)
    settle_router(cfg, validate(cfg))
    assert (cfg.router is None) == own


@pytest.mark.nightly
def test_another_router_does_not_learn_a_task_without_an_expert(data, tmp_path):
    """Whether the experts are taken over or trained for it."""
    taken, whole = tmp_path / "taken", tmp_path / "whole"
    toy.run(toy.compose(data, taken, *SEMA, IN_ORDER))
    again = toy.run(toy.compose(data, taken, *SEMA, IN_ORDER, "router=centroid"))
    once = toy.run(toy.compose(data, whole, *SEMA, IN_ORDER, "router=centroid"))
    assert (again.fits, once.fits) == (0, 3)
    assert toy.read_answers(again.directory) == toy.read_answers(once.directory)
