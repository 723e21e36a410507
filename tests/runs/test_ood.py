"""Foreign queries in whole runs: counted again from the files, and no number of the run moves for them."""

import json

import pytest

from see_lightning.cli.study import main
from see_lightning.data.example import Example
from see_lightning.engine import launch
from see_lightning.engine.results import keep_earlier
from see_lightning.errors import ConfigError, DataError
from see_lightning.evaluation.evaluate import prompt_sha
from tests.nightly import all_but
from tests.runs import toy

SETTINGS = [("method=see",), ("method=see", *toy.ACTIVATED), ("method=seqft",), ("method=stl",)]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Two tasks in official files; one asks much like a learned task."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, word, answer in (("near", "icy", ["z"]), ("far", "fog", "q")):
        rows = [{"id": f"{name}-{n}", "input": f"{word}{n}?", "output": answer} for n in range(9)]
        for half, some in (("train", rows[:3]), ("test", rows[3:])):
            (folder / name).mkdir(exist_ok=True)
            whole = {"Definition": [word], "Instances": some, "Positive Examples": []}
            (folder / name / f"{half}.json").write_text(json.dumps(whole))
    return folder


def asked(foreign, *more: str) -> tuple[str, ...]:
    return ("ood=folder", f"ood.dir={foreign}", "ood.size=5", *more)


def without_ood(kept):
    results = {name: value for name, value in kept["results.json"].items() if name != "ood"}
    results["config"] = {name: value for name, value in results["config"].items() if name != "ood"}
    files = {name: value for name, value in kept.items() if "/ood" not in name}
    return {**files, "results.json": results}


@pytest.mark.parametrize("settings", all_but(SETTINGS[1:2], SETTINGS), ids=lambda s: " ".join(s[:2]))
def test_a_finished_run_is_asked_without_training_and_ends_as_if_asked_at_once(base, tmp_path, foreign, settings):
    data, whole = toy.data_in(base), toy.whole(base, *settings)
    at_once = toy.run(toy.compose(data, tmp_path / "once", *settings, *asked(foreign)))
    assert without_ood(toy.kept(at_once.directory)) == without_ood(toy.kept(whole.directory))
    later = toy.run(toy.compose(data, tmp_path / "later", *settings))
    later = toy.run(toy.compose(data, tmp_path / "later", *settings, *asked(foreign)))
    assert (later.fits, len(later.methods)) == (0, 1)
    assert toy.kept(later.directory) == toy.kept(at_once.directory)
    again = toy.run(toy.compose(data, tmp_path / "later", *settings, *asked(foreign)))
    assert (again.fits, again.methods) == (0, [])


