"""The figures hold what the files hold: every number in a table beside the picture, and nothing left out in silence."""

import csv
import io
import json
import math
import random
import statistics
from xml.etree import ElementTree

import numpy as np
import pytest

from see_lightning.cli import figures
from see_lightning.cli.compare import main as compare_main
from see_lightning.engine.ledger import Ledger
from see_lightning.reporting import markdown
from see_lightning.reporting.colours import FIRST, FURTHER, assigned, styles
from see_lightning.reporting.comparison.groups import compare
from see_lightning.reporting.figures import capacity
from see_lightning.reporting.figures.figure_data import MANY, sheets
from see_lightning.reporting.figures.latency import latency_figure
from see_lightning.reporting.figures.perplexity import quantile
from see_lightning.reporting.runs import read_run
from see_lightning.reporting.svg import readable_on, short
from tests.reporting.test_comparison import TASKS, results, write

ANSWERS = {"qa": [(2.0, 4), (9.0, 3), (0.5, 2)], "<b>bold</b>": [(4.0, 1), (1.0, 5)]}
ROUTE = """\
sweep,contender,experts,tokens,median_ms,min_ms,max_ms,clean,samples
experts,"ours, lora",2,300,20.5,19.0,25.0,3,3
experts,"ours, lora",8,300,60.0,59.0,61.0,3,3
experts,"PEFT one by one, lora",2,300,40.0,39.0,41.0,3,3
"""


def method(name, ratio=None):
    settings = {"_target_": f"see_lightning.methods.{name}.Some"}
    return {"method": settings if ratio is None else settings | {"ratio": ratio}}


def add(root, name, ratio=None, seed=0, last=(70.0, 60.0), **settings):
    matrix = [[80.0] * len(last)] * (len(last) - 1) + [list(last)]
    return write(root, results(seed, {**method(name, ratio), **settings}, matrix=matrix, routing=None))


def measured(path, answers=None, **changes):
    """Put a ``perplexity.json`` beside results."""
    tasks = {
        task: {"perplexity": 0, "queries": [{"id": str(n), "nll": nll, "tokens": t} for n, (nll, t) in enumerate(some)]}
        for task, some in (answers or ANSWERS).items()
    }
    path.with_name("perplexity.json").write_text(json.dumps({"belongs_to": "this", "tasks": tasks} | changes))


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def words(path):
    """All texts of an SVG, which must parse."""
    return [text for node in ElementTree.parse(path).iter() if (text := (node.text or "").strip())]


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        figures.main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err.splitlines()[-1]


# ---------------------------------------------------------------------------------------------- scores


def test_scores_after_the_last_task_are_means_over_seeds_in_the_order_from_floor_to_see(tmp_path, capsys):
    scores = {0: (70.0, 61.0), 1: (50.0, 63.0), 4: (90.0, 68.0)}
    for seed, last in scores.items():
        add(tmp_path, "see", 0.1, seed, last)
    for name, ratio in (("zeta", None), ("stl", None), ("see", 0.01), ("base", None), ("mtl", None)):
        add(tmp_path, name, ratio)
    add(tmp_path, "replay", 0.1)
    add(tmp_path, "seqft")
    figures.main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / f"two_tasks.{kind}") for kind in ("svg", "csv")]
    rows = table(tmp_path / "two_tasks.csv")
    labels = ["base", "seqft", "replay 10 %", "mtl", "stl", "see 1 %", "see 10 %", "zeta"]
    assert [row["label"] for row in rows] == [label for label in labels for _ in range(3)]
    assert [row["task"] for row in rows[:3]] == [*TASKS, ""]
    mine = [row for row in rows if row["label"] == "see 10 %"]
    means = [statistics.fmean(last) for last in scores.values()]
    for row, values in zip(mine, [*zip(*scores.values(), strict=True), means], strict=True):
        assert (row["order"], row["method"], row["ratio"], row["seeds"], row["score_n"]) == (
            "two",
            "see",
            "0.1",
            "0 1 4",
            "3",
        )
        assert float(row["score_mean"]) == pytest.approx(sum(values) / 3)
        assert float(row["score_std"]) == pytest.approx(np.std(values, ddof=1))
    assert [(row["score_mean"], row["score_std"]) for row in rows[:3]] == [("70.0", ""), ("60.0", ""), ("65.0", "")]
    found = words(tmp_path / "two_tasks.svg")
    assert {*labels, *TASKS, "mean", "two · tiny · 1 to 3 seeds", "lines: standard deviation over seeds"} <= set(found)
    assert sorted(text for text in found if text in labels) == sorted(labels), "each once"


