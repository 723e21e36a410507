"""Tables of a document that are made of kept results, and results that tell nothing of the machine they were made on."""

import json
import re
import shutil

import pytest

from see_lightning.cli.publish import main, publish
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import Refusal
from see_lightning.reporting.markdown import fill
from tests.runs import toy

DOCUMENT = "# Results\n\nBefore.\n\n<!-- scores: jsonl -->\nold\n<!-- end -->\n\nAfter.\n"


def rows_of(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text(DOCUMENT)
    return path


def test_a_table_has_the_numbers_of_the_runs_that_were_added(base, folder, document):
    runs = [toy.whole(base, *settings).directory for settings in ((), ("method=seqft",))]
    publish(folder, document, runs)
    text = document.read_text()
    assert text.startswith("# Results\n\nBefore.\n\n<!-- scores: jsonl -->\n| run.py |")
    assert text.endswith("<!-- end -->\n\nAfter.\n")
    assert "old" not in text
    heads, _, *rows = rows_of(text)
    measured = {toy.read_results(run)["metrics"]["AR"]: toy.read_results(run) for run in runs}
    assert len(rows) == len(measured) == 2
    for row in rows:
        cells = dict(zip(heads, row, strict=True))
        results = next(found for AR, found in measured.items() if f"{AR:.2f}" == cells["AR"])
        assert [cells[task] for task in toy.TASKS] == [f"{score:.1f}" for score in results["matrix"][-1]]
        assert cells["BWT"] == f"{results['metrics']['BWT']:.2f}".replace("-", "−")
        routed = results.get("routing", {}).get("accuracy")
        assert cells["routed right, %"] == ("–" if routed is None else f"{100 * routed:.1f}")
        assert cells["seeds"] == "3"


def test_tables_are_the_same_without_the_runs_themselves(base, folder, document):
    publish(folder, document, [toy.whole(base).directory])
    before = document.read_text()
    document.write_text(DOCUMENT)
    main([str(folder), str(document)])
    assert document.read_text() == before


def test_several_seeds_are_one_row_with_their_spread(base, folder, document):
    runs = [toy.whole(base, "method=base", f"seed={seed}").directory for seed in (1, 2)]
    publish(folder, document, runs)
    heads, _, row = rows_of(document.read_text())
    cells = dict(zip(heads, row, strict=True))
    assert cells["seeds"] == "1, 2"
    assert "±" in cells["AR"]


def test_what_is_kept_of_all_tasks_has_a_table_of_its_own(base, folder, document):
    runs = [toy.whole(base, f"method={method}").directory for method in ("moses", "stl", "base")]
    document.write_text("<!-- scores: jsonl -->\n<!-- end -->\n<!-- capacity: jsonl -->\n<!-- end -->\n")
    publish(folder, document, runs)
    heads, _, *rows = rows_of(document.read_text().split("capacity")[1])
    assert len(rows) == 2, "the base model keeps nothing"
    cells = {row[heads.index("all, % of the pool")]: dict(zip(heads, row, strict=True)) for row in rows}
    for run in runs[:2]:
        results = toy.read_results(run)
        found = cells[f"{100 * results['capacity'][-1]:.1f}"]
        sizes = {part: values[-1] / 2**20 for part, values in results["storage"].items() if part != "pool"}
        assert found["kept, MiB"] == f"{sum(sizes.values()):.2f}"
        for part in ("weights", "masks", "routers", "keys"):
            assert found[f"{part}, MiB"] == (f"{sizes[part]:.2f}" if part in sizes else "–")
        assert found["after one task"] == f"{100 * results['capacity'][0]:.1f}"
        assert (
            found["weights, % of the pool"] == f"{100 * sizes['weights'] * 2**20 / results['storage']['pool'][-1]:.1f}"
        )


def test_methods_are_compared_by_what_they_score_train_keep_and_cost(base, folder, document, capsys):
    runs = [toy.whole(base, f"method={method}").directory for method in ("base", "seqft", "replay")]
    document.write_text("<!-- rivals: jsonl -->\n<!-- end -->\n")
    publish(folder, document, runs)
    assert "is in no table" not in capsys.readouterr().err
    heads, _, *rows = rows_of(document.read_text())
    found = [dict(zip(heads, row, strict=True)) for row in rows]
    assert [one["AR"] for one in found] == sorted((one["AR"] for one in found), key=float, reverse=True)
    by_costs = sorted(found, key=lambda one: (int(one["stored examples"]), float(one["training tokens, k"])))
    for run, cells in zip(runs, by_costs, strict=True):
        results = toy.read_results(run)
        assert cells["AR"] == f"{results['metrics']['AR']:.2f}"
        kept = results.get("storage", {}).get("weights", [0])[-1] + max(results["counts"]["stored_bytes"], default=0)
        assert cells["kept a task, KiB"] == f"{kept / 3072:.1f}"
        assert cells["training tokens, k"] == f"{sum(results['counts']['train_tokens']) / 1000:.1f}"
        spent = [second for hook in results["timing"]["method_s"].values() for second in hook if second is not None]
        assert cells["time in hooks, s"] == f"{sum(spent):.1f}"
    assert [one["stored examples"] for one in by_costs] == ["0", "0", "6"]
    assert [one["cost / seqft"] for one in by_costs[:2]] == ["0.00", "1.00"]


def test_what_is_kept_tells_nothing_of_the_machine(base, tmp_path, folder, document):
    publish(folder, document, [toy.whole(base).directory])
    (kept,) = folder.rglob("results.json")
    place = toy.place_of(toy.whole(base).directory)
    assert kept == folder / place / "results.json"
    assert str(base) not in kept.read_text()
    results = toy.read_file(kept)
    assert results["config"]["paths"]["runs"] == "runs"
    assert results["matrix"] == toy.read_results(toy.whole(base).directory)["matrix"]


def test_foreign_queries_and_variants_have_tables_of_their_own(base, folder, document):
    publish(folder, document, [toy.whole(base).directory])
    (kept,) = folder.rglob("results.json")
    results = toy.read_file(kept)
    results["ood"] = {"base_share": 0.75, "auroc": 0.9, "fpr95": 0.5, "per_task": {"rain": 1.0, "snow": 0.5}}
    results["variants"] = {
        "asked": ["input_only"],
        "input_only": {"AR": 12.5, "routing_accuracy": 0.25, "base_share": 0.5, "scores": {}},
    }
    kept.write_text(json.dumps(results))
    document.write_text(
        "<!-- scores: jsonl -->\n<!-- end -->\n<!-- foreign: jsonl -->\n<!-- end -->\n<!-- variants: jsonl -->\n<!-- end -->\n"
    )
    publish(folder, document)
    first, second, third = (rows_of(part) for part in document.read_text().split("<!-- end -->\n")[:3])
    assert len(first) == 3
    cells = dict(zip(second[0], second[2], strict=True))
    assert (cells["reach the base, %"], cells["AUROC"], cells["FPR at 95 %"]) == ("75.0", "0.900", "50.0")
    assert (cells["rain"], cells["snow"]) == ("100.0", "50.0")
    assert third[2][1:] == ["input only", "12.50", "25.0", "50.0"]


def test_runs_of_one_order_with_other_tasks_have_their_scores_under_their_names(base, folder, document):
    turned = ("method=base", "order.tasks=[ice,sky]")
    runs = [toy.whole(base, "method=base").directory, toy.whole(base, *turned).directory]
    publish(folder, document, runs)
    heads, _, *rows = rows_of(document.read_text())
    assert sorted(row[heads.index("sea")] for row in rows) == ["0.0", "–"]
    for run in runs:
        results = toy.read_results(run)
        last = {task: f"{score:.1f}" for task, score in zip(results["tasks"], results["matrix"][-1], strict=True)}
        assert any({task: row[heads.index(task)] for task in last} == last for row in rows)


def test_seeds_that_were_asked_other_foreign_queries_are_rows_of_their_own(base, folder, document):
    publish(folder, document, [toy.whole(base, "method=base", f"seed={seed}").directory for seed in (1, 2, 4)])
    for path, tasks in zip(sorted(folder.rglob("results.json")), (("rain",), ("snow",), ()), strict=True):
        results = toy.read_file(path)
        if tasks:
            per_task = dict.fromkeys(tasks, 1.0)
            results["ood"] = {"base_share": 1.0, "auroc": None, "fpr95": None, "per_task": per_task}
        path.write_text(json.dumps(results))
    document.write_text("<!-- scores: jsonl -->\n<!-- end -->\n<!-- foreign: jsonl -->\n<!-- end -->\n")
    publish(folder, document)
    heads, _, *rows = rows_of(document.read_text().split("<!-- end -->")[1])
    assert [row[heads.index("seeds")] for row in rows] == ["1", "2"]
    assert [(row[heads.index("rain")], row[heads.index("snow")]) for row in rows] == [("100.0", "–"), ("–", "100.0")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "<!-- scores: jsonl -->\nprose\n<!-- scores: jsonl -->\n<!-- end -->\n",
            "has no <!-- end --> before the next mark",
        ),
        ("<!-- scores: jsonl -->\nprose\n", "1 places for tables were begun and 0 are whole"),
        ("<!--scores: jsonl -->\n<!-- end -->\n", "1 places for tables were begun and 0 are whole"),
        (" <!-- scores: jsonl -->\n<!-- end -->\n", "1 places for tables were begun and 0 are whole"),
    ],
)
def test_a_place_for_a_table_that_is_not_whole_is_refused_and_the_text_stays(base, folder, document, text, told):
    document.write_text(text)
    with pytest.raises(Refusal, match=told):
        publish(folder, document, [toy.whole(base).directory])
    assert document.read_text() == text


