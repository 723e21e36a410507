"""What this code does on a GPU, in at most nine minutes: random weights of known shapes, nothing is downloaded.

    python benchmarks/gpu.py

Parts, cheapest first; each is written to results/gpu.json when it ends, and a fault in one does not end the others:

answers   the tiny model in fp32: a run's queries on the GPU and on the CPU
resume    trainer=gpu, killed after its first task and started again, beside a run that was not killed
train     tokens a second and model FLOP utilisation of both kinds of experts, beside TRL's SFTTrainer
memory    peak of a training step, with and without gradient checkpointing and nf4, beside the estimate of --dry-run
latency   time to the first token of an answer for N experts that all refuse, beside PEFT, expert by expert

The last line printed is one JSON object. --tiny tries the script at tiny shapes, on a CPU too.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

import torch
from transformers import AutoModelForCausalLM

from benchmarks import common, memory, route, train
from benchmarks.common import DEVICE, Setup
from benchmarks.timing import Clock
from see_lightning import load_ensemble
from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import AdapterConfig, ModelConfig
from see_lightning.engine.footprint import BatchShape, training_footprint
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.record import commit, versions
from see_lightning.errors import ConfigError
from see_lightning.files.writing import write_text
from see_lightning.models.base import load_model, skeleton
from see_lightning.models.quantized_base import PACKAGES
from see_lightning.models.shapes import known_shape
from see_lightning.models.tiny import tiny_tokenizer
from see_lightning.routing.verdicts import Verdict

ROOT = Path(__file__).resolve().parents[1]
#: The models whose shapes are taken, the smaller one first.
SHAPES = {"0.5b": "Qwen/Qwen2.5-0.5B-Instruct", "7b": "meta-llama/Llama-2-7b-hf"}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
#: Dense bf16 operations a second by NVIDIA's data sheets, of a part of a GPU's name.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
TASKS = ("qa", "sum")


@dataclass
class Bench:
    """The script's state.

    Args:
        folder: for models, data and runs; deleted afterwards.
        tiny: whether shapes are tiny.
        ends: when time is over, on ``time.monotonic``.
        experts: numbers of experts whose latency is measured.
    """

    folder: Path
    tiny: bool
    ends: float
    experts: Sequence[int]

    def left(self) -> float:
        """Seconds until time is over."""
        return self.ends - time.monotonic()

    def model(self, shape: str) -> Path:
        """A folder with a random model of a shape and a tokenizer of bytes, made once."""
        folder = self.folder / shape
        if not folder.exists():
            settings = known_shape(SHAPES[shape])
            assert settings is not None
            if self.tiny:
                settings.update({**TINY, "layer_types": None} if hasattr(settings, "layer_types") else TINY)
                if getattr(settings, "layer_types", True) is None:
                    settings.layer_types = ["full_attention"] * TINY["num_hidden_layers"]
            tokenizer = tiny_tokenizer()
            settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            settings.pad_token_id = tokenizer.pad_token_id
            torch.manual_seed(0)
            with torch.device(DEVICE):
                model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    def settings(self, shape: str, *more: str) -> list[str]:
        """The settings of a model of a shape, on two tasks of random letters."""
        data = self.folder / "data"
        if not data.exists():
            write_rows(data, *((60, 12) if self.tiny else (448, 48)))
        return [
            "method=see",
            "order=jsonl",
            f"order.tasks=[{','.join(TASKS)}]",
            f"benchmark.reader.folder={data}",
            "benchmark.default.score=exact_match",
            "model=hub",
            f"model.name={self.model(shape)}",
            "model.prompt=chat",
            "model.dtype=bf16",
            *more,
        ]


def write_rows(folder: Path, prompt: int, answer: int) -> None:
    """Rows of random letters; ``prompt`` and ``answer`` are bytes, which are tokens."""
    draw = torch.Generator().manual_seed(0)

    def letters(number: int) -> str:
        return "".join(chr(97 + one) for one in torch.randint(26, (number,), generator=draw).tolist())

    folder.mkdir(parents=True)
    for task in TASKS:
        for half, rows in (("train", 32), ("test", 4)):
            lines = [json.dumps({"prompt": letters(prompt), "answer": letters(answer)}) for _ in range(rows)]
            write_text(folder / f"{task}.{half}.jsonl", "\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------------------ parts


#: A run of the tiny model on tasks of the package, which need no data of the user.
RUN = (
    "method=see",
    "model=tiny",
    "model.dtype=fp32",
    "benchmark=pocket",
    "order=pocket_5",
    "order.tasks=[news,words,french]",
    "train_size=16",
    "test_size=8",
    "optim.epochs=4",
    "adapter.dropout=0",
    f"trainer={'gpu' if DEVICE.type == 'cuda' else 'cpu'}",
)


def run_command(bench: Bench, runs: str) -> list[str]:
    """The command of a run, which writes into a folder of its own."""
    return [sys.executable, str(ROOT / "run.py"), *RUN, f"paths.runs={bench.folder / runs}"]


def finished(bench: Bench, runs: str) -> Path:
    """Run to the end; the run's directory."""
    done = subprocess.run(run_command(bench, runs), capture_output=True, text=True, timeout=bench.left())
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:] or done.stdout[-2000:])
    return next((bench.folder / runs).rglob("results.json")).parent