def bars(path):
    """Heights of the bars by colour, in the picture's own points."""
    found = {}
    for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}path"):
        style = dict(part.split(": ") for part in node.get("style", "").split("; ") if ": " in part)
        y = [float(word) for word in node.get("d", "").replace("\n", " ").split() if word not in "MLz"][1::2]
        if node.get("clip-path") and style.get("fill", "none") != "none":
            found.setdefault(style["fill"], []).append(max(y) - min(y))
    return found


def test_bars_are_as_high_as_their_scores_in_the_colours_of_their_methods(tmp_path):
    add(tmp_path, "mtl", last=(25.0, 75.0))
    add(tmp_path, "see", 0.1, last=(50.0, 100.0))
    figures.main([str(tmp_path)])
    found = bars(tmp_path / "two_tasks.svg")
    assert set(found) == {FIRST["mtl"], FIRST["see"]}
    whole = found[FIRST["see"]][1]
    assert [100 * height / whole for height in found[FIRST["mtl"]]] == pytest.approx([25, 75, 50])
    assert [100 * height / whole for height in found[FIRST["see"]]] == pytest.approx([50, 100, 75])
    assert "lines: standard deviation over seeds" not in words(tmp_path / "two_tasks.svg"), "there is but one seed"


def test_a_score_that_is_not_known_is_no_bar_and_has_no_mean(tmp_path):
    add(tmp_path, "mtl", last=(25.0, None))
    add(tmp_path, "see", 0.1)
    figures.main([str(tmp_path)])
    rows = [row for row in table(tmp_path / "two_tasks.csv") if row["method"] == "mtl"]
    assert [(row["score_mean"], row["score_n"]) for row in rows] == [("25.0", "1"), ("", "0"), ("", "0")]
    assert len(bars(tmp_path / "two_tasks.svg")[FIRST["mtl"]]) == 1


def test_each_order_and_each_list_of_tasks_has_a_figure_of_its_own(tmp_path):
    add(tmp_path, "see", 0.1, order__name="a/b c")
    add(tmp_path, "see", 0.1)
    add(tmp_path, "see", 0.1, order__tasks=["qa", "x", "y"], last=(1.0, 2.0, 3.0))
    found = sheets(compare(map(read_run, tmp_path.rglob("results.json"))))
    assert {sheet.name: (sheet.order, sheet.tasks, sheet.labels) for sheet in found} == {
        "a_b_c": ("a/b c", tuple(TASKS), ("see 10 %",)),
        "two": ("two", tuple(TASKS), ("see 10 %",)),
        "two_2": ("two", ("qa", "x", "y"), ("see 10 %",)),
    }


def test_what_was_typed_tells_groups_of_one_method_apart(tmp_path):
    for rank, seed in ((4, 1), (8, 1), (8, 2)):
        path = add(tmp_path, "see", 0.1, seed, adapter__rank=rank)
        content = json.loads(path.read_text())
        content["command"] = f"python run.py method=see adapter.rank={rank} seed={seed} trainer=ddp ood=wide ratio=0.1"
        path.write_text(json.dumps(content))
    add(tmp_path, "mtl")
    (sheet,) = sheets(compare(map(read_run, tmp_path.rglob("results.json"))))
    assert sheet.labels == ("mtl", "see 10 %, adapter.rank=4", "see 10 %, adapter.rank=8")