@pytest.mark.parametrize("name", ["perplexity.json", "transfer.json"])
def test_a_measurement_of_another_state_is_refused_and_one_that_is_gone_goes(base, tmp_path, folder, document, name):
    run = tmp_path / "jsonl" / "see" / "abc" / "seed=3"
    shutil.copytree(toy.whole(base).directory, run)
    (run / name).write_text(json.dumps({"belongs_to": Ledger(run).read().digest()}))
    publish(folder, document, [run])
    assert list(folder.rglob(name))
    (run / name).write_text(json.dumps({"belongs_to": "another"}))
    with pytest.raises(Refusal, match=f"{name} was measured before .* give see-lightning {name[:-5]} "):
        publish(folder, document, [run])
    (run / name).unlink()
    publish(folder, document, [run])
    assert not list(folder.rglob(name))


def test_no_place_of_the_machine_is_kept_however_it_was_given(base, tmp_path, folder, document, monkeypatch):
    """The whole kind: data, models, files of methods, caches, a home, links, and a folder of runs with another form."""
    machine = tmp_path / "big disk" / "mine"
    run = machine / "carried" / "here"
    shutil.copytree(toy.whole(base).directory, run)
    (tmp_path / "link").symlink_to(machine)
    link = tmp_path / "link"
    monkeypatch.setenv("HOME", str(machine / "home" / "somebody"))
    results = toy.read_file(run / "results.json")
    results["config"]["paths"] = {"data": f"{link}/data", "runs": str(machine / "runs"), "cache": "~/cache"}
    results["config"]["benchmark"]["reader"]["folder"] = str(machine / "my data")
    results["config"]["method"]["general_source"] = f"{link}/general.json"
    results["config"]["logger"] = {"entity": "somebody", "save_dir": str(machine)}
    results["model"] = results["config"]["model"]["name"] = str(machine / "models" / "my llama")
    results["ood"] = {
        "asked": {"dir": f"{link}/ood", "sources": {str(machine / "s"): {"folder": f"{machine}/data/x"}}},
        "command": f"python run.py 'ood.dir={machine}/ood' '+x=[{machine}/a,{link}/b]' logger=wandb logger.entity=somebody",
        "per_task": {"rain": 1.0},
        "base_share": 1.0,
        "auroc": None,
        "fpr95": None,
    }
    results["command"] = f"python run.py 'benchmark.reader.folder={machine}/my data' model.name={link}/m paths.runs=/r"
    results["notices"] = [
        f"qa: {machine}/my data/a.json, row 3",
        f"file://{link}/b is old",
        f"'{machine / 'home/somebody'}/c'",
    ]
    (run / "results.json").write_text(json.dumps(results))
    (run / "harness.json").write_text(json.dumps({"command": f"python -m x --include-path '{machine}/tasks'"}))
    document.write_text("<!-- scores: jsonl -->\n<!-- end -->\n<!-- foreign: jsonl -->\n<!-- end -->\n")
    publish(folder, document, [run])
    (kept,) = folder.rglob("results.json")
    assert re.fullmatch("jsonl/see/[0-9a-f]{8}/seed=3/results.json", kept.relative_to(folder).as_posix())
    texts = [
        document.read_text(),
        *(path.read_text() for path in kept.parent.iterdir()),
        *map(str, kept.parent.parts[-4:]),
    ]
    for text in texts:
        for leak in (tmp_path, "somebody", "big disk", "mine", "link", str(tmp_path.name)):
            assert str(leak) not in text
    content = toy.read_file(kept)
    assert content["model"] == ".../my llama"
    assert content["ood"]["command"] == "python run.py ood.dir=.../ood '+x=[.../a,.../b]'"
    assert content["config"]["benchmark"]["reader"]["folder"] == ".../my data"
    assert content["notices"] == ["qa: .../my data/a.json, row 3", ".../b is old", "'~/c'"]
    assert content["matrix"] == results["matrix"]
    content["command"] = f"python run.py ood.dir={machine}/ood"
    kept.write_text(json.dumps(content))
    publish(folder, document)
    assert "`ood.dir" not in document.read_text()
    assert str(tmp_path) not in document.read_text(), "nor by results that were kept before"


