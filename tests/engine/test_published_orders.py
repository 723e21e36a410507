"""Every order on disk is read and checked as a run does it, on small files in the published form, malformed rows included."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from see_lightning.config.search_path import CONF, register
from see_lightning.config.sources import combine_sources
from see_lightning.config.validation import validate
from see_lightning.engine.build import build_tasks, build_template
from see_lightning.tasks.task import Task

TYPES = {
    "TC": ("agnews", "dbpedia", "yahoo"),
    "SC": ("amazon", "yelp", "IMDB", "SST-2"),
    "NLI": ("MNLI", "RTE", "CB"),
    **{name: (name,) for name in ("QQP", "BoolQA", "MultiRC", "WiC", "COPA")},
}
LONG = " ".join(f"word {number}" for number in range(600))  # no model here reads it whole


def compose(folder: Path, *overrides: str) -> DictConfig:
    register()
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra.compose("run", overrides=["model=tiny", f"paths.data={folder}", *overrides])


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def ssr(folder: Path, tasks: Iterable[str]) -> None:
    for task in tasks:
        for half, size in (("train", 6), ("eval", 4)):
            rows = [
                {"id": f"{task}-{half}-{n}", "input": f"{half} {n}", "output": f"{n}", "task_name": task,
                 "full_prompt": f"Do {task}.\n\n{half} {n}"}
                for n in range(size)
            ]  # fmt: skip
            path = folder / "ssr_ni_split" / f"{task}.{half}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def trace(folder: Path, tasks: Iterable[str]) -> None:
    frames = {
        "C-STANCE": "判断。\n文本：\n{}\n对象：\n猫\n态度：",
        "Py150": "{}",
        "ScienceQA": "Choose.\n\nQuestion:\n{}\n\nChoices:\nA. a\nB. b\n\nAnswer:",
        "20Minuten": "Simplify.\n\nParagraph:\n{}\n\nSimplification:",
        "MeetingBank": "Sum up.\nMeeting transcripts:\n{}\nSummary:",
        "FOMC": "Which?\nText:\n{}\nStance:",
    }
    for task in tasks:
        frame = frames.get(task, "Solve.\nQuestion:\n{}\nAnswer:")
        for half in ("train", "eval", "test"):
            texts = [f"{half} {n} <EOL>" for n in range(6)] + ["stands in both", f"{half} {LONG}"]
            rows = [{"prompt": frame.format(text), "answer": f"A\n{n}"} for n, text in enumerate(texts)]
            rows += [{"prompt": frame.format(f"{half} without answer"), "answer": ""}]
            write(folder / "trace_500" / task / f"{half}.json", rows)


def cl_benchmark(folder: Path, tasks: Iterable[str]) -> None:
    of = {task: kind for kind, names in TYPES.items() for task in names}
    for task in tasks:
        place = folder / "cl_benchmark" / of[task] / task
        write(place / "labels.json", ["good", "bad"])
        for half in ("train", "dev", "test"):
            rows = [{"label": "good", "sentence": f"{half.replace('dev', 'test')} {n} \n"} for n in range(6)]
            rows += [{"label": "bad", "sentence": "stands in both"}, {"label": "bad", "sentence": f"{half} {LONG}"}]
            rows += [{"label": "-", "sentence": f"{half} without label"}, {"label": "bad", "sentence": ""}]
            write(place / f"{half}.json", rows)


def instructions(name: str, **other: Any) -> Callable[[Path, Iterable[str]], None]:
    """Task files as SAPT has them."""

    def files(folder: Path, tasks: Iterable[str]) -> None:
        for number, task in enumerate(tasks):
            for half in ("train", "dev", "test"):
                rows = [{"input": f" {half} {n}\n", "output": [f" {n}", "or"] if n % 2 else f"{n}"} for n in range(6)]
                rows += [{"input": "stands in both", "output": ["a"]}, {"input": f"{half} {LONG}", "output": ["b"]}]
                rows += [{"input": f"{half} without answer", "output": [""]}, {"input": " ", "output": ["c"]}]
                definition = [] if other.get("bare") and number % 2 else ["Do it. ", "Not read."]
                write(folder / name / task / f"{half}.json", {"Definition": definition, "Instances": rows})

    return files


def citb(folder: Path, tasks: Iterable[str]) -> None:
    for number, task in enumerate(tasks):
        rows = [{"id": f"{task}-{n}", "input": f" {n}\n", "output": [f"{n}", f"{n}.", f"{n}"]} for n in range(20)]
        rows += [{"id": "e", "input": "", "output": ["x"]}, {"id": "f", "input": LONG, "output": ["y", ""]}]
        examples = [{"input": f"i{n}", "output": "o", "explanation": ""} for n in range(number % 4)]
        content = {"Definition": ["Do it"], "Positive Examples": examples, "Negative Examples": [], "Instances": rows}
        write(folder / "citb" / "tasks" / f"{task}.json", content)


def jsonl(folder: Path, tasks: Iterable[str]) -> None:
    for task in tasks:
        for half in ("train", "test"):
            write(folder / "mine" / f"{task}.{half}.jsonl", {"prompt": f"{half} {task}", "answer": ["a", "b"]})


def stream(folder: Path, tasks: Iterable[str]) -> None:
    """Tasks of several benchmarks, each in the form of its own."""
    classes = {name for names in TYPES.values() for name in names}
    for task in tasks:
        if task in classes:
            cl_benchmark(folder, [task])
        elif task.startswith("task"):
            instructions("natural_instructions")(folder, [task])
        elif task in ("ScienceQA", "NumGLUE-cm", "Py150"):
            trace(folder, [task])
        elif task not in ("words", "french", "news", "simplify"):  # which come with a package
            ssr(folder, [task])


def parquet(folder: Path, tasks: Iterable[str]) -> None:
    for task in tasks:
        for half in ("train", "test"):
            write(folder / "hub" / task / f"{half}.json", [{"text": f"{half} {task}", "answer": "a"}])


FORMS: dict[str, tuple[Callable[[Path, Iterable[str]], None], tuple[str, ...]]] = {
    "superni_15": (instructions("natural_instructions"), ()),
    "superni": (ssr, ()),
    "trace": (trace, ()),
    "standard": (cl_benchmark, ()),
    "long_sequence": (instructions("long_sequence", bare=True), ()),
    "long_15": (cl_benchmark, ()),
    "citb": (citb, ()),
    "stream": (stream, ("train_size=4", "test_size=3")),
    "pocket": (lambda folder, tasks: None, ("train_size=4", "test_size=4")),
    "jsonl": (jsonl, ("benchmark.reader.folder={}/mine", "order.tasks=[a,b]")),
    "hub": (
        parquet,
        ("order.tasks=[a]", "benchmark.reader.datasets={{a:{{path:{}/hub/a,prompt:'{{text}}',answer:answer}}}}"),
    ),
}
ORDERS = sorted(path.stem for path in CONF.glob("order/*.yaml"))


def built(order: str, folder: Path, *more: str) -> list[Task]:
    write_files, overrides = next(form for family, form in FORMS.items() if order.startswith(family))
    cfg = compose(folder, f"order={order}", *(override.format(folder) for override in overrides), *more)
    config = validate(cfg)
    combine_sources(cfg)
    write_files(folder, config.order.tasks)
    return build_tasks(cfg, config, build_template(config))


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_read_and_checked_on_the_published_form(order: str, tmp_path: Path) -> None:
    for task in built(order, tmp_path):
        assert len(task.train) >= 1
        assert len(task.test) >= 1
        assert not {row.prompt.strip() for row in task.train} & {row.prompt.strip() for row in task.test}


def told(task: Task) -> str:
    return "\n".join(task.notices)


def test_what_o_lora_reads_is_read_and_told(tmp_path: Path) -> None:
    for task in built("long_15_order4", tmp_path):
        assert {row.target for row in task.test} == {"good", "bad", "-"}
        assert len(task.test) == 8, "of ten, one sentence and the empty one stand in train"
        assert "2 of 18 rows are read as published: the label '-' is none of labels.json" in told(task)
        assert "the sentence is empty" in told(task)
        assert "prompts were cut to fit" in told(task)
        assert all(row.prompt.endswith("\nAnswer:") for row in task.test)


def test_what_sapt_reads_is_read_and_told(tmp_path: Path) -> None:
    for order in ("superni_15_order1", "long_sequence_order3"):
        for number, task in enumerate(built(order, tmp_path)):
            assert "" in {row.target for row in task.train}
            assert " 1" in {row.target for row in task.train}
            assert any(row.references == (" 1", "or") for row in task.test)
            assert "read as published: the answer is empty" in told(task)
            assert "read as published: the input is empty" in told(task)
            assert ("has no definition" in told(task)) == (order.startswith("long") and number % 2 == 1)
            assert all(row.prompt.endswith("\nOutput: ") for row in task.test)


def test_what_trace_reads_is_read_and_told(tmp_path: Path) -> None:
    for task in built("trace_order1", tmp_path):
        assert "" in {row.target for row in task.test}
        assert "read as published: the answer is empty" in told(task)
        assert "test rows were left out, since their prompts are also in the training rows" in told(task)
        assert "prompts were cut to fit" in told(task)


def test_what_citb_reads_is_read_and_told(tmp_path: Path) -> None:
    for order in ("citb_19_order1", "citb_38_order1"):
        tasks = built(order, tmp_path)
        for task in tasks:
            assert [row.references for row in task.test if row.id.endswith("-1")] == [("1", "1.")]
            assert "was split as CITB does, by the order of its rows" in told(task)
        assert any("has 0 positive examples, of 2 to be shown" in told(task) for task in tasks)