def test_what_all_of_a_method_were_typed_with_tells_none_apart(tmp_path):
    for rank in (4, 8):
        path = add(tmp_path, "stl", adapter__rank=rank)
        own = ["adapter.rank=4"] if rank == 4 else []
        content = json.loads(path.read_text()) | {"command": " ".join(["python run.py experiment=a method=stl", *own])}
        path.write_text(json.dumps(content))
    (sheet,) = sheets(compare(map(read_run, tmp_path.rglob("results.json"))))
    assert sheet.labels == ("stl, adapter.rank=4", "stl")


def test_settings_tell_groups_of_one_method_apart_and_keys_do_where_no_setting_does(tmp_path):
    for rank in (4, 8):
        add(tmp_path, "see", 0.1, adapter__rank=rank)
    (sheet,) = sheets(compare(map(read_run, tmp_path.rglob("results.json"))))
    assert sheet.labels == ("see 10 %, adapter.rank 4", "see 10 %, adapter.rank 8")
    first = next(tmp_path.rglob("results.json"))
    other = tmp_path / "two" / "see" / "0123abcd" / "seed=0"
    other.mkdir(parents=True)
    (other / "results.json").write_text(first.read_text() + "\n")
    (sheet,) = sheets(compare(map(read_run, tmp_path.rglob("results.json"))))
    assert len(set(sheet.labels)) == 3
    assert sum("0123abcd" in label for label in sheet.labels) == 1


# ---------------------------------------------------------------------------------------------- perplexity


def test_the_table_of_perplexity_holds_the_whole_and_the_distribution_over_all_seeds(tmp_path, capsys):
    more = {"qa": [(30.0, 10)], "<b>bold</b>": [(0.0, 1)]}
    for seed, answers in ((0, ANSWERS), (1, more)):
        measured(add(tmp_path, "see", 0.1, seed), answers)
    mtl, stl = add(tmp_path, "mtl"), add(tmp_path, "stl")
    figures.main([str(tmp_path)])
    assert capsys.readouterr().err.splitlines() == [
        f"note: no perplexity is known of 2 ({mtl.parent}, {stl.parent}); see-lightning perplexity RUN_DIR measures it"
    ]
    rows = table(tmp_path / "two_perplexity.csv")
    assert [(row["label"], row["task"]) for row in rows] == [("see 10 %", task) for task in TASKS]
    for row in rows:
        some = ANSWERS[row["task"]] + more[row["task"]]
        nll, tokens = map(sum, zip(*some, strict=True))
        assert (row["answers"], row["tokens"]) == (str(len(some)), str(tokens))
        assert float(row["perplexity"]) == pytest.approx(math.exp(nll / tokens), abs=1e-6)
        single = [math.exp(nll / tokens) for nll, tokens in some]
        for name, percent in (("min", 0), ("p5", 5), ("p25", 25), ("p50", 50), ("p75", 75), ("p95", 95), ("max", 100)):
            assert float(row[name]) == pytest.approx(np.percentile(single, percent), abs=1e-6)
    found = words(tmp_path / "two_perplexity.svg")
    assert found.count("see 10 %") == 1
    assert "mtl" not in found
    assert set(TASKS) <= set(found)