def test_tasks_that_have_nothing_but_a_test_file_are_asked(base, tmp_path, foreign):
    for name in ("near", "far"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.json").write_bytes((foreign / name / "test.json").read_bytes())
    run = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", "method=seqft", "optim.epochs=1", *asked(tmp_path)))
    assert set(toy.read_results(run.directory)["ood"]["scores"]) == {"near", "far"}


@pytest.mark.parametrize("settings", all_but(SETTINGS[1:3], SETTINGS), ids=lambda s: " ".join(s[:2]))
def test_what_the_results_say_is_what_the_files_hold(base, tmp_path, foreign, settings):
    run = toy.run(toy.compose(toy.data_in(base), tmp_path, *settings, *asked(foreign, "ood.every=true")))
    found, stages = toy.read_results(run.directory)["ood"], toy.read_answers(run.directory, "ood")
    assert list(stages) == ["01-sky", "02-sea", "03-ice"]
    answers = stages["03-ice"]
    for task in ("far", "near"):
        ids = [answer["id"] for answer in answers if answer["task"] == task]
        assert len(ids) == len(set(ids)) == 5
        assert set(ids) < {f"{task}-{n}" for n in range(3, 9)}, "of the test half"
    scores = {task: [answer["score"] for answer in answers if answer["task"] == task] for task in ("far", "near")}
    assert found["scores"] == {task: pytest.approx(sum(some) / 5) for task, some in scores.items()}
    if settings[0] != "method=see":
        assert set(found) == {"asked", "digests", "command", "scores", "cut"}
        return
    by = [answer["expert"] for answer in answers]
    assert found["queries"] == 10
    assert found["base_share"] == pytest.approx(by.count("base") / 10)
    assert found["experts"] == {task: by.count(task) / 10 for task in toy.TASKS}
    assert found["after"] == {
        stage: pytest.approx(sum(answer["expert"] == "base" for answer in some) / 10) for stage, some in stages.items()
    }
    said = [record for some in toy.read_answers(run.directory, "ood_remembered").values() for record in some]
    assert {(r["expert"], r["task"], r["id"]) for r in said if r["expert"] != "base"} == {
        (expert, answer["task"], answer["id"]) for expert in toy.TASKS for answer in answers
    }
    own = [record for some in toy.read_answers(run.directory, "remembered").values() for record in some]

    def most(records):
        best: dict[tuple[str, str], float] = {}
        for record in records:
            if record["expert"] != "base":
                query = record["task"], record["id"]
                best[query] = max(best.get(query, -1e9), record["log_odds"])
        return list(best.values())

    pairs = [(a > b) + (a == b) / 2 for a in most(own) for b in most(said)]
    assert found["auroc"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-4)


def test_what_the_base_model_answers_is_what_transformers_says_without_experts(base, tmp_path, foreign):
    run = toy.run(toy.compose(toy.data_in(base), tmp_path, *SETTINGS[0], *asked(foreign), "model.dtype=fp32"))
    answers = [a for some in toy.read_answers(run.directory, "ood").values() for a in some]
    checked = [answer for answer in answers if answer["plain"] is not None]
    found = toy.read_results(run.directory)["ood"]
    assert found["base_checked"] == len(checked)
    by_base = [a for a in answers if a["expert"] == "base"]
    assert by_base, "the toy leaves some queries to the base model"
    assert len(checked) == len(by_base), "all are among the first of their tasks"
    assert found["base_identical"] == 1.0
    assert all(answer["text"] == answer["plain"] for answer in checked)


def test_other_queries_are_asked_beside_the_old_ones_and_only_they_count(base, tmp_path, foreign):
    data = toy.data_in(base)
    first = toy.run(toy.compose(data, tmp_path, *SETTINGS[0], *asked(foreign)))
    more = toy.run(toy.compose(data, tmp_path, *SETTINGS[0], "ood=folder", f"ood.dir={foreign}", "ood.size=6"))
    assert (more.fits, more.directory) == (0, first.directory)
    results = toy.read_results(more.directory)["ood"]
    assert (results["queries"], results["asked"]["size"]) == (12, 6)
    one = toy.run(toy.compose(data, tmp_path, *SETTINGS[0], *asked(foreign, "ood.tasks=[far]")))
    assert toy.read_results(one.directory)["ood"]["per_task"].keys() == {"far"}
    assert toy.read_results(one.directory)["ood"]["queries"] == 5


@pytest.mark.parametrize("settings", all_but(SETTINGS[:1], SETTINGS[:2]), ids=lambda s: " ".join(s[:2]))
def test_two_ranks_find_what_one_finds(base, tmp_path, foreign, settings):
    calm = (*settings, "adapter.dropout=0", "model.dtype=fp32", "optim.lr=4e-3", *asked(foreign))
    data = toy.data_in(base)
    alone = toy.read_results(toy.run(toy.compose(data, tmp_path / "one", *calm)).directory)["ood"]
    cfg = toy.compose(data, tmp_path / "two", *calm, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    log = tmp_path / "log"
    assert toy.ended(toy.start_ranks(2, lambda: launch.launch(cfg, "test"), log)) == [0, 0], log.read_text()[-3000:]
    (directory,) = [path.parent for path in (tmp_path / "two").rglob("results.json")]
    together = toy.read_results(directory)["ood"]
    assert {k: v for k, v in together.items() if k not in ("auroc", "fpr95")} == {
        k: v for k, v in alone.items() if k not in ("auroc", "fpr95")
    }
    assert together["auroc"] == pytest.approx(alone["auroc"], abs=0.05)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["ood.tasks=[fra]"], ConfigError, "ood.tasks names 'fra'.*'far'"),
        (["ood.size=0"], ConfigError, "ood.size must be at least 1; got 0"),
        (["ood.dir=/nowhere"], DataError, "/nowhere"),
        (["+ood.colour=red"], ConfigError, "colour"),
    ],
)
def test_foreign_tasks_that_cannot_be_asked_are_refused_before_anything_is_trained(
    base, tmp_path, foreign, more, error, message
):
    with pytest.raises(Exception, match=message) as caught:
        toy.run(toy.compose(toy.data_in(base), tmp_path, *asked(foreign), *more))
    assert isinstance(caught.value, error) or "colour" in message
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_foreign_task_by_a_learned_ones_name_is_refused(base, tmp_path, foreign):
    (foreign / "ice").symlink_to(foreign / "near")
    try:
        with pytest.raises(ConfigError, match="ood has a task 'ice'"):
            toy.run(toy.compose(toy.data_in(base), tmp_path, *asked(foreign)))
    finally:
        (foreign / "ice").unlink()


