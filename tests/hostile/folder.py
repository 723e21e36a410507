"""Run folders as somebody who means harm would make them, out of a finished run: ``python -m tests.hostile.folder OUT``.

Each attack is a function that is given a copy of the run and a ``World`` of things outside of it. What must not happen
leaves a trace there: code that runs makes the file ``ran``, and what is written through a link changes ``home``.
"""

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from see_lightning.config import trust
from see_lightning.files import run_files

SECRET = "what-no-folder-may-learn"  # value of the environment variable SEE_SECRET
CONTROLS = "\x1b]0;owned\x07\x1b[2Jna\rme\nsecond line\x9b31m\u202e\x7f"
FORMULAS = ("=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1+1")
MARKERS = "a | b\n<!-- end -->\n<!-- scores: jsonl -->\n`<script>alert(1)</script>` [x](javascript:1)"
#: Files of a run that hold JSON or YAML, and one of each kind below ``tasks``.
PARSED = (
    *("config.yaml", "ledger.json", "results.json", "rows.json"),
    *("study.json", "perplexity.json", "transfer.json", "route.json", "harness.json"),
    *("tasks/03-ice/expert/expert.json", "tasks/03-ice/expert/adapter_config.json"),
)
SHAPES = {
    "object": b"{}",
    "null": b"null",
    "number": b"7",
    "empty": b"",
    "latin": b'{"caf\xe9": 1}',
    "texts": b'{"about": "x", "stages": "x", "tasks": "x", "matrix": "x", "config": "x"}',
}
#: Names at which a command may find a link where it reads.
LINKED = (
    *("config.yaml", "ledger.json", "results.json", "rows.json", "report.html"),
    *("study.json", "perplexity.json", "transfer.json", "route.json", "harness.json"),
    *("answers", "answers/page-1.js"),
    *("tasks", "tasks/03-ice", "tasks/03-ice/remembered.jsonl", "tasks/03-ice/transfer_remembered.jsonl"),
    *("tasks/03-ice/expert", "tasks/03-ice/expert/expert.json"),
)
#: Files in whose place it may find a pipe, which nobody ever writes into.
PIPED = (
    *("config.yaml", "ledger.json", "results.json", "study.json", "perplexity.json", ".lock-holder"),
    *("tasks/03-ice/remembered.jsonl", "tasks/03-ice/expert/expert.json", "answers/index.js"),
    "tasks/03-ice/expert/adapter_model.safetensors",
)
#: Names at which it may find a link where it only writes, also those that earlier versions wrote to for a moment.
WRITTEN = (
    *(".lock", ".lock-holder", "matrix.csv", "runs.csv", "comparison.csv", "comparison.html"),
    *("jsonl_tasks.svg", "jsonl_tasks.csv", "jsonl_capacity.svg", "jsonl_perplexity.csv", "jsonl_transfer.csv"),
    *(f".{name}.tmp" for name in ("ledger.json", "results.json", "report.html", "study.json", "perplexity.json")),
    *("route.csv", "route.svg", ".route.json.tmp"),
    *(f".{name}.tmp" for name in ("transfer.json", "harness.json", "runs.csv", "comparison.csv", "comparison.html")),
)
#: Where a configuration may name a class, or a value might be taken for one.
NODES = (
    *("method", "benchmark", "benchmark.reader", "trainer", "logger", "model", "adapter", "optim", "paths", "order"),
    *("method.ratio", "method.indicators", "benchmark.default", "benchmark.tasks", "benchmark.reader.folder"),
    *("model.template_args.x", "trainer.callbacks", "trainer.plugins", "adapter.targets", "ood.sources.x"),
)
EVIL = "evil_module"
OWN_MODULES = (EVIL, "evil_reader")
SHADOWS = ("torch", "numpy", "yaml", "hydra", "sitecustomize", "usercustomize")  # modules that a command imports


@dataclass(frozen=True)
class World:
    """What lies around a hostile run folder.

    Args:
        home: of its reader, with files that nobody may change.
        ran: a file that code of the folder would make.
        working: the reader's working folder, which is the run's neighbour and as little to be trusted.
    """

    home: Path
    ran: Path
    working: Path

    @property
    def code(self) -> str:
        """A module that leaves a trace when it is imported."""
        return (
            f"open({str(self.ran)!r}, 'a').write(__name__ + '\\n')\ndef make(*a, **k): open({str(self.ran)!r}, 'a')\n"
        )


Attack = Callable[[Path, World], None]


