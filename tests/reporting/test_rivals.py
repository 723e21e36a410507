"""A table and a picture of many methods: what each scores, trains, keeps and costs, and nothing that was not measured."""

import csv
import itertools
import math
import random
import statistics

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from see_lightning.cli import figures
from see_lightning.reporting.markdown import fill
from see_lightning.reporting.plots import label_points
from see_lightning.reporting.rivals import hook_s, hook_tokens, kept_bytes, stored_rows, trained_weights, training_s
from tests.reporting.test_comparison import results, write
from tests.reporting.test_figures import words

MARK = "<!-- rivals: two -->\n<!-- end -->\n"
NOTHING = {
    "counts": {"train_tokens": [], "method_tokens": {}, "trained_weights": [], "stored_rows": [], "stored_bytes": []},
    "timing": {"train_s": [], "method_s": {}, "method_step_s": {}},
    "storage": {},
}


def add(root, name, seed=0, *, AR=50.0, typed="", train_size=60, rank=8, **changes):
    """A run with its costs: two stages of 3 s and 5 s, 1 s of hooks beside them, 512 KiB of weights at the end."""
    settings = {
        "method": {"_target_": f"see_lightning.methods.{name}.Some"},
        "train_size": train_size,
        "adapter__rank": rank,
    }
    content = results(seed, settings, routing=None)
    content["command"] = f"python run.py method={name} experiment=rivals{typed} seed={seed}"
    content["metrics"]["AR"] = AR
    costs = {
        "counts": {
            "train_tokens": [1500, 2000],
            "method_tokens": {"end_task": [100, None], "penalty": [0, 50]},
            "trained_weights": [1000, 3000],
            "stored_rows": [0, 12],
            "stored_bytes": [0, 2048],
        },
        "timing": {
            "train_s": [3.0, 5.0],
            "method_s": {"begin_task": [0.25, 0.25], "end_task": [0.5, None]},
            "method_step_s": {"penalty": [0.5, 1.0]},
        },
        "storage": {"pool": [2**18, 2**18], "weights": [2**18, 2**19]},
    }
    return write(root, content | costs | changes)


def table(root, mark=MARK):
    text, left_out = fill(mark, root)
    heads, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    return [dict(zip(heads, row, strict=True)) for row in rows], left_out


def test_a_row_has_the_scores_and_the_costs_of_a_method(tmp_path):
    add(tmp_path, "seqft")
    timing = {
        "train_s": [10.0, 9.0],
        "method_s": {"assign": [9.0], "end_task": [5.0]},
        "method_step_s": {"penalty": [4.0]},
    }
    add(tmp_path, "ewc", AR=60.0, timing=timing)
    rows, left_out = table(tmp_path)
    assert [row["run.py"] for row in rows] == ["`method=ewc experiment=rivals`", "`method=seqft experiment=rivals`"]
    assert left_out == []
    assert rows[1] == {
        "run.py": "`method=seqft experiment=rivals`",
        **{"AR": "50.00", "FWT": "12.50", "BWT": "−10.00", "forgetting": "10.00"},
        "trained weights a task, k": "2.0",
        "kept a task, KiB": "257.0",
        "stored examples": "12",
        "training tokens, k": "3.5",
        "tokens in hooks, k": "0.1",
        "time in hooks, s": "2.5",
        "cost / seqft": "1.00",
        "seeds": "0",
        "commit": "`3f2a9c1d`",
    }
    assert rows[0]["time in hooks, s"] == "18.0"
    assert rows[0]["cost / seqft"] == f"{(24 / 6) / (9 / 6.5):.2f}", (
        "24 s, 6 without hooks; those of seqft are 9 and 6.5"
    )


def test_routing_has_a_column_where_some_method_routes(tmp_path):
    add(tmp_path, "seqft")
    add(tmp_path, "see", AR=70.0, routing={"accuracy": 0.975})
    rows, _ = table(tmp_path)
    assert [row["routed right, %"] for row in rows] == ["97.5", "–"]


