"""The runs whose outcome is kept: which they are, what is measured of them, and how two outcomes are compared."""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
import torch
from safetensors.torch import load_file

from see_lightning.config.identity import run_key
from see_lightning.config.search_path import CONF
from see_lightning.engine import launch
from tests.contracts.conftest import TRAINING, declared
from tests.runs import toy

GOLDEN = Path(__file__).parent
MAKE = "python -m tests.golden.make"

# Old name of a measured value (or the beginning of its path) -> the name it has by now.
RENAMED: dict[str, str] = {}
# Fields of the lines of a file that are hashed, in this order. A field that gets another name gets it here.
FIELDS = {
    "answers": ("id", "task", "prompt_sha", "expert", "verdicts", "text", "target", "score"),
    "ood": ("id", "task", "prompt_sha", "expert", "verdicts", "text", "target", "score"),
    "remembered": ("id", "task", "prompt_sha", "expert", "verdict", "text", "truncated", "score"),
}
# Parts of results.json that tell of the machine, the moment, the place or in which words, and not of a number.
LEFT_OUT = {
    *(
        "command",
        "commit",
        "commits",
        "starts",
        "grown_from",
        "finished",
        "versions",
        "timing",
        "config",
        "contents",
        "sha256",
    ),
    *("notices", "formulas", "benchmark", "asked", "paraphrases"),
}

# Small steps, or the last digit of a sum would decide what is learned; and every step's loss is written down.
PROMPT = "{name}{name}{number}?"
SETTINGS = ("model.dtype=fp32", "optim.lr=4e-3", "benchmark.default.score=edit_similarity", "logger=csv")
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
EVAL_SETS = (*toy.DEFINED, "variants=[input_only]", "ood=folder", "ood.dir={ood}", "ood.size=3", "ood.every=true")
MORE = {
    "see_calibrated": ("method=see", "method.calibrate_on=2", "method.general_negatives=2", "method.ood_examples=3"),
    "see_warm_start": ("method=see", "method.warm_start=knn", "method.other_instructions=2"),
    "see_beside": ("method=see", *EVAL_SETS),
    "sema_autoencoder": ("method=sema", "method.descriptor=autoencoder", "method.reject_above=10"),
    "moses_key": ("method=moses", "method.task_id=key", "method.granularity=rank"),
    "moses_entropy": ("method=moses", "method.task_id=entropy", "method.own_pool=true"),
    "exssnet_key": ("method=exssnet", "method.task_id=key", "method.warm_start=loss"),
    "moram_prune": ("method=moram", "method.prune=0.25"),
    "merge_opcm": ("method=merge", "rule=opcm"),
    "merge_dare_ties": ("method=merge", "rule=dare_ties"),
    "merge_frank_wolfe": ("method=merge", "rule=frank_wolfe", "rule.rows=2"),
}
TWO_RANKS = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
# Runs of the packaged model on the package's tasks. Its sums are too large to be equal to the last bit on every machine of one
# kind: numbers are compared within this share, and texts exactly.
REAL = {
    "smollm2_see": (
        *("method=see", "order.tasks=[news,words]", "adapter=lora", "model.dtype=fp32", "logger=csv", "trainer=cpu"),
        *(
            "train_size=4",
            "test_size=2",
            "optim.epochs=4",
            "optim.lr=4e-3",
            "optim.global_batch_size=2",
            "benchmark.max_new_tokens=8",
        ),
    )
}
WITHIN = 1e-3
CASES: dict[str, tuple[str, ...]] = {
    **REAL,
    **{name: (f"method={name}",) for name in METHODS},
    **{f"{name}_activated": (f"method={name}", *toy.ACTIVATED) for name in TRAINING if declared(name).takes_activated},
    **MORE,
    **{f"{name}_two_ranks": (f"method={name}", *TWO_RANKS) for name in ("see", "replay")},
}


@cache
def processor() -> str:
    """What this processor's arithmetic is: one name, one result of the same sums to the last bit."""
    generator = torch.Generator().manual_seed(0)
    sha = hashlib.sha256()
    for rows, inner, columns in ((3, 32, 64), (40, 64, 32), (130, 32, 300)):
        a = torch.randn(rows, inner, generator=generator)
        b = torch.randn(inner, columns, generator=generator).requires_grad_()
        c = torch.nn.functional.silu(a @ b).softmax(-1).log().mean(-1).sum()
        c.backward()
        for tensor in (a @ b, a.exp(), a.rsqrt(), c, b.grad):
            sha.update(tensor.detach().numpy().tobytes())
    return f"{torch.backends.cpu.get_cpu_capability()} {sha.hexdigest()[:8]}"


def write_foreign(folder: Path) -> Path:
    """One task that no run learns, in official files."""
    rows = [{"id": f"fog-{n}", "input": f"fog{n}?", "output": ["q"]} for n in range(6)]
    for half, some in (("train", rows[:2]), ("test", rows[2:])):
        (folder / "fog").mkdir(parents=True, exist_ok=True)
        whole = {"Definition": ["fog"], "Instances": some, "Positive Examples": []}
        (folder / "fog" / f"{half}.json").write_text(json.dumps(whole))
    return folder


