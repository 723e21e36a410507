"""The audit counts what is there, and finds in the public files what is known of them."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from see_lightning.cli.data import main
from see_lightning.config.search_path import CONF, register
from see_lightning.data import BadRow, Example, Part, Reader
from see_lightning.data.audit import PartAudit, audit, warnings
from see_lightning.data.cl_benchmark import ClBenchmarkReader
from see_lightning.data.natural_instructions import NaturalInstructionsReader
from see_lightning.data.ssr import SsrReader
from see_lightning.data.trace import TraceReader
from see_lightning.engine.launch import launch
from see_lightning.errors import Refusal

ROOT = Path(__file__).parents[2]


def composed(overrides: list[str]) -> DictConfig:
    register()
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra.compose("run", overrides=overrides)


def part(*rows: tuple[str, str], bad: Iterable[str] = ()) -> Part:
    examples = (Example(str(number), prompt, answer, "qa") for number, (prompt, answer) in enumerate(rows))
    return Part([*examples, *(BadRow(f"f, row {n}", reason) for n, reason in enumerate(bad, 1))])


def test_rows_prompts_conflicts_and_leaks_are_counted() -> None:
    parts = audit(
        {
            "test": part(("p1 ", "a"), ("p1", "b"), ("p9", "a"), bad=["blank line", "other"]),
            "train": part(("p1", "a"), (" p1", "a"), ("p2", "a"), ("p2", "b"), ("p3 long", "b")),
        }
    )
    train, test = parts["train"], parts["test"]
    assert list(parts) == ["test", "train"]
    assert (train.rows, train.prompts, train.conflicts, train.in_train, train.longest) == (5, 3, 1, 0, 7)
    assert (test.rows, test.prompts, test.conflicts, test.in_train, test.bad) == (3, 2, 1, 2, 2)
    assert test.first_bad == "f, row 1: blank line"
    assert list(warnings({"train": train, "test": test})) == [
        "train: 1 prompts have different answers",
        "train: 2 rows repeat a prompt",
        "test: 2 rows cannot be read, first f, row 1: blank line",
        "test: 1 prompts have different answers",
        "test: 2 of 3 rows have a prompt of train",
        "test: 3 rows, so a share of 50 % has a standard error of 28.9 points",
    ]


def test_labels_are_counted_where_answers_are_few_and_come_again() -> None:
    rows = [(f"p{n}", "ab"[n % 2]) for n in range(11)]
    assert audit({"train": part(*rows)})["train"].labels == {"a": 6, "b": 5}
    texts = [(f"p{n}", f"answer {n // 2}") for n in range(20)]
    assert audit({"train": part(*texts)})["train"].labels == {}


def test_two_parts_are_the_same_if_they_hold_the_same_rows_in_any_order() -> None:
    rows = [(f"p{n}", "a") for n in range(100)]
    same = audit({"train": part(("q", "a")), "dev": part(*rows[::-1]), "test": part(*rows)})
    assert list(warnings(same)) == ["dev and test are the same rows: a choice on dev is a choice on test"]
    other = audit({"train": part(("q", "a")), "dev": part(*rows[:-1], ("p99", "b")), "test": part(*rows)})
    assert list(warnings(other)) == []


def test_every_file_has_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[]")
    found = audit({"train": Part([], (tmp_path / "a.json",))})["train"]
    assert found.sha256 == {"a.json": hashlib.sha256(b"[]").hexdigest()}


def published(folder: str, task: str) -> dict[str, PartAudit]:
    place = Path(os.environ["SEE_DATA"]) / folder
    readers: dict[str, Reader] = {
        "trace_500": TraceReader(place),
        "cl_benchmark": ClBenchmarkReader(place),
        "natural_instructions": NaturalInstructionsReader(place, published_at=""),
        "ssr_ni_split": SsrReader(place),
    }
    return audit(readers[folder].parts(task))


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "rows", "prompts", "leaks", "sha256"),
    [
        ("NumGLUE-cm", (500, 41, 81), (256, 41, 81), (0, 0), ("722bbb058199", "87edcff35411", "52a3fd70e149")),
        ("Py150", (500, 100, 100), (482, 100, 96), (2, 5), ("8a5439ee66d9", "029302d12cda", "418a4767caad")),
        ("ScienceQA", (500, 100, 100), (500, 100, 100), (0, 0), ("8f796547542f", "e4cf69626f11", "ed1314220ee5")),
    ],
)
def test_trace_is_found_as_it_is_known(
    task: str, rows: tuple[int, ...], prompts: tuple[int, ...], leaks: tuple[int, ...], sha256: tuple[str, ...]
) -> None:
    parts = published("trace_500", task)
    assert list(parts) == ["train", "eval", "test"]
    assert tuple(part.rows for part in parts.values()) == rows
    assert tuple(part.prompts for part in parts.values()) == prompts
    assert (parts["eval"].in_train, parts["test"].in_train) == leaks
    assert tuple(digest[:12] for part in parts.values() for digest in part.sha256.values()) == sha256
    assert parts["eval"].texts != parts["test"].texts
    assert not any(part.bad for part in parts.values())
    if task == "Py150":
        assert parts["train"].longest == 43_888


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "task", "train", "test", "prompts", "labels"),
    [
        ("cl_benchmark", "agnews", 4000, 7600, 4000, {"test": {"Business": 1900, "Science or Technology": 1900, "Sports": 1900, "World": 1900}}),
        ("cl_benchmark", "RTE", 2000, 277, 1998, {}),
        ("cl_benchmark", "CB", 250, 56, 250, {"train": {"contradiction": 119, "entailment": 115, "neutral": 16}}),
        ("cl_benchmark", "COPA", 400, 100, 400, {}),
        ("natural_instructions", "task073_commonsenseqa_answer_generation", 975, 100, 975, {}),
        ("natural_instructions", "task1572_samsum_summary", 160, 20, 160, {"train": {}}),
        ("natural_instructions", "task363_sst2_polarity_classification", 1000, 100, 1000, {}),
    ],
)  # fmt: skip
def test_dev_is_test_and_nothing_leaks_in_the_other_public_files(
    folder: str, task: str, train: int, test: int, prompts: int, labels: dict[str, dict[str, int]]
) -> None:
    parts = published(folder, task)
    assert tuple(part.rows for part in parts.values()) == (train, test, test)
    assert parts["train"].prompts == prompts
    assert parts["dev"].texts == parts["test"].texts
    assert parts["dev"].sha256["dev.json"] == parts["test"].sha256["test.json"]
    assert parts["dev"].in_train == parts["test"].in_train == 0
    for half, counts in labels.items():
        assert parts[half].labels == counts


@pytest.mark.data
@pytest.mark.parametrize("task", ["dsg", "expl", "para", "pe", "pos", "qa", "sa", "trans"])
def test_ssrs_split_repeats_nothing_and_leaks_nothing(task: str) -> None:
    parts = published("ssr_ni_split", task)
    assert (parts["train"].rows, parts["train"].prompts, parts["test"].rows) == (2000, 2000, 500)
    assert parts["test"].in_train == 0
    assert list(warnings(parts)) == []


@pytest.mark.data
def test_the_command_prints_counts_warnings_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "trace_500", f"paths.data={os.environ['SEE_DATA']}"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Py150"] in lines
    assert ["test", "100", "96", "5", "36024", "418a4767caad"] in lines
    assert ["test:", "5", "of", "100", "rows", "have", "a", "prompt", "of", "train"] in lines
    assert ["not", "there:", "C-STANCE,", "FOMC,", "MeetingBank,", "NumGLUE-ds,", "20Minuten"] in lines


def write(folder: Path, task: str, *train: dict[str, object], test: str = "test?") -> list[str]:
    """A task's files, and the words that check their folder."""
    rows = train or ({"prompt": "train?", "answer": "a"},)
    (folder / f"{task}.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{task}.test.jsonl").write_text(json.dumps({"prompt": test, "answer": "b"}) + "\n")
    return ["check", "jsonl", f"benchmark.reader.folder={folder}", "model=tiny"]