def test_the_score_stands_over_what_is_kept_after_each_task(tmp_path, capsys):
    for seed, weights in ((0, [1, 2]), (1, [3, 6])):
        path = add(tmp_path, "moses", seed=seed, last=(70.0, 60.0 + 10 * seed))
        kept = {"pool": [9, 9], "weights": [w * 2**20 for w in weights], "whatever": [2**19, 2**20]}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"storage": kept}))
    joint = add(tmp_path, "mtl", last=(50.0, 70.0))
    at_once = {"storage": {"pool": [9], "weights": [2**20]}, "matrix": [[None, None], [50.0, 70.0]]}
    joint.write_text(json.dumps(json.loads(joint.read_text()) | at_once))
    add(tmp_path, "seqft")
    figures.main([str(tmp_path)])
    assert "two_capacity.svg" in capsys.readouterr().out
    rows = table(tmp_path / "two_capacity.csv")
    (of_all,) = [row for row in rows if row["method"] == "mtl"]
    assert (of_all["learned"], float(of_all["score"]), float(of_all["mib"])) == ("2", 60.0, 1.0)
    rows = [row for row in rows if row != of_all]
    assert [row["method"] for row in rows] == ["moses", "moses"], "a run that does not say what it keeps is not drawn"
    assert [row["learned"] for row in rows] == ["1", "2"]
    assert [float(row["score"]) for row in rows] == [80.0, (65 + 70) / 2]
    assert [float(row["weights_mib"]) for row in rows] == [2.0, 4.0]
    assert [float(row["mib"]) for row in rows] == [2.5, 5.0]
    assert [float(row["whatever_mib"]) for row in rows] == [0.5, 1.0]
    assert of_all["whatever_mib"] == ""
    shown = words(tmp_path / "two_capacity.svg")
    assert any(text.startswith("MiB kept") for text in shown)
    assert "moses" in " ".join(shown)
    assert "seqft" not in " ".join(shown)


@pytest.mark.parametrize(("larger", "scale", "tick"), [(300, "log", "100"), (3, "linear", "2.50")])
def test_sizes_far_apart_stand_on_a_logarithmic_axis(tmp_path, monkeypatch, larger, scale, tick):
    seen, finish = [], capacity.finish

    def finished(figure, axes, *more):
        seen.append(axes.get_xscale())
        return finish(figure, axes, *more)

    monkeypatch.setattr(capacity, "finish", finished)
    for method, size in (("moses", 1), ("see", larger)):
        path = add(tmp_path, method, 0.1 if method == "see" else None)
        kept = {"pool": [9, 9], "weights": [size * 2**20] * 2}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"storage": kept}))
    figures.main([str(tmp_path)])
    assert seen == [scale]
    assert tick in words(tmp_path / "two_capacity.svg")


def test_what_keeps_no_weights_has_a_figure_and_a_row_too(tmp_path):
    path = add(tmp_path, "icl_replay", 0.1)
    kept = {"pool": [2**20, 2**20], "state": [2**20, 2**21]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"storage": kept}))
    figures.main([str(tmp_path)])
    assert [float(row["state_mib"]) for row in table(tmp_path / "two_capacity.csv")] == [1.0, 2.0]
    shown = markdown.capacity(compare(map(read_run, [path])).groups)
    assert "| 2.00 | 2.00 | 200.0 | 100.0 |" in shown
    assert "weights" not in shown, "a column without any number is left out"


def test_without_anyone_that_says_what_it_keeps_there_is_no_figure_of_it(tmp_path):
    add(tmp_path, "seqft")
    figures.main([str(tmp_path)])
    assert not list(tmp_path.glob("*capacity*"))


def test_without_any_perplexity_there_is_no_figure_of_it(tmp_path):
    add(tmp_path, "see", 0.1)
    figures.main([str(tmp_path)])
    assert not list(tmp_path.glob("*perplexity*"))


def test_perplexities_of_another_state_of_a_run_are_not_drawn(tmp_path, capsys):
    path = add(tmp_path, "see", 0.1)
    about = {"data": {"qa": "1"}}
    content = {"about": about, "stages": {"01-qa": {"trained": None, "answers": {"qa": {"sha256": "2"}}}}}
    path.with_name("ledger.json").write_text(json.dumps(content))
    ledger = Ledger(path.parent).read()
    measured(path, belongs_to=ledger.digest())
    figures.main([str(tmp_path)])
    assert (tmp_path / "two_perplexity.svg").exists()
    assert capsys.readouterr().err == ""
    measured(path, belongs_to="that of another day")
    figures.main([str(tmp_path)])
    assert "no perplexity is known of" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"tasks": {}, "belongs_to": ""}', '{"tasks": {"qa": {"queries": [{}]}}}'])