def measure(name: str, place: Path) -> dict[str, Any]:
    """Do a run, and measure it.

    Args:
        name: of the run in ``CASES``.
        place: an empty folder, for its data and its run directory.

    Returns:
        path of a value -> the value: a number, a text, a digest, or a list of them.
    """
    if name in REAL:
        return measure_real(name, place)
    ood = write_foreign(place / "foreign")
    found: dict[str, Any] = {"settings": " ".join(CASES[name])}
    overrides = [*SETTINGS, *(word.format(ood=ood) for word in CASES[name])]
    data = toy.write_tasks(place / "data", "{name}\n\n{name}{number}?" if name == "see_beside" else PROMPT)
    cfg = toy.compose(data, place / "runs", *overrides)
    if cfg.trainer.devices == 1:
        steps = toy.run(cfg).steps
        found["steps"] = _sha256(json.dumps(steps).encode())
    else:
        log = place / "log"
        ends = toy.ended(toy.start_ranks(cfg.trainer.devices, lambda: launch.launch(cfg, "test"), log))
        assert ends == [0] * cfg.trainer.devices, log.read_text()[-3000:]
    (path,) = (place / "runs").glob("*/*/*/*/results.json")
    return found | of_settings(overrides) | of_directory(path.parent)


def measure_real(name: str, place: Path) -> dict[str, Any]:
    """Do a run of ``REAL``, and measure its losses, norms, log-odds, scores and answers."""
    with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = hydra.compose("run", overrides=[*REAL[name], f"paths.runs={place / 'runs'}"])
    directory = launch.launch(cfg, "test").parent
    kinds = ("losses", "norms", "results/matrix", "results/metrics", "results/counts/train_tokens")
    found = {key: value for key, value in of_directory(directory).items() if key.startswith(kinds)}
    for stage, records in toy.read_answers(directory, "remembered").items():
        found[f"odds/{stage}"] = [one["log_odds"] for one in records if one["log_odds"] is not None]
    for stage, records in toy.read_answers(directory).items():
        found[f"texts/{stage}"] = [[one["id"], one["expert"], one["text"]] for one in records]
    return {"settings": " ".join(REAL[name]), "within": WITHIN, **found}


def of_settings(overrides: Iterable[str]) -> dict[str, Any]:
    """The key by which a run of earlier versions is found, which knew data by their place."""
    cfg = toy.compose(Path("/data"), Path("/runs"), *(one for one in overrides if not one.startswith("ood")))
    return {"key of the settings": run_key(cfg)}


def of_directory(directory: Path) -> dict[str, Any]:
    """What is measured of a run directory."""
    found: dict[str, Any] = {"key": directory.parent.name}
    for path in sorted(directory.glob("tasks/*/log/metrics.csv")):
        with path.open() as file:
            found[f"losses/{path.parts[-3]}"] = [
                float(f"{float(row['train/loss']):.5g}") for row in csv.DictReader(file)
            ]
    for path in sorted(directory.glob("tasks/*/expert/*.safetensors")):
        place, tensors = "/".join(path.parts[-3::2]), load_file(path)
        found[f"norms/{place}"] = math.sqrt(sum(float(one.double().square().sum()) for one in tensors.values()))
        found[f"weights/{place}"] = _sha256(
            *(f"{key} {one.dtype} {tuple(one.shape)}".encode() + one.numpy().tobytes() for key, one in tensors.items())
        )
    for path in sorted(directory.glob("tasks/*/*.jsonl")):
        fields = next((FIELDS[kind] for kind in FIELDS if path.stem.endswith(kind)), FIELDS["answers"])
        if path.stem == "examples":
            found[f"examples/{path.parts[-2]}"] = _sha256(path.read_bytes())
            continue
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [[line[field] for field in fields] for line in lines]
        found[f"{path.stem}/{path.parts[-2]}"] = _sha256(json.dumps(rows).encode())
        if path.stem == "remembered":
            odds = [line["log_odds"] for line in lines if line["log_odds"] is not None]
            found[f"log odds/{path.parts[-2]}"] = sum(odds)
    return found | dict(_leaves(toy.read_results(directory), "results"))


def _leaves(value: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    for name, part in value.items():
        if isinstance(part, Mapping):
            if name not in LEFT_OUT:
                yield from _leaves(part, f"{place}/{name}")
        elif name not in LEFT_OUT:
            yield f"{place}/{name}", part


def _sha256(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]


def path_of(name: str) -> Path:
    """The golden file of a run."""
    return GOLDEN / f"{name}.json"


def differences(golden: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What of a golden file is not as it was, a line each.

    Args:
        golden: content of the file.
        found: what was measured.
    """
    kinds = golden["by_processor"]
    within = golden["everywhere"].get("within", 2e-2)
    near = partial(_near, within=within)
    if processor() in kinds and within != WITHIN:
        wanted, same = golden["everywhere"] | kinds[processor()], _equal
    else:  # another arithmetic: no bytes to compare, and numbers are near
        other = kinds.get(processor()) or next(iter(kinds.values()), {})
        wanted, same = golden["everywhere"] | {k: v for k, v in other.items() if not isinstance(v, str)}, near
    now = {name: found.get(renamed(name), "nothing") for name in wanted}
    return [f"{name}: was {wanted[name]}, is {now[name]}" for name in wanted if not same(wanted[name], now[name])]


def renamed(name: str) -> str:
    """The name that a value of an old name has by now."""
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}/"):
            return new + name[len(old) :]
    return name


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other)


def _near(one: Any, other: Any, within: float) -> bool:
    near = partial(_near, within=within)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(near, one, other))
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=within, abs_tol=within / 10 if within == WITHIN else within)
    return bool(one == other)