def make_world(place: Path) -> World:
    """A home folder, and a working folder with modules that bear the names of libraries."""
    world = World(place / "home", place / "ran", place / "working")
    world.home.mkdir(parents=True)
    world.working.mkdir()
    (world.home / ".bashrc").write_text("# as it was\n")
    (world.home / "folder").mkdir()
    (world.home / "folder" / "notes.txt").write_text("as they were\n")
    for name in (*OWN_MODULES, *SHADOWS):
        (world.working / f"{name}.py").write_text(world.code)
    return world


def snapshot(*folders: Path) -> dict[str, tuple[int, int, str]]:
    """Every file, folder and link below some folders: its mode, when it was changed, and its content or where it leads."""
    found = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        content = (
            os.readlink(path)
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else ""
        )
        facts = path.lstat()
        found[str(path)] = facts.st_mode, facts.st_mtime_ns, content
    return found


def digests(run: Path) -> dict[Path, str]:
    """sha256 of every file of a run."""
    files = (path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def reseal(run: Path, before: dict[Path, str]) -> None:
    """Put the digests of changed files where they stand, as somebody would who knows how a run is checked."""
    changed = [path for path, now in digests(run).items() if before.get(path) != now]
    for path in changed:
        text = path.read_bytes().decode(errors="surrogateescape")
        with suppress(ValueError, RecursionError):
            content = json.loads(text) if path.suffix == ".json" else None
            if isinstance(content, dict) and content.pop(run_files.SEAL, None):
                path.write_text(json.dumps(run_files.seal(content), indent=1), encoding="utf-8")
        if path.name == "config.yaml" and trust.SEAL in text:
            body = text.rpartition(trust.SEAL)[0]
            path.write_text(f"{body}{trust.SEAL}{hashlib.sha256(body.encode()).hexdigest()}\n", encoding="utf-8")
    ledger = run / "ledger.json"
    if not ledger.is_symlink() and ledger.is_file():
        content = ledger.read_bytes()
        for path, now in digests(run).items():
            if path in before and path != ledger:
                content = content.replace(before[path].encode(), now.encode())
        ledger.write_bytes(content)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change the content of a JSON or YAML file."""
    is_yaml = path.suffix == ".yaml"
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text) if is_yaml else json.loads(text)
    change(content)
    seal = f"{trust.SEAL}of before\n" if trust.SEAL in text else ""
    path.write_text(yaml.safe_dump(content) + seal if is_yaml else json.dumps(content, indent=1), encoding="utf-8")


def put(content: Any, name: str, value: Any) -> None:
    """Set what stands under a dotted name; groups that are missing are made."""
    *groups, last = name.split(".")
    for group in groups:
        content[group] = content = content.get(group) if isinstance(content.get(group), dict) else {}
    content[last] = value


def texts_of(content: Any) -> Iterator[tuple[Any, Any]]:
    """Of all texts in a content of JSON, the object or list in which each stands, and its key there."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(pairs):
        if isinstance(value, str):
            yield content, key
        yield from texts_of(value)


# --------------------------------------------------------------------------------------------------- attacks


def _link(name: str) -> Attack:
    def attack(run: Path, world: World) -> None:
        path, target = run / name, world.home / "linked"
        if path.is_dir():
            shutil.copytree(path, target)
            shutil.rmtree(path)
        elif path.exists():
            shutil.copy(path, target)
            path.unlink()
        else:
            target.write_text("as it was\n")
        path.symlink_to(target)

    return attack


def _pipe(name: str) -> Attack:
    def attack(run: Path, world: World) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return attack


def _links(run: Path, world: World) -> None:
    """Links at every name that a command writes and none reads, each to a file of its own."""
    for number, name in enumerate(WRITTEN):
        (run / name).unlink(missing_ok=True)
        (world.home / f"linked-{number}").write_text("as it was\n")
        (run / name).symlink_to(world.home / f"linked-{number}")


def _shape(name: str, content: bytes) -> Attack:
    def attack(run: Path, world: World) -> None:
        (run / name).write_bytes(content)

    return attack


def _config(name: str, value: Callable[[World], Any]) -> Attack:
    def attack(run: Path, world: World) -> None:
        edit(run / "config.yaml", lambda content: put(content, name, value(world)))

    return attack


def _target(name: str, target: str, *arguments: str) -> Attack:
    """A configuration that names a class or function, beside what stands there."""

    def attack(run: Path, world: World) -> None:
        (run / f"{EVIL}.py").write_text(world.code)
        given = {"_target_": target, "_args_": [word.format(ran=world.ran) for word in arguments]}

        def change(content: Any) -> None:
            if name.startswith("ood"):
                content["ood"] = {"sources": {"x": given}, "dir": None, "tasks": None}
            else:
                put(content, name, given)

        edit(run / "config.yaml", change)

    return attack


def _ledger_target(run: Path, world: World) -> None:
    """A reader in the ledger's settings, which are read to find out what a run was made from."""
    (run / f"{EVIL}.py").write_text(world.code)
    edit(run / "ledger.json", lambda content: put(content, "about.numbers.benchmark.reader._target_", f"{EVIL}.make"))


def _results_target(run: Path, world: World) -> None:
    """Foreign queries that were asked, by the results: ``calibrate`` asks them again."""
    asked = {"sources": {"x": {"_target_": f"{EVIL}.make"}}, "dir": None, "tasks": None, "size": 1}
    edit(run / "results.json", lambda content: put(content, "ood", {"asked": asked, "base_share": 1.0, "per_task": {}}))
    edit(run / "results.json", lambda content: put(content, "config.benchmark.reader", {"_target_": f"{EVIL}.make"}))


def _results_resolver(run: Path, world: World) -> None:
    """The same, with a name that would be looked up."""
    edit(
        run / "results.json",
        lambda content: put(content, "ood", {"asked": {"dir": "${oc.env:SEE_SECRET}", "sources": {}}}),
    )


def _remote_code(run: Path, world: World) -> None:
    """A model inside of the run that brings its own classes."""
    model = run / "model"
    model.mkdir()
    (model / "modeling.py").write_text(world.code)
    classes = {name: f"modeling.{name}" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")}
    (model / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": classes}))
    (model / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["modeling.T", None]}}))
    more = {"source": "hub", "name": str(model), "trust_remote_code": True}
    edit(run / "config.yaml", lambda content: content["model"].update(more))