def test_a_damaged_file_of_perplexities_is_named(tmp_path, capsys, text):
    path = add(tmp_path, "see", 0.1).with_name("perplexity.json")
    path.write_text(text)
    told = refused(capsys, tmp_path)
    assert told.startswith(f"{path} is damaged: ")
    assert told.endswith("Delete it and measure it again.")


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_quantiles_are_numpys(size):
    values = sorted(random.Random(size).choices(range(100), k=size))
    for percent in (0, 5, 25, 50, 75, 95, 100):
        assert quantile(values, percent) == pytest.approx(np.percentile(values, percent))


# ---------------------------------------------------------------------------------------------- transfer

QA, BOLD = TASKS
MATRIX = {"base": {QA: 5.0, BOLD: 0.0}, QA: {QA: 80.0, BOLD: 12.5}, BOLD: {QA: 20.0, BOLD: 50.0}}


def transferred(path, matrix=MATRIX, **changes):
    """Put a ``transfer.json`` beside results."""
    own = {task: task for task in TASKS}
    path.with_name("transfer.json").write_text(
        json.dumps({"belongs_to": "this", "own": own, "size": None, "transfer": matrix} | changes)
    )


def fills(path):
    """Colours of an SVG's shapes in the order of drawing, without the ground."""
    styles = [node.get("style", "") for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}path")]
    found = [dict(part.split(": ") for part in style.split("; ") if ": " in part) for style in styles]
    return [
        (style["fill"], style.get("stroke")) for style in found if style.get("fill", "none") not in ("none", "#ffffff")
    ]


def test_a_transfer_matrix_is_a_map_for_each_run_and_a_line_for_each_cell(tmp_path, capsys):
    other = {adapter: {task: score / 2 for task, score in row.items()} for adapter, row in MATRIX.items()}
    for seed, matrix, size in ((0, MATRIX, None), (4, other, 7)):
        transferred(add(tmp_path, "see", 0.1, seed), matrix, size=size)
    add(tmp_path, "mtl")
    figures.main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        str(tmp_path / f"two_transfer.{kind}") for kind in ("svg", "csv")
    ]
    rows = table(tmp_path / "two_transfer.csv")
    assert {row["label"] for row in rows} == {"see 10 %"}
    found = {(row["seed"], row["adapter"], row["task"]): float(row["score"]) for row in rows}
    assert found == {
        (seed, adapter, task): matrix[adapter][task]
        for seed, matrix in (("0", MATRIX), ("4", other))
        for adapter in MATRIX
        for task in TASKS
    }
    assert {(row["adapter"], row["task"]) for row in rows if row["own"] == "1"} == {(QA, QA), (BOLD, BOLD)}
    shown = words(tmp_path / "two_transfer.svg")
    for matrix in (MATRIX, other):
        assert {f"{score:.1f}" for row in matrix.values() for score in row.values()} <= set(shown)
    assert "mean of own experts 65.00 (framed), of others 16.25" in shown
    assert "mean of own experts 32.50 (framed), of others 8.12" in shown
    assert "see 10 % · seed 0 · two · tiny" in shown
    assert "see 10 % · seed 4 · two · tiny · first 7 queries of each task" in " ".join(shown)
    assert {(row["seed"], row["size"]) for row in rows} == {("0", ""), ("4", "7")}
    first, second = (fills(tmp_path / "two_transfer.svg")[start : start + 6] for start in (0, 6))
    assert first == second, "a cell is shaded by its share of the best of its task"
    assert [stroke is not None for _, stroke in first] == [False, False, True, False, False, True]
    assert first[2][0] == first[5][0], "both are the best of their tasks"