def test_a_run_that_stands_in_no_table_is_told(base, folder, document, capsys):
    document.write_text("nothing here\n")
    publish(folder, document, [toy.whole(base).directory])
    assert "is in no table" in capsys.readouterr().err
    assert document.read_text() == "nothing here\n"


def test_what_cannot_be_shown_is_refused(base, tmp_path, folder, document):
    with pytest.raises(Refusal, match="there is no .*MISSING.md"):
        publish(folder, tmp_path / "MISSING.md")
    with pytest.raises(Refusal, match="holds no run"):
        publish(folder, document, [tmp_path])
    publish(folder, document, [toy.whole(base).directory])
    with pytest.raises(Refusal, match="there is no table 'score'.*Did you mean 'scores'"):
        fill("<!-- score: jsonl -->\n<!-- end -->", folder)
    with pytest.raises(Refusal, match="holds no run of order 'jsonl2'; there are jsonl"):
        fill("<!-- scores: jsonl2 -->\n<!-- end -->", folder)


def test_foreign_queries_without_their_definitions_have_columns_and_sets_leave_out_tasks_without_one(
    base, folder, document
):
    asked_foreign(base, folder, document)
    shares = [{"a": 0.5, "c": 0.1}, {"a": 0.7, "c": 0.3}]
    for path, per_task in zip(sorted(folder.rglob("results.json")), shares, strict=False):
        results = toy.read_file(path)
        results["ood"]["input_only"] = {
            "base_share": 0.25,
            "per_task": per_task,
            "without_definition": ["b", "d"],
            "scores": {},
        }
        path.write_text(json.dumps(results))
    document.write_text("<!-- foreign: jsonl | found on: a, b | others: * -->\n<!-- end -->\n")
    publish(folder, document)
    heads, _, *rows = rows_of(document.read_text())
    assert heads[1:7] == [
        *("reach the base, %", "without definition, %", "found on (2), %", "found on without definition (1), %"),
        *("others (2), %", "others without definition (1), %"),
    ]
    cells = [dict(zip(heads, row, strict=True)) for row in rows]
    assert cells[0]["without definition, %"] == "25.0 ± 0.0"
    assert cells[0]["found on without definition (1), %"] == "60.0 ± 14.1"
    assert cells[0]["others without definition (1), %"] == "20.0 ± 14.1"
    assert {cells[1][head] for head in heads if "without" in head} == {"–"}, "the third seed has no such evaluation"


