"""Every router on the experts of one run: each row is what a run by that router has, and what its ``route`` gives by itself."""

import csv
import json
import re
import shutil
from functools import cache
from unittest.mock import patch

import pytest
import torch

from see_lightning import load_ensemble
from see_lightning.cli import publish, route
from see_lightning.config.search_path import CONF
from see_lightning.engine import build
from see_lightning.engine.router_trial import COUNTED
from see_lightning.methods.method import Method
from see_lightning.routing.expert_prefill import PerExpertPrefill
from see_lightning.routing.joint import Joint
from see_lightning.tasks.datamodule import query_batch
from tests.nightly import all_but
from tests.runs import toy

NAMES = list(toy.TASKS)
SETTINGS = (*toy.DEFINED, toy.PARAPHRASES)
ROUTERS = sorted(path.stem for path in (CONF / "router").glob("*.yaml"))
JOINT = ("method=see", "order.tasks=[sea,ice]", "router=joint", "method.general_negatives=2", "router.ood_examples=4")
SETS = ["as_is", "input_only", "paraphrased", "ood", "ood_input_only"]


@cache
def foreign_in(base):
    """Two tasks of other queries in official files, with a definition."""
    folder = base / "foreign"
    for name, word in (("near", "icy"), ("far", "fog")):
        rows = [{"id": f"{name}-{n}", "input": f"{word}{n}?", "output": "z"} for n in range(3)]
        (folder / name).mkdir(parents=True)
        whole = {"Definition": [word], "Instances": rows, "Positive Examples": []}
        (folder / name / "test.json").write_text(json.dumps(whole))
    return folder


@cache
def finished(base, *settings):
    """A run of see, or of other settings, on prompts with a definition."""
    return toy.run(
        toy.compose(
            toy.defined_in(base), base / "routed" / re.sub(r"\W", "_", "_".join(settings)), *SETTINGS, *settings
        )
    )


def run_of(base, tmp_path, *settings):
    return shutil.copytree(finished(base, *settings).directory, tmp_path / "run=1")


def compared(run, *words):
    route.main([str(run), *words])
    return json.loads((run / "route.json").read_text())


def rows_of(found):
    return {row["router"]: row for row in found["routers"]}


def refused(capsys, *words):
    capsys.readouterr()
    return toy.refused(capsys, route.main, *map(str, words))


def run_by(base, tmp_path, router):
    """The results of a run whose own router it is, on all of the queries."""
    further = ("variants=[input_only,paraphrased]", "ood=folder", f"ood.dir={foreign_in(base)}")
    shutil.copytree(base / "routed" / "method_see", tmp_path / "runs")
    settings = (*SETTINGS, "method=see", f"router={router}", *further, "ood.variants=[input_only]")
    return toy.run(toy.compose(toy.defined_in(base), tmp_path / "runs", *settings))


CHOSEN = ["walk", "centroid", "propose", "arrow", "density", "entropy", "gradient"]


@pytest.mark.parametrize("router", all_but(CHOSEN[:4], CHOSEN))
def test_a_router_has_the_figures_of_a_run_by_it(base, tmp_path, router):
    run = run_of(base, tmp_path, "method=see")
    row = rows_of(compared(run, "--router", router, "--ood", f"folder dir={foreign_in(base)}"))[router]
    results = toy.read_results(run_by(base, tmp_path, router).directory)
    assert row["is_own"] == (router == "walk")
    assert list(row["sets"]) == SETS
    assert row["AR"] == pytest.approx(results["metrics"]["AR"], abs=1e-3)
    assert list(row["scores"].values()) == results["matrix"][-1]
    assert row["sets"]["as_is"]["right"] == pytest.approx(results["routing"]["accuracy"], abs=1e-6)
    for name in ("input_only", "paraphrased"):
        assert row["sets"][name]["right"] == pytest.approx(results["variants"][name]["routing_accuracy"], abs=1e-6)
        assert row["sets"][name]["base_share"] == pytest.approx(results["variants"][name]["base_share"], abs=1e-6)
    for name, ood in (("ood", results["ood"]), ("ood_input_only", results["ood"]["input_only"])):
        assert row["sets"][name]["base_share"] == pytest.approx(ood["base_share"], abs=1e-4)
        assert row["sets"][name]["per_task"] == pytest.approx(ood["per_task"], abs=1e-4)