def test_tasks_that_share_an_expert_are_framed_in_its_row(tmp_path):
    matrix = {"base": MATRIX["base"], QA: MATRIX[QA]}
    transferred(add(tmp_path, "sema"), matrix, own={QA: QA, BOLD: QA})
    figures.main([str(tmp_path)])
    shown = words(tmp_path / "two_transfer.svg")
    assert "mean of own experts 46.25 (framed), of others –" in shown, "there is no other"
    assert [stroke is not None for _, stroke in fills(tmp_path / "two_transfer.svg")] == [False, False, True, True]


def test_without_any_transfer_matrix_there_is_no_figure_of_it_and_one_of_another_state_is_told(tmp_path, capsys):
    path = add(tmp_path, "see", 0.1)
    figures.main([str(tmp_path)])
    assert not list(tmp_path.glob("*transfer*"))
    assert len(capsys.readouterr().err.splitlines()) == 1, "of perplexity"
    content = {"about": {"data": {"qa": "1"}}, "stages": {"01-qa": {"trained": None, "answers": {}}}}
    path.with_name("ledger.json").write_text(json.dumps(content))
    transferred(path)
    figures.main([str(tmp_path)])
    told = f"note: {path.with_name('transfer.json')} was measured before the run became what it is; give see-lightning transfer {path.parent} again, or delete it."
    assert told in capsys.readouterr().err.splitlines()
    assert not list(tmp_path.glob("*transfer*"))
    transferred(path, belongs_to=Ledger(path.parent).read().digest())
    figures.main([str(tmp_path)])
    assert (tmp_path / "two_transfer.svg").exists()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        {"own": {QA: QA}},
        {"transfer": {"base": MATRIX["base"]}},
        {"transfer": {QA: {QA: 1}}},
        {"own": {QA: QA, BOLD: QA}, "size": None, "transfer": [["base", QA]]},
    ],
)
def test_a_damaged_transfer_matrix_is_named(tmp_path, capsys, content):
    path = add(tmp_path, "see", 0.1)
    if isinstance(content, str):
        path.with_name("transfer.json").write_text(content)
    else:
        transferred(path, **content)
    assert refused(capsys, tmp_path).startswith(f"{path.with_name('transfer.json')} is damaged: ")


# ---------------------------------------------------------------------------------------------- latency


def test_latency_is_drawn_from_what_the_benchmark_wrote(tmp_path):
    add(tmp_path, "see", 0.1)
    file = tmp_path / "route.csv"
    file.write_text(ROUTE)
    figures.main([str(tmp_path / "two"), "--latency", str(file), "--out", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "two_tasks.svg", "two_tasks.csv", "latency.svg", "latency.csv",
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(ROUTE)))
    assert table(tmp_path / "out" / "latency.csv") == [
        {name: value for name, value in row.items() if name not in ("clean", "samples")} for row in rows
    ]
    found = words(tmp_path / "out" / "latency.svg")
    assert {"ours, lora", "PEFT one by one, lora", "experts asked, prompts of 300 tokens", "2", "8"} <= set(found)
    assert not any("tokens of the prompt" in text for text in found), "prompts' lengths were not measured"


