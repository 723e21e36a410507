"""The leaderboard: which rows stand in which table, which intervals are paired, and that the kept files give the kept text."""

import json
import shutil
from pathlib import Path

import pytest

from see_lightning.cli.leaderboard import main
from see_lightning.errors import Refusal
from see_lightning.reporting.leaderboard import boards, difference_text, heads, leaderboard_page, leaderboard_text
from see_lightning.reporting.rivals import protocol

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "results" / "rivals_superni_5"
NAMES = {"replay": 0.0, "seqft": -10.0, "base": -30.0}


@pytest.fixture
def folder(tmp_path):
    """Three kept runs, with made-up scores of their queries: those of replay, and each query lower by 10 and 30."""
    for method, less in NAMES.items():
        (source,) = KEPT.glob(f"{method}/*/seed=0")
        place = tmp_path / "results" / source.relative_to(ROOT / "results")
        shutil.copytree(source, place)
        results = json.loads((place / "results.json").read_text())
        results["metrics"]["AR"] = 50.0 + less
        results["contents"]["digests"] = {"task qa": "same"}
        for number, facts in enumerate(results["last_row"].values()):
            facts["scores"] = [40.0 + less + (17 * query + number) % 40 for query in range(20)]
        (place / "results.json").write_text(json.dumps(results))
    return tmp_path / "results"


def edit(folder, method, change):
    (path,) = folder.glob(f"*/{method}/*/seed=0/results.json")
    results = json.loads(path.read_text())
    change(results)
    path.write_text(json.dumps(results))


def test_rows_are_sorted_and_paired_where_both_have_scores(folder):
    (board,) = boards(folder)
    assert "rivals_superni_5: 5 tasks, 60 training and 20 test rows a task" in board.title
    assert [row.group.first.method for row in board.rows] == list(NAMES)
    assert [row.is_paired for row in board.rows] == [False, True, True]
    assert board.rows[1].behind.mean == pytest.approx(10)
    assert board.rows[1].behind.low == pytest.approx(10), "each query is lower by ten"
    assert not board.rows[1].behind.is_noise


def test_other_test_rows_are_not_paired(folder):
    edit(folder, "seqft", lambda results: results["contents"]["digests"].update({"task qa": "other"}))
    (board,) = boards(folder)
    assert [row.is_paired for row in board.rows] == [False, False, True]


def test_without_scores_the_standard_errors_give_the_interval_and_without_both_there_is_none(folder):
    def drop(*names):
        def change(results):
            for facts in results["last_row"].values():
                for name in names:
                    facts[name] = None

        return change

    edit(folder, "seqft", drop("scores"))
    edit(folder, "base", drop("scores", "stderr"))
    (board,) = boards(folder)
    seqft, base = board.rows[1:]
    assert (seqft.is_paired, base.behind, base.own) == (False, None, None)
    assert seqft.behind.low < 10 < seqft.behind.high
    text = leaderboard_text([board], "make it")
    assert "~10.00 (" in text
    assert text.count("| – | – |") >= 1


def test_another_size_is_another_table(folder):
    edit(folder, "base", lambda results: results["config"].update(test_size=10))
    assert [len(board.rows) for board in boards(folder)] == [1, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda results: results["score"].update(qa="rouge_l_google"), "; scores qa rouge_l_google, qg rouge_l"),
        (lambda results: results["config"]["benchmark"].update(version="1"), "; version 1"),
        (lambda results: results["config"]["benchmark"].update(max_new_tokens=512), "; answers of at most 512 tokens"),
    ],
)
def test_what_is_scored_in_another_way_is_in_another_table(folder, tmp_path, change, told):
    edit(folder, "seqft", change)
    found = boards(folder)
    (other,) = [board for board in found if [row.group.first.method for row in board.rows] == ["seqft"]]
    assert told in other.title
    assert len(found) == 2
    assert all(board.rows[0].behind is None for board in found), "neither is compared with the other"
    (replay,), (seqft,) = (folder.glob(f"*/{method}") for method in ("replay", "seqft"))
    assert "~" in difference_text(replay, seqft) or "not paired" in difference_text(replay, seqft)


def test_runs_of_another_order_of_tasks_have_another_protocol():
    results = {"tasks": ["qa", "qg"], "score": {"qg": "accuracy", "qa": "rouge_l"}}
    assert protocol(results) != protocol({**results, "tasks": ["qg", "qa"]})
    assert protocol(results) == protocol({**results, "score": {"qa": "rouge_l", "qg": "accuracy"}})


def test_the_command_writes_document_and_page(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main([])
    assert capsys.readouterr().out.split() == ["LEADERBOARD.md", "leaderboard.html"]
    page = (tmp_path / "leaderboard.html").read_text()
    assert page.count("<tr>") == 4
    assert "https://" not in page.replace("https://www.w3.org", "")
    assert (tmp_path / "LEADERBOARD.md").read_text().count("\n| ") == 1 + len(NAMES) + 1
    main(["--out", "a/new/folder/BOARD.md"])
    assert (tmp_path / "a/new/folder/leaderboard.html").exists()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing")])


def test_two_settings_are_compared_by_themselves(folder, capsys):
    replay, seqft = (str(next(folder.glob(f"*/{method}/*"))) for method in ("replay", "seqft"))
    main(["--between", replay, seqft])
    assert capsys.readouterr().out.endswith("10.00 (10.0 to 10.0; paired bootstrap): no noise\n")
    edit(folder, "seqft", lambda results: [facts.pop("scores") for facts in results["last_row"].values()])
    main(["--between", replay, seqft])
    assert "normal distribution, not paired" in capsys.readouterr().out
    with pytest.raises(Refusal, match="runs of 3 settings; give the folder of one"):
        difference_text(folder, folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(Refusal, match="no finished run was found"):
        boards(tmp_path)
    with pytest.raises(Refusal, match="there is no"):
        boards(tmp_path / "nothing")


def test_the_kept_text_is_that_of_the_kept_results():
    found = boards(ROOT / "results")
    assert (ROOT / "LEADERBOARD.md").read_text(encoding="utf-8") == leaderboard_text(found, "see-lightning leaderboard")
    assert len(heads()) == len(leaderboard_page(found, "c").split("<thead>")[1].split("<th ")) - 1