def _expert_code(run: Path, world: World) -> None:
    """An adapter that names classes of its own, and weights that are a pickle."""
    expert = run / "tasks/03-ice/expert"
    (expert / "modeling.py").write_text(world.code)
    edit(expert / "adapter_config.json", lambda content: content.update(auto_mapping={"base_model_class": EVIL}))
    edit(expert / "adapter_config.json", lambda content: content.update(peft_type="../modeling", megatron_core=EVIL))


class _Pickled:
    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.ran}",)


def _pickle(run: Path, world: World) -> None:
    """Weights that are a pickle, under the name of safe ones and under PEFT's older name."""
    expert = run / "tasks/03-ice/expert"
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        (expert / name).write_bytes(pickle.dumps(_Pickled(world.ran)))


def _resolver(name: str, text: str) -> Attack:
    return _config(name, lambda world: text)


def _yaml_bomb(run: Path, world: World) -> None:
    """Ten million words in a few lines."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 7)]
    path = run / "config.yaml"
    path.write_text("\n".join([*lines, path.read_text()]))


def _nested(name: str, depth: int) -> Attack:
    return _shape(name, b"[" * depth + b"]" * depth if name.endswith("json") else b"a: " + b"[" * depth + b"]" * depth)


def _texts(name: str, texts: Iterable[str]) -> Attack:
    """Every text of a file is another, whatever of it is shown."""
    texts = list(texts)

    def attack(run: Path, world: World) -> None:
        def change(content: Any) -> None:
            for place, (part, key) in enumerate(texts_of(content)):
                part[key] = texts[place % len(texts)]

        edit(run / name, change)

    return attack


def _tasks(texts: Iterable[str]) -> Attack:
    """Results that are whole, in which tasks, model, commits, command and notices are texts of the attacker's choice."""
    texts = list(texts)

    def attack(run: Path, world: World) -> None:
        def change(results: Any) -> None:
            tasks = [f"{texts[place % len(texts)]}{place}" for place in range(len(results["tasks"]))]
            new = dict(zip(results["tasks"], tasks, strict=True))

            def renamed(value: Any) -> Any:
                if isinstance(value, dict):
                    return {new.get(key, key): renamed(part) for key, part in value.items()}
                if isinstance(value, list):
                    return [renamed(part) for part in value]
                return new.get(value, value) if isinstance(value, str) else value

            found = renamed(results)
            results.clear()
            results.update(found)
            results |= {name: texts[0] for name in ("model", "commit")} | {"command": f"python run.py {texts[0]}"}
            results |= {"commits": [texts[0]], "notices": texts, "versions": {"torch": texts[-1]}}
            results["config"]["model"]["name"] = texts[0]

        edit(run / "results.json", change)

    return attack


def _paths(change: Callable[[Any, World], None], name: str) -> Attack:
    return lambda run, world: edit(run / name, lambda content: change(content, world))


def _stage_outside(content: Any, world: World) -> None:
    stages = content["stages"]
    stages[f"../../../../../../..{world.home}/folder"] = stages.pop("03-ice")


def _file_outside(content: Any, world: World) -> None:
    files = content["stages"]["03-ice"]["trained"]["files"]
    files[f"../../../../../../../../../..{world.home}/folder/notes.txt"] = files.pop("expert/expert.json")