def tokens(*number):
    return {"counts": {**NOTHING["counts"], "train_tokens": list(number)}}


def plain(seconds):
    return {"timing": {"train_s": [seconds], "method_s": {}, "method_step_s": {}}}


def test_seeds_are_one_row_with_their_spread(tmp_path):
    for seed, number in ((0, 800), (1, 1200)):
        add(tmp_path, "seqft", seed, **plain(9.0), **tokens(number))
    add(tmp_path, "ewc", AR=60.0, **plain(9.0), **tokens(2000))
    rows, _ = table(tmp_path)
    assert rows[1]["cost / seqft"] == f"1.00 ± {statistics.stdev([0.8, 1.2]):.2f}"
    assert rows[1]["seeds"] == "0, 1"
    assert rows[0]["cost / seqft"] == "2.00", "by the mean over the seeds of seqft"


def test_seconds_of_two_runs_are_not_compared_since_machines_differ(tmp_path):
    add(tmp_path, "seqft", AR=40.0, **plain(1646.0))
    add(tmp_path, "stl", AR=60.0, **plain(559.0))
    rows, _ = table(tmp_path)
    assert [row["cost / seqft"] for row in rows] == ["1.00", "1.00"]


def test_costs_are_compared_on_the_same_rows_alone_and_with_the_plainest_seqft(tmp_path):
    wide = {"rank": 64, "typed": " adapter.rank=64"}
    add(tmp_path, "seqft", AR=40.0, **wide, **plain(1.0), **tokens(400))
    add(tmp_path, "seqft", **plain(1.0), **tokens(100))
    add(tmp_path, "ewc", AR=60.0, **plain(1.0), **tokens(200))
    add(tmp_path, "ewc", AR=30.0, train_size=120, **plain(1.0), **tokens(200))
    rows, _ = table(tmp_path)
    assert [(row["AR"], row["cost / seqft"]) for row in rows] == [
        ("60.00", "2.00"),
        ("50.00", "1.00"),
        ("40.00", "4.00"),
        ("30.00", "–"),
    ]


def test_a_run_of_an_older_version_has_no_costs_and_they_are_no_zeros(tmp_path):
    old = {
        "counts": {"train_tokens": [1500, 2000], "trained_weights": [None, None], "stored_bytes": [None, None]},
        "timing": {"train_s": [3.0, 5.0]},
    }
    assert [cost(old) for cost in (trained_weights, stored_rows, kept_bytes, hook_tokens, hook_s, training_s)] == [
        None
    ] * 6
    add(tmp_path, "seqft", **old)
    ((row,), _) = table(tmp_path)
    assert set(row) == {"run.py", "AR", "FWT", "BWT", "forgetting", "training tokens, k", "seeds", "commit"}


def test_the_base_model_trains_and_keeps_nothing(tmp_path):
    add(tmp_path, "seqft")
    add(tmp_path, "base", AR=10.0, **NOTHING)
    row = table(tmp_path)[0][1]
    assert [row[head] for head in ("trained weights a task, k", "kept a task, KiB", "stored examples")] == [
        "0.0",
        "0.0",
        "0",
    ]
    assert row["cost / seqft"] == "0.00"


# ---------------------------------------------------------------------------------------------- the picture


def drawn(root):
    figures.main([str(root), "--out", str(root / "out")])
    text = (root / "out" / "two_rivals.csv").read_text(encoding="utf-8").splitlines()
    return {row["method"]: row for row in csv.DictReader(text)}, words(root / "out" / "two_rivals.svg")