def asked_foreign(base, folder, document):
    """Three seeds in the folder that were asked foreign tasks: two all four of them, one two."""
    publish(folder, document, [toy.whole(base, "method=base", f"seed={seed}").directory for seed in (1, 2, 4)])
    shares = ({"a": 1.0, "b": 0.5, "c": 0.2, "d": 0.4}, {"a": 1.0, "b": 1.0, "c": 0.6, "d": 0.4}, {"a": 0.0, "b": 0.3})
    for path, per_task in zip(sorted(folder.rglob("results.json")), shares, strict=True):
        results = toy.read_file(path)
        results["ood"] = {"base_share": 0.5, "auroc": None, "fpr95": None, "per_task": per_task}
        path.write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("sets", "heads", "rows"),
    [
        ("", [], [[], []]),
        (
            " | found on: a, b | others: *",
            ["found on (2), %", "others (2), %"],
            [["87.5 ± 17.7", "40.0 ± 14.1"], ["15.0", "–"]],
        ),
        (" | all: *", ["all (4), %"], [["63.8 ± 15.9"], ["–"]]),
        (" | d alone:d", ["d alone (1), %"], [["40.0 ± 0.0"], ["–"]]),
    ],
)
def test_a_set_of_foreign_tasks_has_the_mean_of_their_shares_where_all_were_asked(
    base, folder, document, sets, heads, rows
):
    asked_foreign(base, folder, document)
    mark = f"<!-- foreign: jsonl{sets} -->\n"
    document.write_text(f"<!-- scores: jsonl -->\n<!-- end -->\n{mark}old\n<!-- end -->\n")
    publish(folder, document)
    text = document.read_text()
    assert mark in text
    first, _, *found = rows_of(text.split("<!-- end -->")[1])
    assert first[1 : 2 + len(heads)] == ["reach the base, %", *heads]
    assert [row[2 : 2 + len(heads)] for row in found] == rows
    publish(folder, document)
    assert document.read_text() == text, "the mark is read again"


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        ("foreign: jsonl | mine: aa", "no run was evaluated on an ood task 'aa'.*There are a, b, c, d"),
        ("foreign: jsonl | mine a, b", "'mine a, b' names no set of tasks; write it as NAME: TASK"),
        ("foreign: jsonl | mine:", "'mine:' names no set of tasks"),
        ("scores: jsonl | mine: sea", "scores: jsonl | mine: sea -->: only a table of ood queries has columns"),
    ],
)
def test_a_set_of_tasks_that_cannot_be_shown_is_refused(base, folder, document, mark, told):
    asked_foreign(base, folder, document)
    with pytest.raises(Refusal, match=told):
        fill(f"<!-- {mark} -->\n<!-- end -->", folder)