def test_a_router_with_thresholds_has_those_of_a_run_by_it_though_the_runs_own_router_has_none(tmp_path):
    data = toy.write_tasks(tmp_path / "data", "{name}\n\n{name}{number}?", 8)
    more = (
        "method=see",
        "order.tasks=[sea,ice]",
        "method.calibrate_on=3",
        "method.target_recall=0.5",
        "method.margin=0",
    )
    joint = toy.run(toy.compose(data, tmp_path / "joint", *more, "router=joint", "router.ood_examples=4"))
    walk = toy.run(toy.compose(data, tmp_path / "walk", *more))
    assert not joint.methods[-1].thresholds
    assert len(walk.methods[-1].thresholds) == 2
    rows = [rows_of(compared(run.directory, "--router", "walk", "--no-answers"))["walk"] for run in (joint, walk)]
    assert rows[0]["sets"] == rows[1]["sets"]
    assert rows[0]["sets"]["as_is"]["base_share"] > 0.5, "thresholds refuse queries that verdicts accept"


@pytest.mark.parametrize("router", ["walk", "density"])
def test_the_shares_are_those_of_route_one_query_at_a_time(base, tmp_path, router):
    run = run_of(base, tmp_path, "method=see")
    row = rows_of(compared(run, "--router", router, "--no-answers"))[router]
    method = load_ensemble(run_by(base, tmp_path, router).directory, max_new_tokens=4).method
    variants = toy.put_otherwise(base)
    asked = {
        name: [(task, prompt) for task in NAMES for prompt, _ in variants[name][task].values()] for name in variants
    }
    asked["as_is"] = [(task, f"{task}\n\n{prompt}") for task, prompt in asked["input_only"]]
    with torch.inference_mode():
        for name, queries in asked.items():
            chosen = [
                method.router.route(query_batch([prompt], method.template, max_new_tokens=4))[0]
                for _, prompt in queries
            ]
            right = [task == expert for (task, _), expert in zip(queries, chosen, strict=True)]
            assert row["sets"][name]["right"] == pytest.approx(sum(right) / len(right), abs=1e-6)
            assert row["sets"][name]["base_share"] == pytest.approx(chosen.count(None) / len(chosen), abs=1e-6)
            of_ice = [one for one, (task, _) in zip(right, queries, strict=True) if task == "ice"]
            assert row["sets"][name]["per_task"]["ice"] == pytest.approx(sum(of_ice) / len(of_ice), abs=1e-6)
    assert row["AR"] is None


def test_another_share_of_own_queries_is_tried_without_learning_the_tasks_again(base, tmp_path):
    run = run_of(base, tmp_path, *JOINT)
    words = ["joint ood_examples=4 target_recall=0.2 bare_recall=0.1 confidence=0.1"]
    with patch.object(Joint, "hold_out", side_effect=AssertionError("learned again")):
        row = rows_of(compared(run, "--router", words[0], "--no-answers"))[words[0]]
        own = rows_of(compared(run, "--router", "joint ood_examples=4", "--no-answers"))["joint ood_examples=4"]
    words.append("joint ood_examples=4 target_recall=0.2 bare_recall=0.1 confidence=0.1 by.wordings=[as_is]")
    with pytest.raises(AssertionError), patch.object(Joint, "hold_out", side_effect=AssertionError("learned again")):
        compared(run, "--router", words[1], "--no-answers")
    with patch.object(Joint, "not_in_state", frozenset()):
        again = rows_of(compared(run_of(base, tmp_path / "again", *JOINT), "--router", words[0], "--no-answers"))[
            words[0]
        ]
    assert row["sets"] == again["sets"] != own["sets"]


def test_every_option_has_a_row_and_one_that_cannot_route_has_the_reason(base, tmp_path, capsys):
    run = run_of(base, tmp_path, "method=stl")
    found = compared(run, "--size", "1")
    rows, printed = rows_of(found), capsys.readouterr().out
    assert set(rows) == set(ROUTERS)
    assert [name for name, row in rows.items() if row["is_own"]] == ["oracle"]
    assert rows["walk"]["cannot"] == "needs experts that give verdicts"
    assert rows["none"]["cannot"] == "is for methods with one model"
    for name, row in rows.items():
        if row["cannot"] is not None:
            assert f"{name}: cannot route these experts: {row['cannot']}" in printed
    oracle = rows["oracle"]
    assert (oracle["told"], oracle["sets"], oracle["asked"], oracle["prefills"]) == (True, {}, 1, 1)
    assert "oracle: each query must come with its task" in printed
    assert found["queries"] == dict.fromkeys(SETS[:3], 3)