def test_the_picture_names_every_method_and_its_table_has_the_costs(tmp_path):
    for seed, AR in ((0, 40.0), (1, 50.0)):
        add(tmp_path, "seqft", seed, AR=AR)
    add(
        tmp_path,
        "ewc",
        AR=60.0,
        counts={"train_tokens": [7], "trained_weights": [9], "stored_bytes": [0], "stored_rows": [0]},
    )
    add(tmp_path, "replay", AR=65.0)
    add(tmp_path, "base", AR=10.0, **NOTHING)
    rows, shown = drawn(tmp_path)
    assert list(rows) == ["base", "seqft", "replay", "ewc"]
    seqft = rows["seqft"]
    assert (seqft["seeds"], seqft["AR_mean"], float(seqft["AR_std"])) == ("0 1", "45.0", pytest.approx(math.sqrt(50)))
    assert [float(seqft[name]) for name in ("kept_bytes", "stored_rows", "trained_weights", "training_tokens")] == [
        *(2**19 + 2048, 12, 2000, 3500)
    ]
    assert [float(seqft[name]) for name in ("hook_tokens", "hook_s", "training_s", "cost_by_seqft")] == [
        *(150, 2.5, 9.0, 1.0)
    ]
    assert rows["ewc"]["hook_tokens"] == ""
    assert {"seqft", "ewc", "replay", "base: keeps nothing", "two · tiny · 1 to 2 seeds"} <= set(shown)
    assert "MiB kept after the last task; hollow: needs examples of past tasks" in shown


def test_groups_of_one_method_are_told_apart_in_the_picture(tmp_path):
    for rank in (8, 64):
        add(tmp_path, "seqft", rank=rank, typed=f" adapter.rank={rank}")
    add(tmp_path, "ewc")
    add(tmp_path, "replay")
    _, shown = drawn(tmp_path)
    assert {"ewc", "replay", "seqft, adapter.rank=8", "seqft, adapter.rank=64"} <= set(shown)


def test_there_is_no_picture_of_few_methods_or_of_results_without_costs(tmp_path):
    add(tmp_path, "seqft")
    add(tmp_path, "ewc")
    for name in ("replay", "agem"):
        add(tmp_path, name, counts={"train_tokens": [1, 2]})
    figures.main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"two_{kind}.{form}" for kind in ("tasks", "capacity") for form in ("svg", "csv")
    }


def test_names_beside_points_overlap_neither_each_other_nor_a_point():
    numbers = random.Random(0)
    points = {f"method_{n}": (numbers.choice([1, 1.1, 5]), numbers.gauss(35, 3)) for n in range(40)}
    figure = Figure(figsize=(9.6, 6.4))
    axes = figure.add_axes((0.07, 0.1, 0.91, 0.84))
    axes.set(xscale="log", xlim=(0.1, 50), ylim=(20, 50))
    label_points(axes, points)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Of annotations, the extent of the text alone, without the line to the point.
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) == 40
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    places = [axes.transData.transform(point) for point in points.values()]
    assert not [place for place in places for box in boxes if box.contains(*place)]
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_scores_are_shares_of_those_of_the_experts_on_the_same_rows(tmp_path):
    def scored(name, last, seed=0, **more):
        add(tmp_path, name, seed, matrix=[[0.0, 0.0], last], **more)

    scored("stl", [40.0, 80.0])
    scored("stl", [60.0, 80.0], seed=1)
    scored("stl", [10.0, 10.0], typed=" optim.lr=1", rank=4)
    scored("merge", [25.0, 60.0])
    scored("other", [25.0, 60.0], train_size=120)
    rows, _ = table(tmp_path)
    found = {row["run.py"].split()[0]: row["of own experts, %"] for row in rows if "lr" not in row["run.py"]}
    assert found["`method=merge"] == "62.5"
    assert found["`method=other"] == "–"
    assert found["`method=stl"].startswith("100.0")


def test_a_task_whose_expert_scores_nothing_has_no_share(tmp_path):
    add(tmp_path, "stl", matrix=[[0.0, 0.0], [0.0, 80.0]])
    add(tmp_path, "merge", matrix=[[0.0, 0.0], [5.0, 60.0]])
    rows, _ = table(tmp_path)
    assert sorted(row["of own experts, %"] for row in rows) == ["100.0", "75.0"]