def test_no_name_of_a_kept_result_breaks_the_document_or_its_next_filling(base, folder, document):
    """Whatever a task, a variant, a commit or a command is called, a table stays one, and has no HTML."""
    document.write_text(
        "".join(f"<!-- {kind}: jsonl -->\n<!-- end -->\n" for kind in ("scores", "foreign", "variants"))
    )
    publish(folder, document, [toy.whole(base).directory])
    names = ["<!-- end -->", "a | b\n<!-- scores: jsonl -->", "`x` <b>*[u](v)"]
    (path,) = folder.rglob("results.json")
    results = toy.read_file(path)
    results["tasks"] = results["config"]["order"]["tasks"] = names
    results["config"]["indicators"]["pos"] = "`` <!-- end -->\n<!-- scores: jsonl -->|"
    results["command"] = f"python run.py 'indicators.pos={results['config']['indicators']['pos']}'"
    results["commit"], results["commits"] = names[1], names
    results["ood"] = {"base_share": 1.0, "auroc": None, "fpr95": None, "per_task": dict.fromkeys(names, 0.5)}
    row = {"AR": 1.0, "routing_accuracy": 1.0, "base_share": 0.0}
    results["variants"] = {"asked": names, **dict.fromkeys(names, row)}
    path.write_text(json.dumps(results))
    publish(folder, document)
    once = document.read_text()
    assert once.count("<!--") == 6
    lines = [line for line in once.splitlines() if not line.startswith("<!-- ")]
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    tables = re.split(r"<!-- .* -->\n", once)
    for table in filter(None, tables):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert not re.search(r"<[^!]|<!--(?! (end|\w+: jsonl) -->\n)", re.sub("(`+).*?[^`]\\1(?!`)", "", once))
    publish(folder, document)
    assert document.read_text() == once