def test_the_command_looks_at_the_task_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "other")
    main([*write(tmp_path, "mine"), "--task", "mine"])
    out = capsys.readouterr().out
    assert "mine" in out
    assert "other" not in out


def test_help_comes_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "see_lightning.data", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "| torch\n" not in done.stderr


@pytest.mark.parametrize(
    ("row", "test", "settings", "reason"),
    [
        ({"prompt": "p", "answer": ""}, "q", [], "empty answer"),
        ({"prompt": "p"}, "q", [], "missing key 'answer'"),
        ({"prompt": "p", "answer": "a <<neg>>"}, "q", [], "the answer contains the indicator '<<neg>>'"),
        ({"prompt": "p", "answer": "a"}, " p ", [], "this test prompt is also in the training rows"),
        ({"prompt": "p" * 100, "answer": "a"}, "q", ["model.max_length=90"], "leaves no room for"),
        ({"prompt": "p", "answer": "a"}, "q", ["benchmark.default.score=rouge"], "there is no score 'rouge'"),
    ],
)
def test_what_stops_a_run_is_told_in_its_words_for_every_task(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: dict[str, object],
    test: str,
    settings: list[str],
    reason: str,
) -> None:
    write(tmp_path, "sound")
    words = write(tmp_path, "bad", row, test=test)
    with pytest.raises(SystemExit) as stopped:
        main([*words, *settings])
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    with pytest.raises(Refusal, match=re.escape(reason)) as refused:
        launch(
            composed(["order=jsonl", "order.tasks=[bad]", *words[2:], *settings, f"paths.runs={tmp_path}/runs"]), "c"
        )
    assert f"a run stops at bad: {str(refused.value).splitlines()[0]}\n" in out
    assert ("1 of 2 tasks would stop a run\n" in out) == ("rouge" not in reason)