def test_costs_are_those_of_a_query_without_any_cached_response(base, tmp_path):
    run = run_of(base, tmp_path, "method=see")
    found = compared(run, *(word for name in ("walk", "centroid", "entropy") for word in ("--router", name)))
    rows = rows_of(found)
    *_, last = toy.read_answers(run).values()
    first = [[one for one in last if one["task"] == task][:COUNTED] for task in NAMES]
    sample = [one for some in first for one in some]
    assert rows["walk"]["asked"] == pytest.approx(sum(len(one["verdicts"]) for one in last) / len(last), abs=1e-3)
    assert 1 < rows["walk"]["asked"] < 3
    by_base = sum(one["expert"] == "base" for one in sample)
    reads = sum(len(one["verdicts"]) for one in sample) + by_base
    assert rows["walk"]["prefills"] == pytest.approx(reads / len(sample), abs=1e-3)
    assert (rows["centroid"]["prefills"], rows["entropy"]["prefills"]) == (2, 4)
    assert rows["centroid"]["asked"] == rows["entropy"]["asked"] == 1
    assert rows["walk"]["bytes"] == rows["entropy"]["bytes"] == 0 < rows["centroid"]["bytes"]


def test_what_is_measured_is_read_again_and_further_routers_are_added(base, tmp_path, capsys):
    run = run_of(base, tmp_path, "method=see")
    first = compared(run, "--router", "walk")
    printed = capsys.readouterr().out
    with patch.object(build, "load_model", side_effect=AssertionError("a model was loaded")):
        assert compared(run, "--router", "walk") == first
        assert capsys.readouterr().out == printed
    second = compared(run, "--router", "density", "--router", "density reject_above=0.5", "--no-answers")
    assert list(rows_of(second)) == ["walk", "density", "density reject_above=0.5"]
    assert second["routers"][0] == first["routers"][0]
    assert second["routers"][2]["settings"]["reject_above"] == 0.5
    assert second["routers"][1]["sets"] != second["routers"][2]["sets"]
    whole = compared(run, "--router", "density")
    assert whole["routers"][-1]["AR"] is not None
    assert len(whole["routers"]) == 3


def test_nothing_is_computed_twice_and_an_interrupted_command_goes_on(base, tmp_path):
    run = run_of(base, tmp_path, "method=see")
    words = ("--router", "centroid", "--router", "walk")
    forget(run)
    generated, asked = [], []
    generate, prefill = Method.generate, PerExpertPrefill.prefill_expert

    def counted(method, adapter, queries, *more):
        if queries.limits[0] > 1:  # not of the sample by which costs are counted
            generated.extend((adapter, tuple(prompt)) for prompt in queries.prompts)
        return generate(method, adapter, queries, *more)

    def verdicts(self, expert, rows):
        if self.queries.limits[0] > 1:
            asked.extend((expert, tuple(self.prompts[row])) for row in rows)
        return prefill(self, expert, rows)

    def dying(method, adapter, queries, *more):
        if len(generated) == 2 * toy.TESTED and queries.limits[0] > 1:
            raise InterruptedError
        return counted(method, adapter, queries, *more)

    with patch.object(PerExpertPrefill, "prefill_expert", verdicts):
        with patch.object(Method, "generate", dying), pytest.raises(InterruptedError):
            route.main([str(run), *words])
        assert len(generated) == 2 * toy.TESTED
        assert not (run / "route.json").exists()
        with patch.object(Method, "generate", counted):
            found = compared(run, *words)
    assert len(generated) == len(set(generated)) == 3 * toy.TESTED
    assert len(asked) == len(set(asked)) > 0
    added = toy.read_answers(run, "route_remembered")
    assert list(added) == ["03-ice"]
    whole = compared(run_of(base, tmp_path / "whole", "method=see"), *words)
    assert figures(whole) == figures(found)


def forget(run):
    """Take the cached responses from a run."""
    ledger = toy.read_file(run / "ledger.json")
    for stage in ledger["stages"].values():
        stage.pop("remembered", None)
    (run / "ledger.json").write_text(json.dumps(ledger))


