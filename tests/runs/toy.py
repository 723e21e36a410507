"""A setting small enough to be run dozens of times: three tasks, a random model, and experts of every opinion.

The first expert sees too few steps to learn its indicators, the last one learns both, so that in one run queries are
accepted, refused and left to the base model.
"""

import json
import os
import re
import signal
import socket
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from peft import PeftModel
from transformers import LlamaForCausalLM

from see_lightning.config.search_path import CONF, register
from see_lightning.data.example import Example
from see_lightning.engine import launch, session
from see_lightning.engine.ledger import Ledger
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import UNFINISHED
from see_lightning.methods.method import Method
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import Batch

# The same numbers on every machine; and threads that wait for work would not live on in a forked process.
torch.set_num_threads(1)
register()

TASKS = {"sky": 4, "sea": 8, "ice": 12}  # training rows
LARGER = "larger"  # a base of this name has four more rows of each task
TESTED = 4
SETTINGS = (
    "order=jsonl",
    "order.tasks=[sky,sea,ice]",
    "benchmark.default.score=exact_match",
    "benchmark.default.max_new_tokens=4",
    "model=tiny",
    "model.prompt=plain",
    "indicators.pos=++",
    "indicators.neg=--",
    "adapter.targets=[q_proj,v_proj,o_proj,down_proj,lm_head]",
    "adapter.alpha=256",
    "adapter.dropout=0.05",
    "optim.lr=1.2e-2",
    "optim.epochs=10",
    "ratio=0.5",
    "data.min_negatives=0",  # of the few rows here they would be all
    "data.calibrate_on=0",
    "seed=3",
)
# With these, experts act from the assistant header on, and again are of every opinion.
ACTIVATED = ("adapter=activated_lora", "model.prompt=chat", "adapter.rank=8", "ratio=1")
# With these, the same layers are trained whole.
FULL = ("adapter=full", "optim.lr=1e-3")


# Records as a run keeps them.
ANSWER = {
    "id": "a-1", "task": "a", "prompt_sha": "0", "expert": "a", "verdicts": ["pos"], "text": "x", "target": "x", "score": 0.0,
}  # fmt: skip
SAID = {
    "id": "a-1", "task": "a", "prompt_sha": "0", "expert": "a", "verdict": "pos", "log_odds": 1.0, "margin": 1.0, "text": None,
    "truncated": None, "score": None, "key": "1",
}  # fmt: skip