def answers(bench: Bench) -> dict[str, Any]:
    """The replies of one run's experts to its own queries, on both devices."""
    run = finished(bench, "whole")
    texts = [example.prompt for task in common.prepare(RUN).tasks for example in task.test]
    replies = [load_ensemble(run, device=device).answer(texts) for device in ("cpu", DEVICE)]
    alike = [(one.text, one.expert) == (other.text, other.expert) for one, other in zip(*replies, strict=True)]
    return {"queries": len(texts), "equal": sum(alike)}


def resume(bench: Bench) -> dict[str, Any]:
    """A run that is killed when its first task is trained, and started again, beside one that was not."""
    whole = finished(bench, "whole")
    process = subprocess.Popen(
        run_command(bench, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while process.poll() is None and not _trained(bench.folder / "killed"):
            time.sleep(0.1)
    finally:
        killed = process.poll() is None
        if killed:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = len(_trained(bench.folder / "killed"))
    again = finished(bench, "killed")
    one, other = (Ledger(run, writes=False).read() for run in (whole, again))
    pairs = [
        (a["text"], b["text"])
        for stage in _trained(whole)
        for a, b in zip(one.answers(stage), other.answers(stage), strict=True)
    ]
    return {
        "killed": killed,
        "tasks_trained_before": before,
        "answers": len(pairs),
        "equal": sum(a == b for a, b in pairs),
    }


def _trained(runs: Path) -> list[str]:
    """The stages of the run under a folder that are trained."""
    for path in runs.rglob("ledger.json"):
        stages = json.loads(path.read_text())["stages"]
        return [name for name, stage in stages.items() if stage["trained"]]
    return []


def training(bench: Bench, shape: str) -> dict[str, Any]:
    """Tokens a second of both kinds of experts and of SFTTrainer; each twice, of which the faster counts."""
    found: dict[str, Any] = {}
    more = (
        "adapter.targets=[q_proj,v_proj]",
        "optim.epochs=2",
        "optim.global_batch_size=16",
        "optim.max_tokens_per_microbatch=16384",
    )
    setups = {kind: common.prepare(bench.settings(shape, *more, f"adapter={kind}")) for kind in train.OURS}
    rows = train.mix(setups["lora"]).rows
    prompts, labels = sum(len(row.prompt) for row in rows), sum(len(row.target) for row in rows)
    model = skeleton(setups["lora"].config.model, bench.folder)
    head = model.get_output_embeddings().weight.numel()
    layers = sum(weight.numel() for weight in model.parameters()) - head * (
        1 if model.config.tie_word_embeddings else 2
    )
    epochs, seen = setups["lora"].config.optim.epochs, train.Seen()
    # Two operations a weight forward, and two for the gradients of inputs; the head only where there are labels.
    plain = epochs * (4 * layers * (prompts + labels) + 4 * head * labels)
    shared = 2 * layers * prompts + epochs * 4 * (layers + head) * labels  # the prompt once, by the base model
    contenders: dict[str, tuple[Callable[[Clock], None], float]] = {
        "lora": (partial(train.train_ours, setups["lora"], "lora", seen), plain),
        "activated_lora": (partial(train.train_ours, setups["activated_lora"], "activated_lora", seen), shared),
    }
    try:
        common.require("trl")
        for recipe in (train.DEFAULT, train.Recipe(layout="padding_free")):
            contenders[recipe.name] = partial(train.train_peer, setups["lora"], recipe, rows, seen), plain
    except ConfigError as error:
        found["SFTTrainer"] = str(error)
    peak = next((value for part, value in PEAKS.items() if part in device_name()), None)
    for name, (work, operations) in contenders.items():
        seconds, memory_used = [], 0
        try:
            for _ in range(2):
                with peak_memory() as used:
                    work(clock := Clock(common.sync))
                seconds.append(clock.seconds)
                memory_used = used[0]
        except (ValueError, RuntimeError, ImportError) as error:
            found[name] = str(error).splitlines()[0]
            continue
        found[name] = {
            "seconds": seconds,
            "tokens_a_second": round(epochs * (prompts + labels) / min(seconds)),
            "peak_bytes": memory_used,
            "mfu": round(operations / min(seconds) / peak, 4) if peak else None,
        }
        common.tell(f"{shape} {name}: {found[name]}")
    return found


def step_memory(bench: Bench, shape: str) -> dict[str, Any]:
    """Bytes of a step of 4 x 1,536 tokens on the device, and the estimate without what CUDA itself takes."""
    found: dict[str, Any] = {}
    batch = (2, 48, 8) if bench.tiny else (4, 1536, 64)
    kinds = ("none", "nf4") if all(common.is_there(package) for package in PACKAGES) else ("none",)
    for kind in kinds:
        for again in (False, True):
            name = f"{kind}{', checkpointing' if again else ''}"
            config = ModelConfig(source="hub", name=str(bench.model(shape)), prompt="plain", quantization=kind)
            adapter = AdapterConfig(targets=["q_proj", "v_proj"])
            expected = training_footprint(
                skeleton(replace(config, quantization="none"), bench.folder),
                adapter,
                "bf16",
                [BatchShape(*batch)],
                has_gpu=DEVICE.type == "cuda",
                checkpointing=again,
                quantization=kind,
            )
            with peak_memory() as used:
                base = load_model(config, bench.folder, "bf16").to(DEVICE)
                pool = ExpertPool(base, adapter, "random")
                if again:
                    pool.checkpoint_gradients()
                memory.train_steps(pool, batch)
                del base, pool
            found[name] = {"peak_bytes": used[0], "estimate_bytes": expected.total() - expected.process}
            common.tell(f"{shape} {name}: {found[name]}")
    return found


def latency(bench: Bench, shape: str) -> dict[str, Any]:
    """Milliseconds to the first token behind N experts that refuse; the median of five queries."""
    found: dict[str, Any] = {}
    more = (
        "adapter.targets=all-linear",
        "indicators.pos=++",
        "indicators.neg=--",
        "optim.lr=5e-3",
        "optim.epochs=10",
        "train_size=8",
        "optim.global_batch_size=4",
    )
    for kind in train.OURS:
        setup = common.prepare(bench.settings(shape, *more, f"adapter={kind}"))
        with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
            taught = route.Taught(*(route.teach(setup, one, Path(folder)) for one in (Verdict.POS, Verdict.NEG)))
            for experts in bench.experts:
                if bench.left() < 30 and not bench.tiny:
                    found.setdefault("not measured, since time was over", []).append([kind, experts])
                    continue
                found |= _latency_of(setup, taught, experts, kind)
                common.tell(f"{shape} {experts} experts, {kind}: {found}")
    return found


def _latency_of(setup: Setup, taught: route.Taught, experts: int, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    texts = [example.prompt for task in setup.tasks for example in task.test][:5]
    queries = [route.Query(text, experts) for text in texts]
    contenders: dict[str, Callable[[], route.Contender]] = {
        "ours": partial(route.Ours, setup, taught, experts, queries),
        "PEFT one by one": partial(route.Peer, setup, taught, experts, queries, mixed=False),
    }
    for name, make in contenders.items():
        contender = make()
        contender(Clock(common.sync))  # the first pass loads kernels
        times = []
        for query in queries:
            with torch.inference_mode():
                told = contender.ask(query, clock := Clock(common.sync))
            times.append(1000 * clock.seconds)
            if told.place != experts:
                raise RuntimeError(
                    f"{name}: expert {told.place} of {experts} did not refuse; the time would be another's"
                )
        found[f"{name}, {kind}, {experts}"] = round(sorted(times)[len(times) // 2], 2)
        del contender
        free()
    return found


# ------------------------------------------------------------------------------------------------ the script


def free() -> None:
    """Give memory of dropped tensors back."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most bytes that tensors took on the device inside the context, as the only item of a list; 0 on a CPU."""
    used = [0]
    free()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield used
    if DEVICE.type == "cuda":
        used[0] = int(torch.cuda.max_memory_allocated())
    free()


def device_name() -> str:
    """The GPU's name."""
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"


def parts(shapes: Sequence[str]) -> dict[str, Callable[[Bench], dict[str, Any]]]:
    """What is measured, by name, cheapest first."""
    sized = {"train": training, "memory": step_memory, "latency": latency}
    of_shapes = {
        f"{name} {shape}": partial(work, shape=shape) for shape in shapes for name, work in sized.items()
    }  # fmt: skip
    return {"answers": answers, "resume": resume, **of_shapes}


def measure(bench: Bench, out: Path, shapes: Sequence[str]) -> dict[str, Any]:
    """All parts; what is there is written after each."""
    began = time.monotonic()
    found: dict[str, Any] = {"device": device_name(), "commit": commit(), "versions": versions(), "tiny": bench.tiny}

    def over(_: int, __: FrameType | None) -> None:
        raise TimeoutError("time was over")

    signal.signal(signal.SIGALRM, over)
    for name, work in parts(shapes).items():
        try:
            if bench.left() < 1:
                raise TimeoutError("time was over")
            signal.alarm(int(bench.left()))
            found[name] = work(bench)
        except Exception as error:  # of any type: one part's fault is told, and does not end the others
            found[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        finally:
            signal.alarm(0)
        free()
        found["seconds"] = round(time.monotonic() - began, 1)
        common.tell(f"{name}: {found[name]}")
        write_text(out, json.dumps(found, indent=1) + "\n")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="when parts that have not begun are left out (9)")
    parser.add_argument("--shapes", default="0.5b,7b", help="of models, comma between: 0.5b, 7b (both)")
    parser.add_argument("--experts", type=common.numbers, default=[1, 4, 16, 64], help="of the latency (1,4,16,64)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu.json", help="the file (results/gpu.json)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a CPU too")
    args = parser.parse_args(arguments)
    shapes = args.shapes.split(",")
    if unknown := [shape for shape in shapes if shape not in SHAPES]:
        raise ConfigError(f"--shapes has {unknown[0]!r}; there are {', '.join(SHAPES)}.")
    if DEVICE.type != "cuda" and not args.tiny:
        raise ConfigError("no GPU is here, so there is nothing to measure; --tiny tries the script at tiny shapes.")
    shared = Path("/dev/shm")  # memory, where a model of 13 GB is written and read in seconds
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() and not args.tiny else None) as folder:
        bench = Bench(Path(folder), args.tiny, time.monotonic() + 60 * args.minutes, args.experts)
        print(json.dumps(measure(bench, args.out, shapes)))


if __name__ == "__main__":
    common.main(main)