def figures(found):
    """The rows of a comparison without times."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found["routers"]]


def test_nothing_else_of_the_run_changes_and_the_files_hold_the_same_numbers(base, tmp_path):
    run = run_of(base, tmp_path, "method=see")
    before = toy.kept(run)
    found = compared(run, "--router", "walk", "--router", "centroid", "--router", "none")
    after = toy.kept(run)
    assert {name for name in after if after[name] != before.get(name)} == {"tasks/03-ice/route_remembered.jsonl"}
    lines = {line["router"]: line for line in csv.DictReader((run / "route.csv").read_text().splitlines())}
    page, picture = (run / "report.html").read_text(), (run / "route.svg").read_text()
    for name, row in rows_of(found).items():
        assert lines[name]["cannot"] == (row["cannot"] or "")
        if row["cannot"] is None:
            for kind, figures in row["sets"].items():
                assert float(lines[name][f"{kind}_right"]) == figures["right"]
                assert float(lines[name][f"{kind}_to_base"]) == figures["base_share"]
            assert f'<th scope="row">{name}' in page
            assert name in picture
    assert float(lines["bound: inputs alone"]["input_only_right"]) == found["bound"]
    assert "Routers over the same experts" in page


def test_with_out_the_run_stays_as_it_is(base, tmp_path, capsys):
    run, out = run_of(base, tmp_path, "method=see"), tmp_path / "found.json"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    route.main([str(run), "--router", "centroid", "--out", str(out)])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert json.loads(out.read_text())["routers"]
    assert out.with_suffix(".csv").exists()
    assert out.with_suffix(".svg").exists()
    assert refused(capsys, run, "--out", tmp_path / "found.csv").endswith("a .csv and an .svg are written beside it.")


def test_what_cannot_be_compared_is_refused_in_a_line_without_its_model(base, tmp_path, capsys):
    mtl, run = toy.whole(base, "method=mtl").directory, run_of(base, tmp_path, "method=see")
    with patch.object(build, "load_model", side_effect=AssertionError("a model was loaded")):
        assert refused(capsys, mtl).endswith("give a run with experts, such as one of see or stl.")
        (empty := tmp_path / "empty").mkdir()
        assert refused(capsys, empty) == f"{empty} holds no run; give the folder that has ledger.json in it."
        assert "Did you mean 'centroid'?" in refused(capsys, run, "--router", "centriod")
        assert "Did you mean 'router.reject_above'?" in refused(capsys, run, "--router", "density reject_abov=3")
        assert refused(capsys, run, "--router", "").startswith("--router names no router")
        assert refused(capsys, run, "--router", "walk", "--variants", "sung").startswith("--variants names 'sung'")
        assert "there is no ood=wid" in refused(capsys, run, "--router", "walk", "--ood", "wid")
        (run / "results.json").unlink()
        assert "is not finished, and route is measured after the last task" in refused(capsys, run)


def test_a_damaged_comparison_is_named_and_made_again(base, tmp_path, capsys):
    run = run_of(base, tmp_path, "method=see")
    compared(run, "--router", "walk")
    path = run / "route.json"
    path.write_text(path.read_text().replace('"asked": ', '"asked": 1'))
    capsys.readouterr()
    compared(run, "--router", "walk")
    assert f"note: measured again: {path} is damaged: its sha256" in capsys.readouterr().err


OWN = '''
from see_lightning.routing.router import Router


class Last(Router):
    """The newest expert."""

    def route(self, queries):
        return [self.method.pool.names[-1]] * len(queries)
'''


def test_a_router_in_the_working_directory_is_compared_if_it_is_trusted(base, tmp_path, monkeypatch):
    run = run_of(base, tmp_path, "method=see")
    (tmp_path / "conf" / "router").mkdir(parents=True)
    (tmp_path / "conf" / "router" / "last.yaml").write_text("_target_: last_router.Last\n")
    (tmp_path / "last_router.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    row = rows_of(compared(run, "--router", "last"))["last"]
    assert "--trust last_router.Last" in row["cannot"]
    row = rows_of(compared(run, "--router", "last", "--trust", "last_router.Last"))["last"]
    assert row["cannot"] is None
    assert row["sets"]["as_is"]["per_task"] == {"sky": 0, "sea": 0, "ice": 1}


def test_a_document_has_a_table_of_the_routers_of_kept_runs(base, tmp_path):
    run = run_of(base, tmp_path, "method=see")
    rows = rows_of(compared(run, "--router", "walk", "--router", "centroid", "--router", "none"))
    document = tmp_path / "RESULTS.md"
    document.write_text("<!-- routers: jsonl -->\n<!-- end -->\n")
    publish.main([str(tmp_path / "results"), str(document), "--add", str(run)])
    head, _, *lines = [line.strip("|").split("|") for line in document.read_text().splitlines()[1:-1]]
    table = [dict(zip(map(str.strip, head), map(str.strip, line), strict=True)) for line in lines]
    assert [row["router"] for row in table] == ["walk", "centroid", "none", "bound: inputs alone"]
    bound = json.loads((run / "route.json").read_text())["bound"]
    assert float(table[-1]["input only, %"]) == pytest.approx(100 * bound, abs=0.06)
    assert (table[-1]["as is, %"], table[-1]["AR"]) == ("–", "–")
    for row, name in zip(table, ("walk", "centroid"), strict=False):
        for kind in SETS[:3]:
            assert float(row[f"{kind.replace('_', ' ')}, %"]) == pytest.approx(
                100 * rows[name]["sets"][kind]["right"], abs=0.06
            )
        assert float(row["AR"]) == pytest.approx(rows[name]["AR"], abs=0.006)
    assert table[1]["cannot"] == "sent no query to the base model"
    assert table[2]["cannot"] == "cannot route these experts: is for methods with one model"