def write_tasks(folder: Path, prompt: str = "{name}{name}{number}?", more: int = 0) -> Path:
    """The data of the toy: short prompts that name their task, and one answer for each task.

    Args:
        folder: is made.
        prompt: of a row.
        more: training rows of each task, in addition to those in ``TASKS``.
    """
    folder.mkdir(parents=True)
    for (name, least), answer in zip(TASKS.items(), ("x", "yy", "zz"), strict=True):
        size = least + more
        rows = [
            {"prompt": prompt.format(name=name, number=number), "answer": answer}
            for number in range(100, 100 + size + TESTED)
        ]
        for half, some in (("train", rows[:size]), ("test", rows[size:])):
            (folder / f"{name}.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def write_validation(folder: Path, size: int = 3) -> Path:
    """Validation rows of the toy's tasks, beside its other rows.

    Args:
        folder: of the data.
        size: rows of each task.
    """
    for name, answer in zip(TASKS, ("x", "yy", "zz"), strict=True):
        rows = [{"prompt": f"{name}{name}{number}?", "answer": answer} for number in range(500, 500 + size)]
        (folder / f"{name}.validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def compose(data: Path, runs: Path, *overrides: str) -> DictConfig:
    """What ``python run.py`` would compose from the toy's settings and these overrides."""
    paths = (f"benchmark.reader.folder={data}", f"paths.runs={runs}")
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra.compose("run", overrides=[*SETTINGS, *paths, *overrides])


@dataclass
class Seen:
    """A run, and what it did on its way.

    Args:
        directory: of the run.
        methods: those that were built, as they are at the end.
        fits: how often a Trainer trained.
        steps: the ids of the examples of every training step.
        drawn: stage by stage, the tasks of the rows of the method's own batches.
    """

    directory: Path = Path()
    methods: list[Method] = field(default_factory=list)
    fits: int = 0
    steps: list[list[str]] = field(default_factory=list)
    drawn: list[list[str]] = field(default_factory=lambda: [[]])

    def trained_stages(self) -> list[tuple[str, Path]]:
        """Name and expert's folder of every stage that trained something."""
        stages = Ledger(self.directory).read().content["stages"]
        return [
            (name, self.directory / "tasks" / name / "expert") for name, stage in stages.items() if stage["trained"]
        ]


def run(cfg: DictConfig) -> Seen:
    """Launch it, and look on."""
    seen = Seen()
    build, fit, step = session.build_method, L.Trainer.fit, Method.training_step
    batches, commit = Method.batches, Ledger.commit_trained

    def build_method(*arguments: Any, **more: Any) -> Method:
        seen.methods.append(build(*arguments, **more))
        return seen.methods[-1]

    def counted_fit(trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        seen.fits += 1
        fit(trainer, *arguments, **more)

    @wraps(step)
    def training_step(method: Method, batch: Any, batch_idx: int) -> Any:
        seen.steps.append(batch.ids)
        return step(method, batch, batch_idx)

    def own_batches(method: Method, examples: Sequence[Example], size: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(method, examples, size)):
            seen.drawn[-1] += [example.task for example in examples[number * size : (number + 1) * size]]
            yield batch

    def commit_trained(*arguments: Any) -> None:
        commit(*arguments)
        seen.drawn.append([])

    with ExitStack() as patches:
        patches.enter_context(patch.object(session, "build_method", build_method))
        patches.enter_context(patch.object(Method, "batches", own_batches))
        patches.enter_context(patch.object(Ledger, "commit_trained", commit_trained))
        patches.enter_context(patch.object(L.Trainer, "fit", counted_fit))
        patches.enter_context(patch.object(Method, "training_step", training_step))
        seen.directory = launch.launch(cfg, "test").parent
    return seen


def broken_off(cfg: DictConfig, at: Container[int] | None = None) -> tuple[Seen, int]:
    """A run that is broken off again and again, right after it has made something final, and repeated until it ends.

    Args:
        cfg: of the run.
        at: the numbers of the commits, counted from 1 over all attempts, after which it is broken off; None is all.

    Returns:
        How it ended, and how often it was broken off.
    """
    commit, commits, interruptions = Ledger.commit, 0, 0

    def commit_and_stop(ledger: Ledger) -> None:
        nonlocal commits
        commit(ledger)
        commits += 1
        if at is None or commits in at:
            raise InterruptedError

    with patch.object(Ledger, "commit", commit_and_stop):
        while interruptions < 100:  # many times what such a run makes final
            try:
                return run(cfg), interruptions
            except InterruptedError:
                interruptions += 1
    raise AssertionError("the run makes the same thing final again and again")


@cache
def whole(base: Path, *overrides: str) -> Seen:
    """An undisturbed run of the toy, made once in a session; ``base`` holds its data and its runs."""
    apart = f"{zlib.crc32(repr(overrides).encode()):08x}"  # from others, of which it would take over what they have
    return run(compose(data_in(base), base / "whole" / apart, *overrides))


def place_of(directory: Path) -> Path:
    """Where a run lies below its ``paths.runs``."""
    return directory.relative_to(directory.parents[3])


@cache
def data_in(base: Path) -> Path:
    """The folder of the toy's data, which all runs that are compared must share."""
    return write_tasks(base / "data", more=4 if base.name == LARGER else 0)


@cache
def defined_in(base: Path) -> Path:
    """The folder of like data, whose prompts are a definition, a blank line and an input."""
    return write_tasks(base / "defined", "{name}\n\n{name}{number}?")


# With these and such data, queries that are put otherwise find other experts and other scores.
DEFINED = ("benchmark.default.score=edit_similarity", "optim.lr=6e-3", "optim.epochs=20")
WORDS = {"sky": "say sky", "sea": "a sea", "ice": "now: ice"}  # every definition in other words
PARAPHRASES = "+benchmark.paraphrases={sky:'say sky',sea:'a sea',ice:'now: ice'}"
VARIANTS = ("variants=[paraphrased,input_only]", PARAPHRASES)


def put_otherwise(base: Path) -> dict[str, dict[str, dict[str, tuple[str, str]]]]:
    """Variant -> task -> id -> prompt and target of the defined data, written out by hand."""
    found: dict[str, dict[str, dict[str, tuple[str, str]]]] = {"input_only": {}, "paraphrased": {}}
    for task in TASKS:
        lines = (defined_in(base) / f"{task}.test.jsonl").read_text().splitlines()
        for number, row in enumerate(map(json.loads, lines), start=1):
            query = row["prompt"].removeprefix(f"{task}\n\n")
            id_, target = f"{task}-test-{number}", row["answer"]
            found["input_only"].setdefault(task, {})[id_] = query, target
            found["paraphrased"].setdefault(task, {})[id_] = f"{WORDS[task]}\n\n{query}", target
    return found


def kept(directory: Path) -> dict[str, Any]:
    """What a run must end with, whatever befell it: every file of its stages, and all of its results but the times."""
    files = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted((directory / "tasks").rglob("*"))
        if path.is_file()
    }
    results = read_results(directory)
    for name in (
        "timing",
        "commit",
        "commits",
        "starts",
        "grown_from",
        "finished",
    ):  # the code may be committed while it is tested
        results.pop(name, None)
    del results["config"]["paths"]
    if results["config"]["adapter"]["activated"]:
        for name in ("prefills", "method_tokens"):  # what the base model has read is kept in memory, so a new process
            del results["counts"][name]  # reads it again
    return {**files, "matrix.csv": (directory / "matrix.csv").read_bytes(), "results.json": results}


def read_results(directory: Path) -> dict[str, Any]:
    """``results.json``."""
    return read_file(directory / "results.json")


def read_answers(directory: Path, kind: str = "answers") -> dict[str, list[dict[str, Any]]]:
    """Stage -> its answers, as they stand in the files; or what its experts said for the first time."""
    return {
        path.parent.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(directory.glob(f"tasks/*/{kind}.jsonl"))
    }


def prompts(base: Path) -> dict[str, str]:
    """Test query -> how it is asked."""
    return {
        f"{task}-test-{number}": json.loads(line)["prompt"]
        for task in TASKS
        for number, line in enumerate((data_in(base) / f"{task}.test.jsonl").read_text().splitlines(), start=1)
    }


def forked(work: Callable[[], object], log: Path) -> int:
    """Do something in a process of its own, which may be killed.

    Args:
        work: what to do.
        log: what it prints is added to this file.

    Returns:
        0 if it was done, 1 after an exception, -9 after SIGKILL.
    """
    process = start(work, log)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def start(work: Callable[[], object], log: Path) -> int:
    """The id of a process that does something, as `forked`, but is not waited for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that a fork leaves behind: none is needed
        process = os.fork()
    if process:
        return process
    code = 1
    try:
        sys.stdout = sys.stderr = log.open("a", buffering=1)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        print(end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start_ranks(size: int, work: Callable[[], object], log: Path) -> list[int]:
    """The ids of processes that do something together, each told its rank as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        told = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1], "NODE_RANK": 0}
    processes = []
    for rank in range(size):
        mine = {name: str(value) for name, value in {**told, "RANK": rank, "LOCAL_RANK": rank}.items()}

        def work_as_rank(mine: dict[str, str] = mine) -> None:
            signal.alarm(240)  # rather than wait for the others for ever
            os.environ.update(mine)
            rank_zero_only.rank = int(mine["RANK"])  # read from the environment when Lightning was imported
            work()

        processes.append(start(work_as_rank, log))
    return processes


