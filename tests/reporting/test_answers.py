"""The page of answers has every test query with all that is known of it, in files of which few are needed at once."""

import json
import re
from pathlib import Path

import pytest

from see_lightning.files.writing import write_texts
from see_lightning.reporting.answers.files import CHARACTERS, INDEX, ROWS, answers_files, kept_prompts
from see_lightning.reporting.answers.queries import StageAnswers, TestQueries, shared_beginning
from tests.reporting.answered import (
    DEFINITION,
    NASTY,
    TASKS,
    answer,
    digest,
    prompt_of,
    prompts,
    queries,
    responses,
    results,
    walked,
)
from tests.reporting.test_report import Page


def parsed(found: TestQueries) -> dict[str, dict]:
    """The content of every file of data, by name."""
    files = dict(answers_files(found))
    calls = {name: re.fullmatch(r'answers\("([\w-]+)",(.*)\)\n', text, re.DOTALL) for name, text in files.items()}
    assert all(calls[name][1] == name.removesuffix(".js") for name in files if name != INDEX)
    return {call[1]: json.loads(call[2]) for call in calls.values() if call}


def rows(found: TestQueries) -> list[dict]:
    """A dictionary for each query, of all files of texts."""
    content = parsed(found)
    pages = [content[f"page-{place + 1}"] for place in range(len(content["index"]["pages"]))]
    return [dict(zip(page, cells, strict=True)) for page in pages for cells in zip(*page.values(), strict=True)]


def test_a_query_has_its_prompt_references_and_the_answer_after_each_stage():
    found = rows(queries())
    assert [row["id"] for row in found] == [f"{task}-{row}" for task in TASKS for row in range(4)]
    first, second = found[4], found[5]  # of the second task
    assert (first["prompt"], first["references"]) == ("Query 0 of <b>tone</b>? ", ["right 0"])
    assert NASTY in second["prompt"]
    # The only expert refuses both, and the base model answers. Then a second expert is asked first, and then a third.
    assert (first["texts"], first["after"]) == (["by base 0", "by qa 0"], ["0n", "1np", "1nnp"])
    assert (second["texts"], second["after"]) == (["by base 1", f"by {TASKS[1]} 1"], ["0n", "1p", "1np"])
    assert (found[0]["texts"], found[0]["after"]) == (["by qa 0"], ["0p", "0np", "0nnp"]), "one text for all stages"
    assert found[8]["after"] == [None, "0nn", "1nnp"], "a task is not tested two stages ahead"


def test_verdicts_of_experts_in_another_order_name_them_and_an_answer_that_was_cut_is_told():
    first, *_ = stages = walked()
    changed = [answer("qa", 0, "qa", ["neither", "pos"], asked=["sum", "qa"]), *stages[-1].answers[1:]]
    cut = [answer("qa", 0, "qa", ["pos"], truncated=True), *first.answers[1:]]
    stages = [StageAnswers(first.name, first.experts, cut), stages[1], StageAnswers("03-sum", TASKS, changed)]
    row, *_ = rows(TestQueries(results(), stages, responses(), prompts()))
    assert row["after"] == ["0p", "1np", "1xp:2,0"]
    assert (row["texts"], row["cut"]) == (["by qa 0"] * 2, [0])


def test_log_odds_are_those_of_the_experts_that_were_asked():
    first, *_ = rows(queries())
    assert first["log_odds"] == [[0, 0.25, "p"], [1, 1.25, "p"], [2, 2.25, "p"]]
    only = [StageAnswers("03-sum", TASKS, [answer("qa", 0, "sum", ["pos"])])]
    (row,) = rows(TestQueries(results(), only, responses(), prompts()))
    assert row["log_odds"] == [[2, 2.25, "p"]]


def test_where_it_is_not_recorded_who_was_asked_all_log_odds_are_there():
    silent = [StageAnswers("03-sum", TASKS, [answer("qa", 0, "sum")])]
    later = {**responses()[0], "log_odds": -7.00004, "verdict": "neg"}
    (row,) = rows(TestQueries(results(), silent, [*responses(), later], prompts()))
    assert row["log_odds"] == [[0, -7.0, "n"], [1, 1.25, "p"], [2, 2.25, "p"]], "the latest counts"


def test_the_index_has_what_filters_need_and_names_the_experts_of_each_stage():
    content = parsed(queries())
    index = content["index"]
    assert index["tasks"] == [[task, 4, "rouge_l"] for task in TASKS]
    assert index["experts"] == [*TASKS, "base"]
    assert index["stages"] == [["01-qa", [0]], [f"02-{TASKS[1]}", [1, 0]], ["03-sum", [2, 1, 0]]]
    assert index["right"] == [[0], [1], [2]]
    assert index["thresholds"] == {"0": 1.5}
    assert index["beginnings"] == [f"{DEFINITION}"] * 3
    assert content["after-1"]["score"] == [0, 1, 2, 3, 0, 1, 2, 3, None, None, None, None]
    assert content["after-3"]["expert"] == [0, 0, 0, 3, 0, 1, 1, 3, 0, 2, 2, 3]