def test_a_task_that_was_foreign_once_is_learned_like_any_other(base, tmp_path):
    """What experts said to it as a stranger is not what the grown run remembers of it as its own."""
    data, order = toy.data_in(base), "order.tasks=[sky,sea]"
    asked_before = (
        "ood=folder",
        f"ood.dir={data}",
        "ood.tasks=[ice]",
        "ood.max_new_tokens=4",
        "ood.sources.folder.reader._target_=see_lightning.data.jsonl.JsonlReader",
        "~ood.sources.folder.reader.published_at",
    )
    toy.run(toy.compose(data, tmp_path / "runs", order, *asked_before))
    grown = toy.run(toy.compose(data, tmp_path / "runs"))
    assert grown.fits == 1
    kept, whole = (without_ood(toy.kept(one.directory)) for one in (grown, toy.whole(base)))
    assert kept == whole


@pytest.mark.parametrize("change", ["ood.max_new_tokens=1", "ood.sources.folder.default.score=exact_match"])
def test_queries_that_shall_be_answered_or_scored_otherwise_are_asked_again(base, tmp_path, foreign, change):
    data = toy.data_in(base)
    toy.run(toy.compose(data, tmp_path / "changed", "method=seqft", *asked(foreign)))
    again = toy.run(toy.compose(data, tmp_path / "changed", "method=seqft", *asked(foreign), change))
    at_once = toy.run(toy.compose(data, tmp_path / "once", "method=seqft", *asked(foreign), change))
    one, other = (toy.read_results(run.directory)["ood"] for run in (again, at_once))
    assert one == other


def test_a_study_stays_in_the_report_when_a_run_is_asked_more(base, tmp_path, foreign):
    data = toy.data_in(base)
    run = toy.run(toy.compose(data, tmp_path))
    main([str(run.directory)])
    assert "Other thresholds" in (run.directory / "report.html").read_text()
    toy.run(toy.compose(data, tmp_path, *asked(foreign)))
    page = (run.directory / "report.html").read_text()
    assert "Other thresholds" in page
    assert "answered by the base model" in page


ALONE = ("ood.variants=[input_only]",)


def without_alone(results):
    found = {name: value for name, value in results["ood"].items() if name not in ("input_only", "command")}
    return {**found, "asked": {**found["asked"], "variants": []}}