def ended(processes: list[int]) -> list[int]:
    """How processes ended, as `forked` tells it."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def die() -> None:
    """What ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_where_new(diary: Path, once: bool = False) -> None:
    """Patch this process to die at the first moment of making something final that the diary does not hold yet.

    Moments, for every file: half written (what a write that was cut leaves), wholly written but not yet in its place,
    and put in its place. A moment is named by the file's content, since one file is made final again and again.

    Args:
        diary: the moments at which processes before died.
        once: die at the first moment of a kind only, whatever the content.
    """
    past = set(diary.read_text().splitlines()) if diary.exists() else set()
    fsync, replace = os.fsync, os.replace

    def label(path: Path) -> str:
        if once:
            return f"{target_of(path.name)} once"
        # Times, processes and the digests of all that differ from attempt to attempt; the rest of the content does not.
        content = re.sub(rb'"seconds": ([\d.e-]+|\{[^}]*\})|process \d+|\n "sha256": "\w+"\n}', b"", path.read_bytes())
        return f"{target_of(path.name)} {zlib.crc32(content):08x}"

    def die_unless_past(moment: str, path: Path, *, cut: int = 0) -> None:
        if moment not in past:
            with diary.open("a") as file:
                file.write(moment + "\n")
            if cut:
                os.truncate(path, path.stat().st_size - cut)
            die()

    def traced_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file():
            name = label(path)
            die_unless_past(f"half written {name}", path, cut=3)
            die_unless_past(f"written {name}", path)
        fsync(descriptor)

    def traced_replace(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).is_file():
            die_unless_past(f"replaced {label(Path(target))}", Path(target))

    os.fsync, os.replace = traced_fsync, traced_replace


