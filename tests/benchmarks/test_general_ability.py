"""The harness's tasks on data at hand: what the model reads, what it may choose, and which choice is right."""

import json
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

import see_lightning

FOLDER = Path(see_lightning.__file__).parent.parent / "benchmarks" / "general_ability"
FILES = {
    "cl_benchmark/COPA/COPA/test.json": [
        {
            "label": "B",
            "sentence": 'Which is the effect of "Rain: it fell."? Choose one between A and B.\nA: Dry.\nB: Wet: all.',
        }
    ],
    "natural_instructions/task073_commonsenseqa_answer_generation/test.json": {
        "Instances": [{"input": "Where is a (small) fish?\n(A)sea (B)sky (blue) (C)bed", "output": ["C"]}]
    },
    "natural_instructions/task363_sst2_polarity_classification/test.json": {
        "Instances": [{"input": "Dull .", "output": "NEG"}, {"input": "Fun .", "output": ["POS"]}]
    },
    "trace_500/ScienceQA/test.json": [
        {
            "prompt": "Choose an answer.\n\nQuestion:\nWhich?\nA. is in the text.\n\nChoices:\nA. one\nB. two\nC. three\n\nAnswer:",
            "answer": "C\nWhy: A. is not.",
        }
    ],
    "cl_benchmark/TC/agnews/test.json": [{"label": "Business", "sentence": "Title: Shares\nText: They fell.\n"}] * 103,
}
READ = {
    "general_copa": ('Which is the effect of "Rain: it fell."?', ["Dry.", "Wet: all."], 1),
    "general_commonsenseqa": ("Where is a (small) fish?", ["sea", "sky (blue)", "bed"], 2),
    "general_sst2": ("Dull .\nIs this sentence on a film negative or positive?", ["negative", "positive"], 0),
    "general_scienceqa": ("Which?\nA. is in the text.", ["one", "two", "three"], 2),
    "general_agnews": (
        "Title: Shares\nText: They fell.\nTopic:",
        ["World", "Sports", "Business", "Science or Technology"],
        2,
    ),
}


def tasks():
    return TaskManager(include_path=FOLDER).load(["general"])["tasks"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setenv("SEE_DATA", str(tmp_path))


def test_a_question_its_choices_and_the_right_one(data):
    found = {}
    for name, task in tasks().items():
        row, *_ = task.test_docs()
        found[name] = (task.doc_to_text(row), task.doc_to_choice(row), task.doc_to_target(row))
    assert found == READ


def test_ag_news_is_cut_to_its_first_hundred_rows(data):
    assert {name: len(task.test_docs()) for name, task in tasks().items()} == {
        **dict.fromkeys(READ, 1),
        "general_sst2": 2,
        "general_agnews": 100,
    }


def test_without_a_folder_of_data_it_is_told_which_variable_to_set(monkeypatch):
    monkeypatch.delenv("SEE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="SEE_DATA is not set; give the folder of the benchmarks' data"):
        tasks()


@pytest.mark.data
def test_every_row_of_the_benchmarks_has_a_right_choice_among_several():
    for name, task in tasks().items():
        rows = list(task.test_docs())
        assert len(rows) == 100, name
        for row in rows:
            assert row["question"].strip() == row["question"]
            assert 2 <= len(row["choices"]) <= 5
            assert all(choice and choice == choice.strip() for choice in row["choices"]), row
            assert 0 <= row["label"] < len(row["choices"])