def test_foreign_queries_without_their_definitions_are_answered_beside_them_and_move_nothing(base, tmp_path, foreign):
    data, see = toy.data_in(base), ("method=see",)
    once = toy.run(toy.compose(data, tmp_path / "once", *see, *asked(foreign), *ALONE))
    results = toy.read_results(once.directory)
    answers = toy.read_answers(once.directory, "ood_input_only")["03-ice"]
    prompts = {f"{name}-{n}": f"{word}{n}?" for name, word in (("near", "icy"), ("far", "fog")) for n in range(9)}
    assert len(answers) == 10
    assert all(one["prompt_sha"] == prompt_sha(Example(one["id"], prompts[one["id"]], "", "")) for one in answers)
    found, by = results["ood"]["input_only"], [one["expert"] for one in answers]
    assert by.count("base") in range(1, 10), "some of both, or the shares below tell little"
    assert (found["queries"], found["base_share"]) == (10, by.count("base") / 10)
    assert found["per_task"] == {
        task: sum(one["expert"] == "base" for one in answers if one["task"] == task) / 5 for task in ("far", "near")
    }
    assert found["experts"] == {task: by.count(task) / 10 for task in toy.TASKS}
    assert found["without_definition"] == []
    assert set(found["scores"]) == {"far", "near"}

    later = toy.run(toy.compose(data, tmp_path / "later", *see, *asked(foreign)))
    before = toy.read_results(later.directory)
    assert without_alone(before) == without_alone(results)
    later = toy.run(toy.compose(data, tmp_path / "later", *see, *asked(foreign), *ALONE))
    assert (later.fits, len(later.methods)) == (0, 1)
    assert toy.kept(later.directory) == toy.kept(once.directory)
    for more in ((), ALONE):
        again = toy.run(toy.compose(data, tmp_path / "later", *see, *asked(foreign), *more))
        assert again.methods == []
    assert toy.read_results(later.directory)["ood"]["input_only"] == found
    page = (later.directory / "report.html").read_text()
    assert "far without its definition: answered by the base model" in page


def test_a_foreign_task_without_a_definition_is_left_out_with_a_notice(base, tmp_path, capsys):
    for name, prompt in (("near", "Icy.\nice{}?"), ("far", "fog{}?")):
        for half, numbers in (("train", range(3)), ("test", range(3, 6))):
            rows = [{"prompt": prompt.format(number), "answer": "q"} for number in numbers]
            (tmp_path / f"{name}.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (
        *("method=stl", "optim.epochs=1", *ALONE, "ood=folder", f"ood.dir={tmp_path}", "ood.max_new_tokens=4"),
        "ood.sources.folder.reader._target_=see_lightning.data.jsonl.JsonlReader",
        "~ood.sources.folder.reader.published_at",
    )
    run = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *settings))
    results = toy.read_results(run.directory)
    assert set(results["ood"]["scores"]) == {"far", "near"}
    assert set(results["ood"]["input_only"]["scores"]) == {"near"}
    assert results["ood"]["input_only"]["without_definition"] == ["far"]
    (answers,) = toy.read_answers(run.directory, "ood_input_only").values()
    asked = {prompt_sha(Example("", f"ice{number}?", "", "")) for number in range(3, 6)}
    assert {answer["prompt_sha"] for answer in answers} == asked, "a line break ends the definition"
    notice = "far: its prompts have no definition in common, so ood.variants=[input_only] leaves it out"
    assert notice in results["notices"]
    assert notice in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"none of the ood tasks has a definition.*far\. Leave ood.variants out"):
        toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *settings, "ood.tasks=[far]"))


def test_a_variant_that_foreign_queries_do_not_have_is_refused(base, tmp_path, foreign):
    with pytest.raises(ConfigError, match=r"ood.variants must be one of input_only; got 'paraphrased'"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, *asked(foreign), "ood.variants=[paraphrased]"))


def test_the_part_without_definitions_stays_where_the_same_queries_are_evaluated_again():
    queries = {"sources": {}, "size": 5, "variants": []}
    alone = {"base_share": 0.5}
    earlier = {"ood": {"asked": {**queries, "variants": ["input_only"]}, "digests": {"far": "1"}, "input_only": alone}}
    for asked_now, digests, stays in (
        (queries, {"far": "1"}, True),
        ({**queries, "size": 6}, {"far": "1"}, False),
        (queries, {"far": "2"}, False),
    ):
        results = {"ood": {"asked": asked_now, "digests": digests}}
        keep_earlier(results, earlier)
        assert ("input_only" in results["ood"]) is stays
    keep_earlier(results := {}, earlier)
    assert results == earlier