def kinds_of(moments: Iterable[str]) -> set[tuple[str, str]]:
    """Step and file of what `kill_where_new` noted."""
    return {(line.split()[0], line.split()[-2]) for line in moments}


def target_of(name: str) -> str:
    """What a file will be called that is being written."""
    unfinished = UNFINISHED.fullmatch(name)
    return unfinished[1] if unfinished else name


def load_everything(directory: Path) -> None:
    """Whatever the ledger of a run names is what was written, and loads; raises otherwise."""
    ledger = Ledger(directory).read()
    for name, stage in ledger.content["stages"].items():
        if stage["trained"]:
            _load_expert(ledger.verified(name) / "expert", str(stage["trained"]["files"]))
        ledger.answers(name)
        ledger.remembered(name)


@cache
def _load_expert(folder: Path, hashes: str) -> None:
    """As PEFT does; the same bytes once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a random model has no name at the hub
        PeftModel.from_pretrained(tiny_model(), folder)


def another_disk(folder: Path) -> Path | None:
    """Where temporary files may lie on another file system than a folder; None if this machine has but one."""
    for place in map(Path, ("/dev/shm", "/tmp", "/var/tmp")):
        if place.is_dir() and os.access(place, os.W_OK) and place.stat().st_dev != folder.stat().st_dev:
            return place
    return None


def count_model_calls(before: Callable[[int], None]) -> Any:
    """A patch under which ``before`` is given the number of every reading of the model, in training or answering."""
    forward, calls = LlamaForCausalLM.forward, iter(range(1, sys.maxsize))

    @wraps(forward)
    def counted(*arguments: Any, **more: Any) -> Any:
        before(next(calls))
        return forward(*arguments, **more)

    return patch.object(LlamaForCausalLM, "forward", counted)


def refused(capsys: pytest.CaptureFixture[str], main: Callable[[Sequence[str]], None], *words: str) -> str:
    """The one line with which a command refuses what was typed."""
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    return line
