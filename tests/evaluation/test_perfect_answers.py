"""A perfect answer scores 100 on every benchmark that is shipped, or the run says before it begins why it cannot.

Perfect: the reference's own tokens, as a trained expert writes them behind its word, and as a method without experts does.
Read from small files in the published form, with answers like the published ones: blanks, dots and literals included.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from see_lightning.config.search_path import CONF
from see_lightning.config.validation import validate
from see_lightning.engine.build import build_tasks, build_template
from see_lightning.evaluation.scores import best_score
from see_lightning.routing.verdicts import strip_indicator
from see_lightning.tasks.reconstruct import Indicators
from tests.conf.conftest import composed  # noqa: F401  a fixture

TYPES = {"BoolQA": "BoolQA", "COPA": "COPA", "MultiRC": "MultiRC", "CB": "NLI", "MNLI": "NLI", "RTE": "NLI", "QQP": "QQP",
         "IMDB": "SC", "SST-2": "SC", "amazon": "SC", "yelp": "SC", "agnews": "TC", "dbpedia": "TC", "yahoo": "TC",
         "WiC": "WiC"}  # fmt: skip
LABELS = [
    "True",
    "False",
    "very negative",
    "negative",
    "Science or Technology",
    "Society & Culture",
    "A",
    "B",
    "entailment",
]
TEXTS = [
    "Yes, it may.",
    " a list, ['x', 'y'] ",
    "12",
    "¿Qué es?",
    'He said: "don\'t".',
    "U.S. rates rose 3.5 % in Q2.",
    "B",
]
TRACE = {
    "C-STANCE": ["A", "B", "C"],
    "FOMC": ["A", "B", "C"],
    "MeetingBank": ["The council adopted bill 3.1. It was amended.", "A resolution... passed"],
    "Py150": [
        "return self . x ",
        "",
        " ) ",
        "x = <NUM_LIT:1>",
        "f ( '<STR_LIT:utf-8>' ) <EOL>",
        "<STR_LIT>",
        "if <STR_LIT> :",
    ],
    "ScienceQA": ["B\nBecause. ", "A\n", "C\nIt is so."],
    "NumGLUE-cm": ["12", "Friday", "3.5", "-4"],
    "NumGLUE-ds": ["0.5", "5"],
    "20Minuten": ["Der Hund ist groß. Er schläft.", " Kurz."],
}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")


def ssr(folder: Path, task: str) -> None:
    for half in ("train", "eval"):
        rows = [
            {"id": f"{half}{n}", "full_prompt": f"Do.\n\n{half} {n}", "output": text} for n, text in enumerate(TEXTS)
        ]
        write(folder / f"{task}.{half}.json", "".join(json.dumps(row) + "\n" for row in rows))


def natural(folder: Path, task: str) -> None:
    shown = [{"input": "a", "output": "b", "explanation": "c"}] * 2
    for half in ("train", "test"):
        rows = [{"id": f"{half}{n}", "input": f"{half} {n}", "output": [text]} for n, text in enumerate(TEXTS)]
        whole = {"Definition": ["Do."], "Positive Examples": shown, "Negative Examples": [], "Instances": rows}
        write(folder / task / f"{half}.json", whole)


def classes(folder: Path, task: str) -> None:
    for half in ("train", "test"):
        rows = [{"sentence": f"{half} {n}", "label": label} for n, label in enumerate(LABELS)]
        write(folder / TYPES[task] / task / f"{half}.json", rows)
    write(folder / TYPES[task] / task / "labels.json", LABELS)


def trace(folder: Path, task: str) -> None:
    for half in ("train", "test"):
        answers = [answer for answer in TRACE[task] if answer.strip()]
        write(folder / task / f"{half}.json", [{"prompt": f"{half} {n}", "answer": a} for n, a in enumerate(answers)])


def lines(folder: Path, task: str) -> None:
    for half in ("train", "test"):
        rows = [{"prompt": f"{half} {n}", "answer": text} for n, text in enumerate([*TEXTS, "पानी", "...", " x "])]
        write(folder / f"{task}.{half}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


# Each benchmark by an order that has all of its tasks, and what writes one of them; hub has none but the user's.
BENCHMARKS: dict[str, tuple[str, Callable[[Path, str], None] | None]] = {
    "superni": ("order=superni_10", ssr),
    "superni_15": ("order=superni_15_order1", natural),
    "long_sequence": ("order=long_sequence_order3", natural),
    "citb": ("order=citb_19_order1", natural),
    "citb_38": ("order=citb_38_order1", natural),
    "cl_benchmark": ("order=long_15_order4", classes),
    "trace_500": ("order=trace_order1", trace),
    "trace_1000": ("order=trace_order1 benchmark=trace_1000", trace),
    "trace_5000": ("order=trace_order1 benchmark=trace_5000", trace),
    "jsonl": ("order=jsonl order.tasks=[mine] benchmark.reader.folder=${paths.data}/mine", lines),
    "pocket": ("order=pocket_5", None),
}


#: Their tasks are those of the others.
COMBINED = ("combined", "stream_24")


def test_no_benchmark_that_is_shipped_is_left_out():
    assert {path.stem for path in CONF.glob("benchmark/*.yaml")} == {*BENCHMARKS, "hub", *COMBINED}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_perfect_answer_scores_100_or_the_run_says_why_before_it_begins(name, composed, tmp_path):  # noqa: F811
    order, make = BENCHMARKS[name]
    cfg: DictConfig = composed(*order.split(), f"paths.data={tmp_path}", "model=tiny", "model.max_length=4000")
    config = validate(cfg)
    if make:
        for task in config.order.tasks:
            make(Path(cfg.benchmark.reader.folder), task)
    template = build_template(config)
    told = 0
    for task in build_tasks(cfg, config, template):
        missed = [
            row.target
            for row in task.test
            for text in perfect(template, row.target)
            if best_score(task.score, text, row.references, row.prompt) < 99.99
        ]
        notices = [notice for notice in task.notices if "less than 100 against themselves" in notice]
        assert bool(missed) == bool(notices), (task.name, missed, task.notices)
        told += len(notices)
    # Of these answers a few cannot be reached: code that is nothing but a literal.
    assert told == (1 if name.startswith("trace") else 0)


def perfect(template: Any, target: str) -> list[str]:
    """What is generated where the reference's own tokens are: by an expert behind its word, and without one."""
    words = Indicators()
    written = template.text(template.target_ids(f"{words.pos} {target}")[:-1])
    return [strip_indicator(written, words), template.text(template.target_ids(target)[:-1])]