def test_points_of_latency_are_medians_and_their_lines_reach_from_the_fastest_to_the_slowest():
    (axes,) = latency_figure(list(csv.DictReader(io.StringIO(ROUTE)))).axes
    ours, peer = axes.containers
    assert ours.lines[0].get_xydata().tolist() == [[2, 20.5], [8, 60]]
    (lines,) = ours.lines[2]
    assert [segment.tolist() for segment in lines.get_segments()] == [[[2, 19], [2, 25]], [[8, 59], [8, 61]]]
    assert peer.lines[0].get_xydata().tolist() == [[2, 40]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no measured times; give a file that benchmarks/route.py --csv wrote."),
        ("a,b\n1,2\n", ", line 2 is not one that benchmarks/route.py --csv wrote; its columns are sweep, contender, experts,"),
        (ROUTE.replace("59.0", "fast"), ", line 3 is not one that"),
        (ROUTE.replace("59.0", "-1"), ", line 3 is not one that"),
        (ROUTE.replace("experts,\"PEFT", "people,\"PEFT"), ", line 4 is not one that"),
        (None, "cannot be read: No such file or directory."),
    ],
)  # fmt: skip
def test_a_file_without_latencies_is_refused_and_nothing_is_written(tmp_path, capsys, text, told):
    add(tmp_path, "see", 0.1)
    file = tmp_path / "route.csv"
    if text is not None:
        file.write_text(text)
    line = refused(capsys, tmp_path / "two", "--latency", file)
    assert line.startswith(str(file))
    assert told in line
    assert not list((tmp_path / "two").glob("*.svg"))


# ---------------------------------------------------------------------------------------------- all figures


def test_the_same_files_make_the_same_bytes(tmp_path):
    for name, ratio in (("see", 0.1), ("mtl", None)):
        for seed in (0, 1):
            measured(add(tmp_path / "runs", name, ratio, seed, last=(50.0 + seed, 60.0)))
    (tmp_path / "route.csv").write_text(ROUTE)
    made = []
    for folder in ("one", "two"):
        figures.main(
            [str(tmp_path / "runs"), "--out", str(tmp_path / folder), "--latency", str(tmp_path / "route.csv")]
        )
        made.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert made[0] == made[1]
    assert len(made[0]) == 6
    for name, content in made[0].items():
        if name.endswith(".svg"):
            assert b"fill: #ffffff" in content, "a white ground, whatever the page's"
            assert b"dc:date" not in content


def test_names_are_shown_as_they_are_and_not_as_markup_or_mathematics(tmp_path):
    tasks = ["$x_1$", "<script>", "a very long name of a task, as some are"]
    measured(add(tmp_path, "see", 0.1, order__tasks=tasks, last=(1.0, 2.0, 3.0)), {task: [(1.0, 2)] for task in tasks})
    figures.main([str(tmp_path)])
    for kind in ("tasks", "perplexity"):
        assert {"$x_1$", "<script>", "a very long name of a…"} <= set(words(tmp_path / f"two_{kind}.svg"))


def test_no_runs_are_refused_as_in_a_comparison(tmp_path, capsys):
    told = refused(capsys, tmp_path)
    with pytest.raises(SystemExit):
        compare_main([str(tmp_path)])
    assert told == capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("no finished run was found.")
    assert refused(capsys, tmp_path / "nowhere").startswith(f"there is no {tmp_path / 'nowhere'}; give folders")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_are_not_finished_are_told(tmp_path, capsys):
    add(tmp_path, "see", 0.1)
    started = tmp_path / "two" / "see" / "00000000" / "seed=0"
    started.mkdir(parents=True)
    (started / "ledger.json").write_text("{}")
    figures.main([str(tmp_path)])
    assert f"note: not finished, so not counted: 1 ({started})" in capsys.readouterr().err


def test_groups_of_one_method_go_from_light_to_its_own_colour():
    found = [style.colour for style in styles(["see", "new", "see", "see", "mtl", "newer"])]
    assert (found[3], found[4]) == (FIRST["see"], FIRST["mtl"])
    brightness = [sum(int(colour[n : n + 2], 16) for n in (1, 3, 5)) for colour in (found[0], found[2], found[3])]
    assert brightness == sorted(set(brightness), reverse=True)
    assert len(set(found)) == len(found)
    assert readable_on([0.0, 0.45, 0.7]) == "white"


def test_forty_methods_have_forty_colours_and_keep_them_in_any_company():
    others = [f"rival {n}" for n in range(40)]
    every = [*FIRST, *others]
    drawn = dict(zip(every, styles(every), strict=True))
    assert len({style.colour for style in drawn.values()}) == len(every)
    for some in (others[::-1], others[20:23], ["rival 7"], [*FIRST][::3]):
        assert styles(some) == [drawn[method] for method in some]
    assert {drawn[method].hatch for method in FIRST} == {""}
    assert all(drawn[method].hatch and drawn[method].marker != "o" for method in others)


