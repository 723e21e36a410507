"""Runs are compared over seeds, whatever else differs keeps them apart, and nothing but their results is read."""

import csv
import hashlib
import io
import json
import math
import os
import random
import re
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from see_lightning.cli.compare import common_folder, main
from see_lightning.config.identity import numbers, numbers_config, run_key
from see_lightning.config.search_path import CONF, register
from see_lightning.errors import Refusal
from see_lightning.reporting.comparison.columns import alike, columns, differences
from see_lightning.reporting.comparison.groups import Comparison, compare, spread
from see_lightning.reporting.comparison.page import MATRICES, render_comparison
from see_lightning.reporting.comparison.tables import groups_csv, runs_csv
from see_lightning.reporting.comparison.terminal import print_comparison
from see_lightning.reporting.runs import find_runs, read_run
from tests.reporting.test_report import Page

TASKS = ["qa", "<b>bold</b>"]


def config(**settings: Any) -> dict[str, Any]:
    """A resolved config; settings by dotted name, with ``__`` for the dot."""
    whole: dict[str, Any] = {
        "ratio": 0.1,
        "seed": 0,
        "train_size": None,
        "method": {"_target_": "see_lightning.methods.see.See", "ratio": 0.1, "resample": "per_task"},
        "order": {"name": "two", "tasks": list(TASKS)},
        "benchmark": {
            "name": "mine",
            "version": "1",
            "licence": "none",
            "citation": "none",
            "reader": {"_target_": "a.Reader", "folder": "/data/mine"},
            "tasks": {"qa": {"score": "rouge_l", "licence": "none"}},
        },
        "model": {"name": "tiny", "prompt": "chat"},
        "adapter": {"rank": 8, "targets": ["q_proj", "v_proj"]},
        "optim": {"lr": 2e-4},
        "data": {"eval_batch_size": 16, "resample": "per_task"},
        "trainer": {"_target_": "lightning.Trainer", "accelerator": "cpu", "devices": 1},
        "logger": None,
        "paths": {"data": "/data", "runs": "runs", "cache": "cache"},
    }
    for name, value in settings.items():
        *parents, last = name.split("__")
        node = whole
        for parent in parents:
            node = node[parent]
        node[last] = value
    return whole