def _set(**values: Any) -> Callable[[Any, World], None]:
    def change(content: Any, world: World) -> None:
        for name, value in values.items():
            put(content, name.replace("__", "."), value.format(home=world.home) if isinstance(value, str) else value)

    return change


ATTACKS: dict[str, Attack] = {
    **{f"link {name}": _link(name) for name in LINKED},
    "links written": _links,
    **{f"pipe {name}": _pipe(name) for name in PIPED},
    **{f"shape {name} {kind}": _shape(name, content) for name in PARSED for kind, content in SHAPES.items()},
    **{f"nested {name}": _nested(name, 100_000) for name in PARSED},
    **{f"target {name}": _target(name, f"{EVIL}.make", "x") for name in NODES},
    "target torch.load": _target("method.ratio", "torch.load", "{ran}"),
    "target os.system": _target("method.ratio", "os.system", "touch {ran}"),
    "target subprocess": _target("method.ratio", "subprocess.check_output", "touch {ran}"),
    "target exec": _target("method.ratio", "builtins.exec", "open('{ran}','w')"),
    "target get_object": _target("method.indicators", "hydra.utils.get_object", f"{EVIL}.make"),
    "target posix": _target("benchmark.default", "posix.system", "touch {ran}"),
    "target reader elsewhere": _target("benchmark.reader", "evil_reader.make"),
    "target of the ledger": _ledger_target,
    "target of the results": _results_target,
    "resolver of the results": _results_resolver,
    "remote code": _remote_code,
    "expert with code": _expert_code,
    "pickle": _pickle,
    "resolver model": _resolver("model.system_prompt", "${oc.env:SEE_SECRET}"),
    "resolver order": _resolver("order.name", "${oc.env:SEE_SECRET}"),
    "resolver version": _resolver("benchmark.version", "${oc.env:SEE_SECRET}"),
    "resolver decode": _resolver("benchmark.name", "${oc.decode:'${oc.env:SEE_SECRET}'}"),
    "yaml bomb": _yaml_bomb,
    **{f"controls {name}": _texts(name, [CONTROLS]) for name in PARSED},
    "controls tasks": _tasks([CONTROLS]),
    "formulas tasks": _tasks(FORMULAS),
    "marks tasks": _tasks([MARKERS]),
    "paths ledger.json stage": _paths(_stage_outside, "ledger.json"),
    "paths ledger.json file": _paths(_file_outside, "ledger.json"),
    "paths config.yaml order": _paths(_set(order__name="../../../../../../..{home}/folder"), "config.yaml"),
    "paths config.yaml tasks": _paths(_set(order__tasks=["../../../up", "sea", "ice"]), "config.yaml"),
    "paths config.yaml runs": _paths(_set(paths__runs="{home}/folder", paths__cache="{home}/folder"), "config.yaml"),
    "paths results.json order": _paths(
        _set(order="../../../../../../..{home}/folder", method="../../..", seed=1), "results.json"
    ),
    "paths results.json absolute": _paths(_set(order="{home}/folder", method="x"), "results.json"),
    "numbers results.json NaN": _paths(_set(metrics__AR=float("nan"), matrix=[[float("inf")] * 3] * 3), "results.json"),
    "numbers results.json huge": _paths(_set(seed=10**400, matrix=[[10**400] * 3] * 3), "results.json"),
    "numbers ledger.json": _paths(_set(stages__x={"trained": None, "answers": {"sky": {"start": -5, "end": 10**30}}}), "ledger.json"),
    "numbers config.yaml": _paths(_set(adapter__alpha=float("nan"), seed=10**400, optim__lr=float("inf")), "config.yaml"),
    "numbers results.json digits": _shape("results.json", b'{"seed": ' + b"9" * 5000 + b"}"),
}  # fmt: skip


def hostile(run: Path, name: str, world: World) -> Path:
    """Turn a copy of a finished run into a hostile one, whose ledger agrees with what was changed.

    Args:
        run: the copy.
        name: of ``ATTACKS``.
        world: around it.
    """
    before = digests(run)
    ATTACKS[name](run, world)
    reseal(run, before)
    return run


def main(out: Path) -> None:
    """Make every hostile folder below a folder, each with its world."""
    from tests.runs import toy

    whole = toy.whole(out / "toy").directory
    for name in ATTACKS:
        place = out / name.replace("/", "_").replace(" ", "_")
        run = place / toy.place_of(whole)
        shutil.copytree(whole, run)
        for beside in ("study", "perplexity", "transfer", "harness"):
            (run / f"{beside}.json").write_text("{}")
        hostile(run, name, make_world(place / "world"))
        print(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