def test_configured_methods_have_well_spaced_colours_which_a_new_one_seldom_moves():
    others = [f"rival {n}" for n in range(30)]
    found = assigned([*FIRST, *others])
    assert list(found) == sorted(others)
    assert set(found.values()) <= set(FURTHER)
    assert len({*found.values()}) == len(others)
    more = assigned([*others, "a newcomer"])
    assert sum(found[method] != more[method] for method in others) <= 3
    assert len({*assigned(map(str, range(60))).values()}) == len(FURTHER), (
        "the others have colours by their names alone"
    )


def many(root):
    """More groups than one plot shows: the first two have the best and an unknown last score."""
    for number in range(MANY + 1):
        last = {0: (90.0, 70.0), 1: (50.0, None)}.get(number, (60.0, 30.0 + number))
        path = add(root, f"method{number}", 0.1, last=last)
        kept = {"pool": [9, 9], "weights": [2**20, (number + 1) * 2**20]}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"storage": kept}))
    figures.main([str(root)])
    return ["method0 10 %", *(f"method{number} 10 %" for number in range(MANY, 1, -1))]


def test_many_groups_are_rows_of_a_heat_map_the_best_mean_above(tmp_path):
    ranked = many(tmp_path)
    shown = words(tmp_path / "two_tasks.svg")
    assert [text for text in shown if text.startswith("method")] == [*ranked, "method1 10 %"]
    rows = [shown[place : place + 3] for place in range(shown.index("90.0"), shown.index("90.0") + 3 * (MANY + 1), 3)]
    assert rows[0] == ["90.0", "70.0", "80.0"]
    assert rows[1] == ["60.0", f"{30 + MANY:.1f}", f"{45 + MANY / 2:.1f}"]
    assert rows[-1] == ["50.0", "·", "·"], "what is not known is no zero"
    assert "mean" in shown
    assert len(table(tmp_path / "two_tasks.csv")) == 3 * (MANY + 1)


def test_many_groups_have_a_small_plot_each_the_best_last_score_first(tmp_path):
    ranked = many(tmp_path)
    shown = words(tmp_path / "two_capacity.svg")
    drawn = [text for text in shown if text.startswith("method")]
    assert drawn == [ranked[0], "method1 10 %", *ranked[1:]], "of one without a last mean, 80 after its first task"


def test_two_runs_that_only_the_end_of_a_label_tells_apart_are_told_apart(tmp_path):
    long = " ".join(f"benchmark.tasks.qa.something_{n}=1" for n in range(4))
    for rank in (4, 8):
        path = add(tmp_path, "see", 0.1, settings={"adapter__rank": rank})
        content = json.loads(path.read_text())
        content["command"] = f"python run.py {long} adapter.rank={rank}"
        content["command"] = content["command"].replace("something_0", f"something_{rank}")
        path.write_text(json.dumps(content))
    figures.main([str(tmp_path)])
    labels = {row["label"] for row in table(tmp_path / "two_tasks.csv")}
    assert len(labels) == 2
    assert all(len(label) > 40 for label in labels)
    shown = " ".join(words(tmp_path / "two_tasks.svg"))
    assert all(label in shown for label in labels)


def test_names_that_one_cut_makes_alike_are_told_apart():
    names = ["task565_circa_answer_generation", "task565_circa_answer_classification", "a" * 30, "b"]
    assert short(names) == ["task565_ci…_generation", "task565_ci…ssification", "a" * 21 + "…", "b"]
    alike = [f"{'a' * 20}{n}{'b' * 20}" for n in range(9)]
    assert len(set(short(alike))) == 9
    assert max(map(len, short(alike))) <= 22