def results(seed: int = 0, settings: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The content of a ``results.json``."""
    settings = {"seed": seed, **(settings or {})}
    whole = config(**settings)
    return {
        "command": f"python run.py seed={seed} 'a=<script>alert(1)</script>'",
        "commit": "3f2a9c1d5f5f5f5f",
        "commits": ["3f2a9c1d5f5f5f5f"],
        "versions": {"torch": "2.13.0", "threads": "1"},
        "seed": seed,
        "method": whole["method"]["_target_"].split(".")[-2],
        "ratio": whole["method"].get("ratio"),
        "model": whole["model"]["name"],
        "dtype": "bf16",
        "order": whole["order"]["name"],
        "tasks": whole["order"]["tasks"],
        "matrix": [[80.0 + seed, 12.5], [70.0, 60.0 + 2 * seed]],
        "metrics": {"AR": 65.0 + seed, "FWT": 12.5, "BWT": -10.0 - seed, "forgetting": 10.0 + seed},
        "routing": {"accuracy": 0.9 + seed / 100},
        "config": whole,
    } | changes


def write(root: Path, content: dict[str, Any]) -> Path:
    """Put results where a run would."""
    key = hashlib.sha256(json.dumps(numbers(content["config"]), sort_keys=True).encode()).hexdigest()[:8]
    folder = root / content["order"] / content["method"] / key / f"seed={content['seed']}"
    folder.mkdir(parents=True)
    path = folder / "results.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def compared(*roots: Path) -> Comparison:
    finished, unfinished = find_runs(roots)
    return compare(map(read_run, finished), unfinished)


def table(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(groups_csv(comparison))))


def printed(comparison: Comparison, **console: Any) -> str:
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, **console))
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------- mean and deviation


def test_the_deviation_is_that_of_a_sample():
    found = spread([10.0, 20.0, 60.0])
    assert found is not None
    assert (found.mean, found.n) == (30.0, 3)
    assert found.deviation == pytest.approx(math.sqrt((20**2 + 10**2 + 30**2) / 2))


def test_every_metric_and_every_score_is_a_mean_over_the_seeds(tmp_path):
    for seed in (0, 1, 5):
        write(tmp_path, results(seed))
    comparison = compared(tmp_path)
    (row,) = table(comparison)
    mean, deviation = 2.0, math.sqrt((4 + 1 + 9) / 2)
    assert (row["runs"], row["seeds"]) == ("3", "0 1 5")
    for name, middle, factor in (
        ("AR", 65, 1),
        ("BWT", -10, -1),
        ("forgetting", 10, 1),
        ("routing_accuracy", 0.9, 0.01),
    ):
        assert float(row[f"{name}_mean"]) == pytest.approx(middle + factor * mean)
        assert float(row[f"{name}_std"]) == pytest.approx(abs(factor) * deviation)
        assert row[f"{name}_n"] == "3"
    assert (row["FWT_mean"], row["FWT_std"]) == ("12.5", "0.0")
    (first, _), (_, last) = comparison.groups[0].matrix()
    assert (first.mean, first.deviation) == (pytest.approx(80 + mean), pytest.approx(deviation))
    assert (last.mean, last.deviation) == (pytest.approx(60 + 2 * mean), pytest.approx(2 * deviation))
    assert re.search(
        r" see +67\.00 ± 2\.65 +12\.50 ± 0\.00 +−12\.00 ± 2\.65 +12\.00 ± 2\.65 +92\.0 ± 2\.6 +3 ", printed(comparison)
    )


def test_one_seed_has_no_deviation(tmp_path):
    write(tmp_path, results())
    comparison = compared(tmp_path)
    (row,) = table(comparison)
    assert (row["AR_mean"], row["AR_std"], row["AR_n"]) == ("65.0", "", "1")
    line = next(line for line in printed(comparison).splitlines() if "65.00" in line)
    assert "±" not in line
    assert "nan" not in render_comparison(comparison, "compare")


def test_what_was_not_measured_is_left_out_and_the_number_of_seeds_says_so(tmp_path):
    for seed, fwt in ((0, None), (1, 10.0), (2, 14.0)):
        metrics = {"AR": 60.0, "FWT": fwt, "BWT": None, "forgetting": 0.0}
        write(tmp_path, results(seed, metrics=metrics, matrix=[[80.0, fwt], [70.0, 60.0]], routing=None))
    comparison = compared(tmp_path)
    (row,) = table(comparison)
    assert (float(row["FWT_mean"]), row["FWT_n"]) == (12.0, "2")
    assert float(row["FWT_std"]) == pytest.approx(math.sqrt(8))
    assert (row["BWT_mean"], row["BWT_std"], row["BWT_n"]) == ("", "", "0")
    assert row["routing_accuracy_n"] == "0"
    for text in (printed(comparison), Page(render_comparison(comparison, "compare")).text):
        assert "12.00 ± 2.83 (n = 2)" in text
        assert "–" in text
        assert "None" not in text


# ---------------------------------------------------------------------------------------------- groups

METHOD = {"_target_": "see_lightning.methods.replay.Replay", "ratio": 0.1}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("optim__lr", 1e-5, ("1e-05", "0.0002")),
        ("train_size", 100, ("100", "null")),
        ("model__name", "other", ("other", "tiny")),
        ("adapter__targets", ["q_proj"], ("q_proj", "q_proj, v_proj")),
        ("order__tasks", ["<b>bold</b>", "qa"], ("<b>bold</b>, qa", "qa, <b>bold</b>")),
        ("benchmark__version", "2", ("2", "1")),
        ("benchmark__tasks__qa__score", "accuracy", ("accuracy", "rouge_l")),
        ("benchmark__reader__folder", "/data/theirs", ("<data>/theirs", "<data>/mine")),
        ("method__resample", "once", ("once", "per_task")),
        ("method__mine", None, ("null", "–")),
        ("trainer__max_steps", 5, ("5", "–")),
    ],
)
def test_a_setting_that_can_change_a_number_keeps_runs_apart_and_is_shown(tmp_path, name, value, shown):
    for seed in (0, 1):
        write(tmp_path, results(seed))
        write(tmp_path, results(seed, {name: value}))
    comparison = compared(tmp_path)
    dotted = name.replace("__", ".")
    assert (comparison.settings, comparison.further) == ((dotted,), ())
    rows = table(comparison)
    assert [row["seeds"] for row in rows] == ["0 1", "0 1"]
    assert {row[dotted] for row in rows} == set(shown)
    assert Counter(row[dotted] for row in csv.DictReader(io.StringIO(runs_csv(comparison)))) == dict.fromkeys(shown, 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"paths": {"data": "/there", "runs": "x", "cache": "y"}, "benchmark__reader__folder": "/there/mine"},
        {"logger": "csv"},
        {"trainer__accelerator": "gpu", "trainer__devices": 4},
        {"benchmark__licence": "other", "benchmark__tasks__qa__licence": "other"},
        {"data__resample": "once"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_setting_that_changes_no_number_does_not(tmp_path, settings):
    write(tmp_path, results(0))
    write(tmp_path, results(1, settings))
    assert [row["seeds"] for row in table(compared(tmp_path))] == ["0 1"]


def test_a_setting_that_differs_between_methods_is_shown_behind_the_numbers(tmp_path):
    write(tmp_path, results())
    write(tmp_path, results(settings={"method": METHOD, "optim__lr": 1e-3}))
    comparison = compared(tmp_path)
    assert (comparison.settings, comparison.further) == ((), ("optim.lr",))
    assert re.search(r" see +65\.00.* 90\.0 +1 +[0-9a-f]{8} +0\.0002", printed(comparison))
    assert "0.0002" in Page(render_comparison(comparison, "compare")).text
    assert [(row["method"], row["optim.lr"]) for row in table(comparison)] == [("replay", "0.001"), ("see", "0.0002")]


def test_the_settings_of_a_task_that_is_not_learned_are_no_difference(tmp_path):
    write(tmp_path, results())
    write(tmp_path, results(settings={"order__tasks": TASKS[1:]}, matrix=[[50.0]]))
    assert compared(tmp_path).settings == ("order.tasks",)


def test_rows_stand_by_order_method_and_size_of_their_numbers_however_they_were_found(tmp_path):
    for ratio in (1.0, 0.01, 0.1):
        for lr in (1e-5, 2e-4):
            settings = {"method": {**METHOD, "ratio": ratio}, "optim__lr": lr}
            write(tmp_path, results(settings=settings))
            write(tmp_path, results(settings={**settings, "order__name": "an order"}))
    write(tmp_path, results(settings={"method": {"_target_": "see_lightning.methods.mtl.Mtl"}}))
    runs = [read_run(path) for path in find_runs([tmp_path])[0]]
    comparison = compare(runs)
    found = [(row["order"], row["method"], row["ratio"], row["optim.lr"]) for row in table(comparison)]
    replay = [(ratio, lr) for ratio in ("0.01", "0.1", "1.0") for lr in ("1e-05", "0.0002")]
    expected = [("an order", "replay", *pair) for pair in replay]
    assert found == [*expected, ("two", "mtl", "", "0.0002"), *(("two", "replay", *pair) for pair in replay)]
    for shuffling in range(3):
        shuffled = random.Random(shuffling).sample(runs, len(runs))
        assert groups_csv(compare(shuffled)) == groups_csv(comparison)
        assert runs_csv(compare(shuffled)) == runs_csv(comparison)
    assert render_comparison(compare(shuffled), "x") == render_comparison(comparison, "x")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["order=superni_5", "train_size=120", "optim=small", "ratio=1"],
        ["order=superni_10", "method=replay", "data.resample=once", "seed=4"],
        ["method=mtl", "trainer=gpu", "logger=csv"],
        ["adapter=activated_lora", "+trainer.max_steps=3", "order.tasks=[words,news]"],
        ["order=jsonl", "order.tasks=[a]", "benchmark.reader.folder=/elsewhere/mine"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("place", ["/here", "data"])
def test_the_settings_that_count_are_those_of_the_run_key(tmp_path, monkeypatch, overrides, place):
    monkeypatch.setenv("SEE_DATA", place)
    register()
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = hydra.compose("run", overrides=overrides)
    assert isinstance(cfg, DictConfig)
    written = json.loads(json.dumps(OmegaConf.to_container(cfg, resolve=True)))
    before = json.dumps(written)
    assert numbers(written) == json.loads(json.dumps(numbers_config(cfg)))
    assert json.dumps(written) == before, "reading a config changed it"
    content = results(config=written, tasks=written["order"]["tasks"])
    content["matrix"] = [[None] * len(content["tasks"])] * len(content["tasks"])
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert read_run(tmp_path / "results.json").key == run_key(cfg)


# ---------------------------------------------------------------------------------------------- what is found


def test_a_run_is_found_once_by_whatever_path(tmp_path, monkeypatch):
    path = write(tmp_path / "runs", results())
    (tmp_path / "linked").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "round").symlink_to(tmp_path / "runs")
    paths = [path, path.parent, tmp_path / "runs", tmp_path / "linked", tmp_path]
    for given in ([one] for one in paths), [paths, paths[::-1]]:
        for some in given:
            finished, unfinished = find_runs(some)
            assert [file.resolve() for file in finished] == [path]
            assert unfinished == []
    (tmp_path / "runs" / "started").mkdir()
    (tmp_path / "runs" / "started" / "ledger.json").write_text("{}")
    assert find_runs([tmp_path / "linked", tmp_path])[1] == [tmp_path / "linked" / "started"]
    (tmp_path / "holds a link").mkdir()
    (tmp_path / "holds a link" / "linked").symlink_to(tmp_path / "runs")
    assert len(find_runs([tmp_path / "holds a link"])[0]) == 1
    key = read_run(path).key
    assert key == path.parent.parent.name
    monkeypatch.chdir(path.parent)
    assert [read_run(file).key for file in find_runs([Path()])[0]] == [key]


def test_a_file_that_was_carried_elsewhere_has_the_key_of_its_settings(tmp_path):
    content = results()
    for name in ("a.json", "results.json"):
        (tmp_path / name).write_text(json.dumps(content))
    key = read_run(tmp_path / "a.json").key
    assert re.fullmatch("[0-9a-f]{8}", key)
    content["config"]["optim"]["lr"] = 1.0
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert read_run(tmp_path / "results.json").key == key != read_run(tmp_path / "b.json").key


def test_a_copy_counts_once_and_is_named(tmp_path):
    path = write(tmp_path / "runs", results())
    copy = tmp_path / "a copy.json"
    copy.write_bytes(path.read_bytes())
    for given in ([tmp_path / "runs", copy], [copy, tmp_path / "runs"]):
        comparison = compared(*given)
        assert [len(group.runs) for group in comparison.groups] == [1]
        assert comparison.notices == (f"copies, counted once: 1 ({copy} of {path})",)


def test_two_results_of_one_seed_that_differ_are_refused_with_both_names(tmp_path):
    first = write(tmp_path / "one", results())
    second = write(tmp_path / "two", results(metrics={"AR": 1.0, "FWT": None, "BWT": 0.0, "forgetting": 0.0}))
    with pytest.raises(Refusal, match="are both seed 0 of see on two") as told:
        compared(tmp_path)
    assert str(first) in str(told.value)
    assert str(second) in str(told.value)


def test_runs_that_are_not_finished_are_counted_and_named(tmp_path):
    write(tmp_path, results())
    started = [tmp_path / f"two/see/00000000/seed={seed}" for seed in range(12)]
    for folder in started:
        folder.mkdir(parents=True)
        (folder / "ledger.json").write_text("{}")
    (notice,) = compared(tmp_path).notices
    assert notice.startswith("not finished, so not counted: 12 (")
    assert str(started[0]) in notice
    assert "and 2 more" in notice
    (tmp_path / "two" / "see" / "other").mkdir()
    with pytest.raises(Refusal, match=r"no finished run was found; not finished yet: 12 \(.*Give folders"):
        compared(tmp_path / "two/see/00000000")
    with pytest.raises(Refusal, match="no finished run was found. Give folders"):
        compared(tmp_path / "two/see/other")
    with pytest.raises(Refusal, match="there is no .*nowhere"):
        compared(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        ("", "Expecting value"),
        (json.dumps(results())[:-9], "Unterminated string"),
        ("[]", "list"),
        (json.dumps({name: value for name, value in results().items() if name != "metrics"}), "it has no 'metrics'"),
        (json.dumps(results(matrix=[[1.0]])), "does not belong to the tasks qa"),
        (json.dumps(results(matrix=[[float("nan"), 1.0], [1.0, 1.0]])), "NaN is no number"),
        (json.dumps(results(seed=0) | {"config": None}), "config is null, where an object belongs"),
    ],
    ids=["empty", "cut", "list", "no metrics", "another matrix", "nan", "no config"],
)
def test_a_damaged_file_is_refused_by_its_name_with_what_to_do(tmp_path, damaged, told):
    path = write(tmp_path, results())
    path.write_text(damaged)
    with pytest.raises(Refusal, match=told) as error:
        compared(tmp_path)
    assert str(error.value).startswith(f"{path} is damaged: ")
    assert "Delete it and give the run's command again" in str(error.value)


def test_runs_of_one_group_from_different_code_or_machines_are_told(tmp_path):
    write(tmp_path, results(0))
    write(tmp_path, results(1, commits=["3f2a9c1d5f5f5f5f", "77777777aaaa-dirty"]))
    write(tmp_path, results(2, dtype="fp32", versions={"torch": "2.12.0", "threads": "1"}))
    write(tmp_path, results(0, {"optim__lr": 1.0}, commits=["00000000"]))
    notices = compared(tmp_path).notices
    assert len(notices) == 3
    assert all(re.match(r"see on two · ratio 0.1 · [0-9a-f]{8} mixes runs", notice) for notice in notices)
    assert notices[0].endswith("different commit: 3f2a9c1d (seeds 0, 2), 3f2a9c1d then 77777777-dirty (seed 1)")
    assert notices[1].endswith("different dtype: bf16 (seeds 0, 1), fp32 (seed 2)")
    assert notices[2].endswith("different torch: 2.13.0 (seeds 0, 1), 2.12.0 (seed 2)")


# ---------------------------------------------------------------------------------------------- what comes out


def test_every_run_has_a_line_with_its_last_scores_and_where_it_lies(tmp_path):
    paths = [write(tmp_path, results(seed)) for seed in (0, 1)]
    other = results(settings={"order__name": "one", "order__tasks": ["qg"]}, matrix=[[50.0]])
    paths.append(write(tmp_path, other))
    lines = list(csv.DictReader(io.StringIO(runs_csv(compared(tmp_path)))))
    assert [line["order"] for line in lines] == ["one", "two", "two"]
    assert [line["path"] for line in lines] == [str(paths[2]), str(paths[0]), str(paths[1])]
    assert [line["key"] for line in lines] == [Path(line["path"]).parent.parent.name for line in lines]
    assert [line["AR"] for line in lines] == ["65.0", "65.0", "66.0"]
    assert [line["routing_accuracy"] for line in lines] == ["0.9", "0.9", "0.91"]
    assert [line["score_qg"] for line in lines] == ["50.0", "", ""]
    assert [line["score_<b>bold</b>"] for line in lines] == ["", "60.0", "62.0"]
    assert [line["seed"] for line in lines] == ["0", "0", "1"]
    assert lines[0]["command"] == results()["command"]


@pytest.fixture
def many(tmp_path):
    """30 groups, of which one in two has two seeds."""
    for number in range(30):
        for seed in range(1 + number % 2):
            write(tmp_path, results(seed, {"optim__lr": (number + 1) / 1000, "adapter__rank": number}))
    return compared(tmp_path)


def test_the_page_is_well_formed_and_needs_nothing_but_itself(many):
    page = render_comparison(many, "see-lightning compare '<b>runs</b>'")
    parsed = Page(page)
    assert parsed.open == []
    assert not parsed.tags & {"link", "iframe", "img", "object", "b>bold"}
    assert page.count("<script>") == page.count("</script>") == 1
    assert not re.search(r"fetch|import|http|\bon\w+=", page[page.index("<script>") :])
    loading = [value for name, value in parsed.attributes if name in {"src", "href", "xlink:href", "action"}]
    assert all(value.startswith("#") or value.endswith("/results.json") for value in loading)
    loading = [value for value in loading if value.startswith("#")]
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referred = {value.removeprefix("#") for value in loading} | set(re.findall(r"url\(#([^)]*)\)", page))
    assert referred | {value for name, value in parsed.attributes if name == "aria-labelledby"} <= set(ids)
    assert "<b>bold" not in page
    assert "<b>runs" not in page
    assert "see-lightning compare '<b>runs</b>'" in parsed.text


def test_the_page_has_every_row_and_the_matrices_of_the_first(many):
    page = render_comparison(many, "compare")
    text = Page(page).text
    assert page.count("<svg ") == MATRICES == 24
    assert f"Shown are the first {MATRICES} of 30" in text
    for group in many.groups:
        assert group.first.key in text
    assert "65.50 ± 0.71" in text
    assert "±0.7" in page, "the deviation of a score stands in its cell"
    assert "±1.4" in page
    assert results()["command"] in text
    assert len(page) < 600_000


def test_a_file_gets_the_table_whole_and_a_terminal_no_shortened_word(many):
    text = printed(many, force_terminal=False, width=40)
    narrow = printed(many, force_terminal=True, color_system=None, width=70)
    assert "\x1b" not in text
    for group in many.groups:
        assert re.search(rf"see +65\.[05]0.* [12] +{group.first.key} +\d", text)
        assert group.first.key in narrow
    assert "…" not in text + narrow
    assert max(map(len, narrow.splitlines())) <= 70
    assert re.search(r"\n +adapter\.\n +rank,\n +optim\. *\n +method +AR +FWT .* seeds +key +lr\n", text)
    assert re.search(r" see +65\.00 +12\.50 +−10\.00 ", narrow), "metrics come first"


def test_metrics_stand_behind_the_method_and_settings_behind_them(tmp_path):
    write(tmp_path, results())
    write(tmp_path, results(settings={"method": {**METHOD, "ratio": 0.5}, "optim__lr": 1e-3}))
    heads = [column.names for column in columns(compared(tmp_path))]
    metrics = [("AR",), ("FWT",), ("BWT",), ("forgetting",), ("routing accuracy, %",)]
    assert heads == [("method",), *metrics, ("seeds",), ("key",), ("ratio",), ("optim.lr",)]
    write(tmp_path, results(settings={"order__name": "an order"}))
    assert [column.names[0] for column in columns(compared(tmp_path))][:3] == ["order", "method", "AR"]


def test_settings_that_differ_between_the_same_rows_are_one_column_and_what_is_alike_is_told(tmp_path):
    """As ``adapter=activated_lora`` sets several, and calibration has settings that mean nothing without it."""
    activated = {"adapter__activated": True, "adapter__targets": ["q_proj"], "adapter__alpha": 16}
    calibrated = {"_target_": "see_lightning.methods.see.See", "ratio": 0.1, "resample": "per_task", "against": 60}
    for settings in ({}, activated, *({"method": {**calibrated, "calibrate_on": n}} for n in (40, 80))):
        write(tmp_path, results(settings={"test_size": 5, **settings}))
    comparison = compared(tmp_path)
    assert differences(comparison) == [
        ("adapter.activated", "adapter.alpha", "adapter.targets"),
        ("method.calibrate_on",),
    ]
    merged = next(column for column in columns(comparison) if column.names[0] == "adapter.activated")
    assert set(merged.cells) == {"true · 16 · q_proj", "q_proj, v_proj"}
    told = alike(comparison)
    assert told[""]["method.ood_examples"] == "60"
    assert told[""]["test_size"] == "5"
    assert told[""]["method.ratio"] == "0.1"
    assert not set(told[""]) & {name for names in differences(comparison) for name in names}
    everything = {name for group in comparison.groups for name in group.first.settings}
    shown = {name for names in differences(comparison) for name in names} | {*told[""], "order.name"}
    assert {name for name in everything - shown if not name.endswith("_")} == set()
    assert re.search(r"\n alike wherever set: .*test_size 5.*method.ood_examples 60", printed(comparison))
    page = Page(render_comparison(comparison, "x")).text
    assert page.index("test_size") < page.index("65.00"), "above the table"


def test_what_is_alike_in_some_rows_alone_is_told_of_these(tmp_path):
    write(tmp_path, results(settings={"train_size": 5}))
    write(tmp_path, results(settings={"train_size": 7, "order__name": "other"}))
    write(tmp_path, results(settings={"train_size": 7, "order__name": "other", "method": METHOD | {"mine": 1}}))
    comparison = compared(tmp_path)
    assert differences(comparison) == []
    told = alike(comparison)
    assert (told["two"]["train_size"], told["other"]["train_size"]) == ("5", "7")
    assert told[""]["method.mine"] == "1"
    assert "train_size" not in told[""]
    assert " alike in two: train_size 5\n" in printed(comparison)


def test_every_row_leads_to_the_reports_of_its_runs_wherever_the_page_lies(tmp_path):
    paths = [write(tmp_path / "my runs#1", results(seed)) for seed in (0, 1)]
    for path in paths:
        path.with_name("report.html").touch()
    paths.append(write(tmp_path / "my runs#1", results(settings={"optim__lr": 1.0})))
    for folder in (tmp_path / "my runs#1", tmp_path / "else", tmp_path):
        parsed = Page(render_comparison(compared(tmp_path), "x", folder))
        links = [value for name, value in parsed.attributes if name == "href" and not value.startswith("#")]
        assert not any(link.startswith("/") for link in links)
        found = {Path(os.path.normpath(folder / unquote(link))) for link in links}
        assert found == {*(path.with_name("report.html") for path in paths[:2]), paths[2]}, "results where no report is"


def test_notes_beyond_the_first_ten_are_left_to_the_page(tmp_path):
    for number in range(12):
        for seed in (0, 1):
            write(tmp_path, results(seed, {"optim__lr": float(number)}, dtype=("bf16", "fp32")[seed]))
    comparison = compared(tmp_path)
    assert printed(comparison).count("mixes runs") == 10
    assert "note: 2 more notes are on the page" in printed(comparison)
    assert Page(render_comparison(comparison, "compare")).text.count("mixes runs") == 12


def test_the_outputs_lie_in_the_folder_of_all_paths_unless_another_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(Path("runs"), results())
    main(["runs/two", "runs"])
    assert capsys.readouterr().out.splitlines()[-1] == "runs/comparison.html"
    first = {path.name: path.read_bytes() for path in Path("runs").iterdir() if path.is_file()}
    assert set(first) == {"comparison.html", "comparison.csv", "runs.csv"}
    main(["runs/two", "runs"])
    assert {path.name: path.read_bytes() for path in Path("runs").iterdir() if path.is_file()} == first
    main(["runs", "--out", "else/where"])
    assert capsys.readouterr().out.splitlines()[-1] == "else/where/comparison.html"
    assert Path("else/where/comparison.csv").read_bytes() == first["comparison.csv"]
    Path("a file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["runs", "--out", "a file"])
    assert stopped.value.code == 2
    assert "give another folder with --out" in capsys.readouterr().err


def test_the_common_folder_is_found_for_relative_and_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, results())
    assert common_folder([path]) == path.parent
    assert common_folder([Path("a"), Path("b")]) == Path(".")
    assert common_folder([tmp_path / "a/c", Path("a/b")]) == tmp_path / "a"


# ---------------------------------------------------------------------------------------------- thousands of runs

WATCHED: dict[str, Any] = {"root": None, "opened": Counter(), "listed": Counter()}


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Count what is opened and listed below a folder; an audit hook cannot be taken away again, so it can be off."""
    if (
        WATCHED["root"]
        and event in ("open", "os.scandir", "os.listdir")
        and isinstance(arguments[0], str | os.PathLike)
    ):
        path = os.fspath(arguments[0])
        if path.startswith(WATCHED["root"]):
            WATCHED["opened" if event == "open" else "listed"][path] += 1


def test_of_two_thousand_runs_each_file_of_results_is_opened_once_and_no_other_file(tmp_path):
    values = {}
    for number in range(400):
        values[number] = [random.Random(5 * number + seed).uniform(0, 100) for seed in range(5)]
        for seed in range(5):
            metrics = {"AR": values[number][seed], "FWT": 0.0, "BWT": 0.0, "forgetting": 0.0}
            path = write(tmp_path, results(seed, {"optim__lr": float(number)}, metrics=metrics))
            (path.parent / "ledger.json").touch()
            (path.parent / "tasks").mkdir()
    sys.addaudithook(watch)
    WATCHED["root"] = str(tmp_path)
    try:
        comparison = compared(tmp_path)
        page, lines = render_comparison(comparison, "compare"), runs_csv(comparison)
    finally:
        WATCHED["root"] = None
    assert set(WATCHED["opened"].values()) == {1}
    assert len(WATCHED["opened"]) == 2000
    assert all(path.endswith("/results.json") for path in WATCHED["opened"])
    assert not any("tasks" in path for path in WATCHED["listed"])
    assert len(lines.splitlines()) == 2001
    assert len(page) < 2_000_000
    for row in table(comparison):
        expected = values[int(float(row["optim.lr"]))]
        assert float(row["AR_mean"]) == pytest.approx(statistics.mean(expected))
        assert float(row["AR_std"]) == pytest.approx(statistics.stdev(expected))


def test_variants_and_foreign_queries_are_columns_over_seeds_where_a_run_has_them(tmp_path):
    for seed, share in ((0, 0.5), (1, 0.7)):
        variant = {"AR": 40.0 + seed, "routing_accuracy": share, "base_share": 0.0, "scores": {}}
        ood = {
            "base_share": 0.9,
            "per_task": {"a": 0.9, "b": 0.9},
            "input_only": {"base_share": share, "per_task": {"a": share}},
        }
        more = {"variants": {"asked": ["paraphrased_2"], "paraphrased_2": variant}, "ood": ood}
        write(tmp_path, results(seed=seed, **more))
    write(tmp_path, results(settings={"optim__lr": 0.5}))
    comparison = compared(tmp_path)
    cells = {column.names[0]: column.cells for column in columns(comparison)}
    assert cells["routing accuracy paraphrased_2, %"] == ("60.0 ± 14.1", "–")
    assert cells["AR paraphrased_2"] == ("40.50 ± 0.71", "–")
    assert cells["base share ood of 2 tasks, %"] == ("90.0 ± 0.0", "–")
    assert cells["base share ood input_only of 1 tasks, %"] == ("60.0 ± 14.1", "–")
    measured, without = table(comparison)
    assert float(measured["routing_accuracy_paraphrased_2_mean"]) == pytest.approx(0.6)
    assert without["routing_accuracy_paraphrased_2_n"] == "0"
    lines = list(csv.DictReader(io.StringIO(runs_csv(comparison))))
    assert [line["base_share_ood_input_only_of_1_tasks"] for line in lines] == ["0.5", "0.7", ""]
    assert "routing accuracy paraphrased_2" in render_comparison(comparison, "compare")
