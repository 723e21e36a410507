"""A run folder that somebody else made is data: whatever it holds, nothing runs and nothing outside of the output changes."""

import csv
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import lm_eval.tasks
import pytest

from see_lightning import load_ensemble
from see_lightning.cli import (
    ask,
    calibrate,
    compare,
    figures,
    harness,
    perplexity,
    publish,
    route,
    runs,
    study,
    transfer,
)
from see_lightning.cli import (
    report as report_again,
)
from see_lightning.cli.run import main as run_main
from see_lightning.config.explain import explain
from see_lightning.errors import Refusal
from see_lightning.files.text import visible
from tests.hostile.folder import ATTACKS, NODES, OWN_MODULES, SECRET, World, hostile, make_world, snapshot
from tests.nightly import all_but, first_of_each_kind
from tests.runs import toy

ROOT = Path(__file__).parents[2]
LIMIT = 60  # seconds that a command may take
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
PROGRESS = re.compile(r"\r *\d+%\|[^\r\n]*")  # the harness's own
DOCUMENT = "# Results\n\n<!-- scores: jsonl -->\n<!-- end -->\n\n<!-- capacity: jsonl -->\n<!-- end -->\n\n<!-- routers: jsonl -->\n<!-- end -->\n"
HARNESS = """
task: toy_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/rows.jsonl}, cache_dir: DIR/cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [x, yy, zz]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@dataclass(frozen=True)
class Around:
    """What a command is given besides the run: the folder of runs, an empty folder for its output, and the data."""

    runs: Path
    out: Path
    data: Path


def report(run: Path, around: Around) -> None:
    paths = (f"benchmark.reader.folder={around.data}", f"paths.runs={around.runs}")
    run_main([*toy.SETTINGS, *paths])


def loaded(run: Path, around: Around) -> None:
    try:
        load_ensemble(run)
    except Refusal as error:
        print(visible(explain(error)), file=sys.stderr)
        raise SystemExit(2) from None


def published(run: Path, around: Around) -> None:
    document = around.out / "RESULTS.md"
    document.write_text(DOCUMENT)
    publish.main([str(around.out / "results"), str(document), "--add", str(run)])
    before = document.read_bytes()
    publish.main([str(around.out / "results"), str(document)])
    assert document.read_bytes() == before, "published once more, the document is another"


def put_to_harness(run: Path, around: Around) -> None:
    tasks = around.out / "tasks"
    tasks.mkdir()
    (tasks / "toy_choice.yaml").write_text(HARNESS.replace("DIR", str(tasks)))
    (tasks / "rows.jsonl").write_text('{"question": "skysky1?", "label": 0}\n')
    words = ["--tasks", "toy_choice", "--adapters", "base", "--include-path", str(tasks)]
    harness.main([str(run), *words, "--out", str(around.out / "harness.json")])


def measured_anew(run: Path, around: Around) -> None:
    if not (run / "perplexity.json").is_symlink():
        (run / "perplexity.json").unlink()
    perplexity.main([str(run)])


def reported_anew(run: Path, around: Around) -> None:
    if not (run / "answers").is_symlink():
        shutil.rmtree(run / "answers")
    report_again.main([str(run)])


Command = Callable[[Path, Around], None]
ROUTERS = ("--router", "walk", "--router", "none", "--no-answers")
#: Those that only look; what they write, they write into the folder for it.
LOOKING: dict[str, Command] = {
    "ask": lambda run, around: ask.main([str(run), "skysky104?", "--max-new-tokens", "4"]),
    "load": loaded,
    "runs": lambda run, around: runs.main([str(around.runs)]),
    "compare": lambda run, around: compare.main([str(run), "--out", str(around.out)]),
    "figures": lambda run, around: figures.main([str(run), "--out", str(around.out)]),
    "publish": published,
    "harness --out": put_to_harness,
    "report --out": lambda run, around: report_again.main([str(run), "--out", str(around.out)]),
}
WRITING: dict[str, Command] = {
    "report": report,
    "report again": lambda run, around: report_again.main([str(run)]),
    "report anew": reported_anew,
    "compare into it": lambda run, around: compare.main([str(run), "--out", str(run)]),
    "study": lambda run, around: study.main([str(run)]),
    "study --answer": lambda run, around: study.main([str(run), "--answer"]),
    "perplexity": lambda run, around: perplexity.main([str(run)]),
    "perplexity anew": measured_anew,
    "transfer": lambda run, around: transfer.main([str(run)]),
    "route": lambda run, around: route.main([str(run), *ROUTERS]),
    "route --size": lambda run, around: route.main([str(run), *ROUTERS, "--size", "1"]),
    "transfer --size": lambda run, around: transfer.main([str(run), "--size", "1"]),
    "calibrate": lambda run, around: calibrate.main([str(run), "--on", "train"]),
}
COMMANDS = {**LOOKING, **WRITING}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends what takes longer."""

    def end(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def measured(base, tmp_path_factory) -> Path:
    """The folder of runs with one finished run, of which all was measured that a command can measure."""
    whole = toy.whole(base).directory
    place = tmp_path_factory.mktemp("measured")
    run = place / toy.place_of(whole)
    shutil.copytree(whole, run)
    for command in (study, perplexity, transfer):
        command.main([str(run)])
    route.main([str(run), *ROUTERS])
    (run / "harness.json").write_text(json.dumps({"tasks": ["toy_choice"], "limit": None, "num_fewshot": None}))
    return place


@pytest.fixture
def put(measured, base, tmp_path, monkeypatch, capfd):
    """Put one hostile folder to one command: what is wrong with what came of it."""
    monkeypatch.setenv("SEE_SECRET", SECRET)
    found_alone = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    datasets.disable_progress_bars()
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", found_alone)  # all of the harness's own take seconds to be found
    count = 0

    def put_to(attack: str | None, name: str) -> list[str]:
        nonlocal count
        count += 1
        place = tmp_path / str(count)
        world = make_world(place / "world")
        shutil.copytree(measured, place / "runs")
        (run,) = (path.parent for path in (place / "runs").rglob("ledger.json"))
        if attack:
            hostile(run, attack, world)
        around = Around(place / "runs", place / "out", toy.data_in(base))
        around.out.mkdir()
        monkeypatch.setenv("HOME", str(world.home))
        monkeypatch.chdir(world.working)
        monkeypatch.setattr(sys, "path", [str(world.working), *sys.path])
        outside = [world.home, world.working, around.data, *([run] if name in LOOKING else [])]
        for module in set(OWN_MODULES) & set(sys.modules):
            del sys.modules[module]  # of the folder before
        before = snapshot(*outside)
        capfd.readouterr()
        wrong = list(_put(COMMANDS[name], run, around, world, 1 if name == "report" else 2, capfd))
        after = snapshot(*outside)
        wrong += [f"{path} was changed" for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
        if world.ran.exists():
            wrong.append(f"code ran: {world.ran.read_text()!r}")
        wrong += list(_bad_outputs(around, run if name in WRITING else None))
        return [f"{attack} | {name} | {one}" for one in wrong]

    return put_to


def _put(command: Command, run: Path, around: Around, world: World, refused: int, capfd) -> Iterator[str]:
    code: object = 0
    try:
        with limited(LIMIT):
            command(run, around)
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        yield f"{type(error).__name__}: {str(error)[:200]!r}"
        return
    told = capfd.readouterr()
    for stream in (told.out, told.err):
        if found := CONTROL.search(PROGRESS.sub("", stream)):
            yield f"control sequence in the output: {stream[max(0, found.start() - 40) : found.end() + 20]!r}"
        if SECRET in stream:
            yield "the environment is told"
    if code:
        lines = [
            line for line in told.err.splitlines() if not re.match(r"note: |\d+ further answers were generated", line)
        ]
        if code != refused:
            yield f"ended with {code!r}"
        if len(lines) != 1:
            yield f"refused in {len(lines)} lines: {told.err[-300:]!r}"
        elif str(around.runs) not in lines[0]:
            yield f"no file is named: {lines[0][:300]!r}"


def _bad_outputs(around: Around, run: Path | None) -> Iterator[str]:
    written = [path for path in around.out.rglob("*") if path.is_file()]
    written += [path for path in run.glob("*.csv") if not path.is_symlink()] if run and run.is_dir() else []
    for path in written:
        if path.suffix == ".csv":
            for line in csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")):
                for cell in line:
                    if cell[:1] in "=+-@\t\r" and cell and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell):
                        yield f"{path.name} has the formula {cell!r}"
        elif path.suffix in (".html", ".svg", ".md"):
            text = path.read_text(encoding="utf-8")
            if "<script>alert" in (re.sub(r"(`+)(?!`).*?[^`]\1(?!`)", "", text) if path.suffix == ".md" else text):
                yield f"{path.name} has a script"
        if SECRET in path.read_bytes().decode(errors="replace"):
            yield f"{path.name} tells the environment"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_folder_before_anything_is_done_to_it(put, name):
    assert put(None, name) == []


COMPOSING = (
    *(
        "ask",
        "load",
        "harness --out",
        "study --answer",
        "perplexity anew",
        "transfer --size",
        "route --size",
        "report anew",
    ),
    "calibrate",
)
#: By file, the commands that read it; what else was changed goes to every command.
READ_BY = {
    "config.yaml": ("report", *COMPOSING),
    "rows.json": ("report", "load"),
    "study.json": ("report", "report again", "study", "publish"),
    "perplexity.json": ("perplexity", "figures", "publish"),
    "transfer.json": ("transfer", "figures", "publish"),
    "route.json": ("route", "report", "report again", "publish", "study"),
    "index.js": ("report again", "report --out"),
    "page-1.js": ("report again", "report --out"),
    "harness.json": ("publish", "harness --out"),
    "expert.json": ("ask", "load", "report", "transfer --size"),
    "adapter_config.json": ("ask", "load", "report", "transfer --size"),
}


def commands_for(attack: str) -> Iterable[str]:
    """Every command, or where an attack changes one file, those that read it."""
    kind, _, rest = attack.partition(" ")
    if kind == "target" and rest in NODES:
        return "ask", "study --answer", "calibrate"
    if kind in ("target", "resolver", "remote", "yaml") and not rest.startswith("of the"):
        return COMPOSING
    return READ_BY.get(Path(rest.split(" ")[0]).name, COMMANDS)


@pytest.mark.parametrize("attack", all_but(first_of_each_kind(ATTACKS), ATTACKS))
def test_a_hostile_folder_is_data(put, attack):
    wrong = [one for name in commands_for(attack) for one in put(attack, name)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "see_lightning.ask", "RUN", "a", "--max-new-tokens", "4"],
        ["-m", "see_lightning.runs", "RUN"],
        [str(ROOT / "run.py"), "--help"],
    ],
    ids=["ask", "runs", "run.py"],
)
def test_modules_of_the_working_folder_are_not_imported(measured, tmp_path, words):
    world = make_world(tmp_path)
    run = next(measured.rglob("ledger.json")).parent
    done = subprocess.run(
        [sys.executable, *(str(run) if word == "RUN" else word for word in words)],
        cwd=world.working, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, world.ran.exists()) == (0, False), done.stderr