def test_a_task_that_reuses_an_expert_or_comes_back_is_routed_right_by_more_than_its_name():
    assigned = {task: "qa" for task in TASKS}
    assert queries(assigned_expert=assigned).right() == {task: ["qa"] for task in TASKS}
    stream = {"kind": "recurring", "tasks": {"qa": "one", "<b>tone</b>": "two", "sum": "one"}}
    right = queries(stream=stream).right()
    assert (right["qa"], right["<b>tone</b>"], right["sum"]) == (["qa", "sum"], ["<b>tone</b>"], ["qa", "sum"])


@pytest.mark.parametrize("expert", [None, "qa"], ids=["no experts", "told the task"])
def test_of_a_method_that_does_not_route_there_is_no_right_and_wrong(expert):
    answers = [answer("qa", row, expert) for row in range(3)]
    without = {name: value for name, value in results().items() if name != "routing"}
    found = TestQueries(without, [StageAnswers("01-all", (), answers)], (), prompts())
    index, page = parsed(found)["index"], dict(answers_files(found))[INDEX]
    assert index["right"] is None
    assert index["experts"] == ([] if expert is None else ["qa", "base"])
    assert ("Answered by" in page) == (expert is not None)
    assert "right or wrong" not in page
    assert rows(found)[0]["log_odds"] == []
    assert parsed(found)["after-1"]["expert"] == ([] if expert is None else [0, 0, 0])


def test_files_of_texts_are_small_however_many_or_long_the_queries_are():
    many = parsed(queries(2 * ROWS))
    assert many["index"]["pages"] == list(range(0, 6 * ROWS, ROWS))
    assert all(len(many[f"page-{number + 1}"]["id"]) == ROWS for number in range(6))
    long = {sha: prompt + "x" * (CHARACTERS // 3) for sha, prompt in prompts().items()}
    texts = {name: text for name, text in answers_files(queries(given=long)) if name.startswith("page-")}
    assert len(texts) == 6
    assert all(len(text) < 1.1 * CHARACTERS for text in texts.values())
    index = parsed(queries(given=long))["index"]
    assert index["pages"] == [0, 2, 4, 6, 8, 10]


def test_the_same_queries_give_the_same_bytes_without_a_date():
    assert list(answers_files(queries())) == list(answers_files(queries()))
    assert not re.search(r"\b20\d\d-\d\d-\d\d", "".join(text for _, text in answers_files(queries())))


def test_no_text_of_a_query_is_in_the_html_and_a_name_is_no_markup():
    nasty = results(model=NASTY, order="<script>alert(1)</script>")
    text = dict(answers_files(TestQueries(nasty, walked(), responses(), prompts())))[INDEX]
    page = Page(text)
    assert page.open == []
    assert "<script>document" not in text
    assert "<script>alert" not in text
    assert "Query 0" not in text
    assert [value for name, value in page.attributes if name in {"src", "href"}] == ["../report.html"]
    assert "http:" not in text
    assert "https:" not in text


def test_prompts_that_are_not_known_are_told_and_their_digests_are_there():
    known = dict(list(prompts().items())[:4])
    found = queries(given=known)
    assert found.without_prompt == 8
    assert rows(found)[4]["prompt"] == [digest(prompt_of(TASKS[1], 0))]
    assert "The prompts of 8 queries are not here" in dict(answers_files(found))[INDEX]
    assert "are not here" not in dict(answers_files(queries()))[INDEX]


def test_a_prompt_that_the_answers_hold_is_shown_without_the_data():
    alone = [StageAnswers("03-sum", TASKS, [answer("sum", 0, "sum", prompt=prompt_of("sum", 0))])]
    assert rows(TestQueries(results(), alone, (), {}))[0]["prompt"] == prompt_of("sum", 0)


def test_the_prompts_of_a_page_are_found_again(tmp_path):
    write_texts(tmp_path / "answers", answers_files(queries(ROWS)))
    assert kept_prompts(tmp_path / "answers") == prompts(ROWS)
    assert kept_prompts(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("damage", ["", "answers(", 'answers("page-1",{"prompt":[[["x"]]]})', "\udcff", None])
def test_a_damaged_file_gives_no_prompts_and_the_others_give_theirs(tmp_path, damage):
    folder: Path = tmp_path / "answers"
    write_texts(folder, answers_files(queries(ROWS)))
    if damage is None:
        (folder / "page-1.js").unlink()
    else:
        (folder / "page-1.js").write_bytes(damage.encode(errors="surrogateescape"))
    assert kept_prompts(folder) == {sha: prompt for sha, prompt in prompts(ROWS).items() if "of qa?" not in prompt}


def test_a_beginning_ends_with_a_line_or_a_word_and_leaves_something_of_every_prompt():
    assert shared_beginning([]) == ""
    assert shared_beginning(["one", "one"]) == ""
    assert shared_beginning(["Is it?\n", "Is it?\nYes"]) == "Is "
    assert shared_beginning(["Say \U0001f642 a", "Say \U0001f642 b"]) == "Say \U0001f642 "
    assert shared_beginning(["a b", "c d"]) == ""