def test_what_a_run_tells_of_the_data_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cl_benchmark" / "NLI" / "MNLI"
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text('["neutral", "entailment"]')
    for half in ("train", "test"):
        rows = [
            {"label": label, "sentence": f"{half} {label}"}
            for label in ("neutral", "-" if half == "test" else "neutral")
        ]
        (folder / f"{half}.json").write_text(json.dumps(rows))
    main(["check", "cl_benchmark", f"paths.data={tmp_path}", "model=tiny", "--task", "MNLI"])
    told = "  1 of 4 rows are read as published: the label '-' is none of labels.json, so none of the options is right; first"
    assert f"{told} {folder}/test.json, row 2\n" in capsys.readouterr().out


def test_lengths_and_all_rows_that_a_run_cannot_use_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lengths count bytes with the tiny model: ``<s>``, the prompt, an indicator and its end, the answer and its end."""
    good = [{"prompt": "p" * size, "answer": "a"} for size in (2, 3, 4)]
    bad: list[dict[str, object]] = [
        {"prompt": "p" * 90, "answer": "a"}, {"prompt": "q", "answer": ""}, {"prompt": "q"}, {"prompt": "t", "answer": "a"},
    ]  # fmt: skip
    words = [*write(tmp_path, "mine", *good, *bad, test=" t "), "model.prompt=plain", "model.max_length=64"]
    with pytest.raises(SystemExit):
        main(words)
    out = capsys.readouterr().out
    place = f"    {tmp_path}/mine"
    assert "  train: 13 tokens in the median, 101 at most, of model.max_length=64; 1 rows are too long\n" in out
    assert "  test: 19 tokens in the median, 19 at most, of model.max_length=64\n" in out
    assert (
        "  4 of 8 rows cannot be used: a run stops at the first of them; data.on_bad_row=skip leaves out up to 1 %:\n"
        in out
    )
    for row in (
        f"{place}.train.jsonl:5: empty answer\n",
        f"{place}.train.jsonl:6: missing key 'answer'; found: prompt, id\n",
        f"{place}.test.jsonl:1: this test prompt is also in the training rows, at {tmp_path}/mine.train.jsonl:7\n",
        f"{place}.train.jsonl:4: 101 tokens, of at most 64\n",
    ):
        assert row in out
    main(write(tmp_path, "mine", *good))
    out = capsys.readouterr().out
    assert "  train: " in out
    assert "cannot be used" not in out


def test_conversations_are_checked_as_a_run_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [("user", "1 + 1?"), ("assistant", "2"), ("user", "And 2?"), ("assistant", "3")]
    messages = [{"role": role, "content": content} for role, content in turns]
    words = write(tmp_path, "mine", {"messages": messages, "topic": "sums"})
    main([*words, "benchmark.reader.train_on=all"])
    out = capsys.readouterr().out
    assert ["train", "2", "2", "40"] in [line.split()[:4] for line in out.splitlines()]
    assert "  train: 47 tokens in the median, 60 at most, of model.max_length=1536\n" in out
    assert "  the column topic of the train rows is not read\n" in out
    with pytest.raises(SystemExit):
        main([*words, "model.prompt=plain"])
    out = capsys.readouterr().out
    assert (
        f"a run stops at mine: {tmp_path}/mine.train.jsonl:1: a conversation of several turns needs model.prompt=chat"
        in out
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["superno"], "there is no benchmark=superno. Did you mean 'superni'?"),
        (["jsonl"], "benchmark.reader.folder is not set; give benchmark.reader.folder=..."),
        (
            ["trace_500", "paths.data=/nowhere"],
            "TRACE was looked for in /nowhere/trace_500, where there is no <Task>/train",
        ),
    ],
)
def test_a_benchmark_that_cannot_be_checked_is_refused_in_a_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["check", *words])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(told)