@pytest.mark.parametrize(
    "root", ["PRIVATE", "./PRIVATE/deep", "/PRIVATE/deep", "~/PRIVATE", "../PRIVATE", "PRI VATE/x"]
)
def test_no_setting_that_says_where_something_lies_is_published(base, tmp_path, folder, document, root):
    """Of every such setting and every command the last part alone is kept, below the working folder too."""
    run = tmp_path / "carried"
    shutil.copytree(toy.whole(base).directory, run)
    results = toy.read_file(run / "results.json")
    config = results["config"]
    config["paths"] = {"data": f"{root}/data", "runs": f"{root}/runs", "cache": f"{root}/cache"}
    config["benchmark"]["reader"] = {
        "_target_": "see_lightning.data.hub.HubReader",
        "datasets": {task: {"path": f"{root}/sets/{task}"} for task in results["tasks"]},
    }
    config["method"]["general_source"] = f"{root}/general.json"
    config["model"] |= {"source": "hub", "name": f"{root}/my-model"}
    config["logger"] = {"entity": "PRIVATE"}
    results["model"] = config["model"]["name"]
    results["contents"]["in_key"] = {
        **{f"benchmark.reader.datasets.{task}.path": {task: "ab"} for task in results["tasks"]},
        **{"model.name": "ab", "method.general_source": "ab"},
    }
    asked = {"_target_": "see_lightning.data.jsonl.JsonlReader", "folder": f"{root}/ood"}
    source = {"_target_": "see_lightning.tasks.task.Benchmark", "name": "x", "version": "1", "reader": asked}
    results["ood"] = {
        "asked": {"dir": f"{root}/foreign", "sources": {"x": source}},
        "command": f"python run.py 'ood.dir={root}/foreign'",
        **{"per_task": {"rain": 1.0}, "base_share": 1.0, "auroc": None, "fpr95": None},
    }
    results["command"] = (
        f"python run.py 'model.name={root}/my-model' 'method.general_source={root}/general.json' 'paths.runs={root}/runs'"
        f" '+benchmark.reader.datasets.sky.path={root}/sets/sky' logger.entity=PRIVATE seed=3"
    )
    results["notices"] = [f"sky: {root}/sets/sky/a.json, row 3", f"{root}/ood is empty"]
    (run / "results.json").write_text(json.dumps(results))
    (run / "harness.json").write_text(
        json.dumps({"command": f"see-lightning harness '{root}/runs/jsonl/see/ab/seed=3' '{root}/other/run' --tasks x"})
    )
    document.write_text("<!-- scores: jsonl -->\n<!-- end -->\n<!-- foreign: jsonl -->\n<!-- end -->\n")
    publish(folder, document, [run])
    for path in (document, *(path for path in folder.rglob("*") if path.is_file())):
        assert "PRI" not in path.read_text()
    (kept,) = folder.rglob("results.json")
    content = toy.read_file(kept)
    assert content["model"] == content["config"]["model"]["name"] == ".../my-model"
    assert content["ood"]["command"] == "python run.py ood.dir=.../foreign"
    assert content["config"]["paths"]["data"] == "data"
    assert "runs/jsonl/see/ab/seed=3" in json.loads(kept.with_name("harness.json").read_text())["command"]
