"""The estimate of a training step's memory beside the memory that the step takes on this CPU, for seven settings.

    python benchmarks/memory.py

Each step runs in a process of its own, three times, on random tokens and the packaged model; its peak is what the kernel says
(VmHWM), with the interpreter and its libraries. The estimate is made without weights, see ``see-lightning run --dry-run``.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

import torch

from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import AdapterConfig, ModelConfig
from see_lightning.engine.footprint import BatchShape, Footprint, process_bytes, training_footprint
from see_lightning.engine.pages import kept_pages
from see_lightning.methods.loss import answer_loss
from see_lightning.models.base import load_model, skeleton
from see_lightning.tasks.batches import IGNORED

MODEL = ModelConfig(source="package", name="HuggingFaceTB/SmolLM2-135M-Instruct@gguf-q4_1")
CACHE = Path("~/.cache/see_lightning").expanduser()
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Setting:
    """A training step.

    Args:
        name: for the table.
        dtype: of the base model.
        adapter: settings that differ from the default.
        batch: rows, length, labels.
        checkpointing: whether layers are computed again.
        quantization: of the base model.
    """

    name: str
    dtype: str
    adapter: dict[str, Any]
    batch: tuple[int, int, int]
    checkpointing: bool = False
    quantization: str = "none"


SETTINGS = [
    Setting("LoRA q v, 12 x 180", "bf16", {"targets": ["q_proj", "v_proj"]}, (12, 180, 30)),
    Setting("LoRA q v, 6 x 400, fp32", "fp32", {"targets": ["q_proj", "v_proj"]}, (6, 400, 20)),
    Setting("LoRA all layers, 3 x 700", "bf16", {"targets": ALL, "rank": 16}, (3, 700, 100)),
    Setting("the same, checkpointing", "bf16", {"targets": ALL, "rank": 16}, (3, 700, 100), checkpointing=True),
    Setting("4 x 1,536, checkpointing", "bf16", {"targets": ["q_proj", "v_proj"]}, (4, 1536, 64), checkpointing=True),
    Setting("whole layers, 3 x 400", "fp32", {"targets": ALL, "full": True}, (3, 400, 20)),
    Setting("nf4, LoRA all layers, 3 x 400", "bf16", {"targets": ALL}, (3, 400, 20), quantization="nf4"),
]


def estimate(setting: Setting) -> Footprint:
    """The estimate of a setting."""
    bones = skeleton(MODEL, CACHE)
    return training_footprint(
        bones,
        AdapterConfig(**setting.adapter),
        setting.dtype,
        [BatchShape(*setting.batch)],
        checkpointing=setting.checkpointing,
        quantization=setting.quantization,
    )


def measure(setting: Setting) -> int:
    """The peak of this process in bytes, after three steps."""
    base = load_model(replace(MODEL, quantization=setting.quantization), CACHE, setting.dtype)
    pool = ExpertPool(base, AdapterConfig(**setting.adapter), MODEL.name)
    if setting.checkpointing:
        pool.checkpoint_gradients()
    train_steps(pool, setting.batch)
    return process_bytes("VmHWM")


def train_steps(pool: ExpertPool, batch: tuple[int, int, int]) -> None:
    """Three training steps of a new expert on random tokens; ``batch``: rows, tokens of a row, tokens of its answer."""
    pool.add_expert("trained", weights_seed=0)
    rows, length, labels = batch
    ids_BS = torch.randint(5, 250, (rows, length), device=pool.device())
    labels_BS = torch.full_like(ids_BS, IGNORED)
    labels_BS[:, -labels:] = ids_BS[:, -labels:]
    optimizer = torch.optim.AdamW([weight for weight in pool.parameters() if weight.requires_grad])
    with kept_pages():
        for _ in range(3):
            answer_loss(pool(ids_BS, torch.ones_like(ids_BS), labels_BS), labels_BS, "tokens").backward()
            optimizer.step()
            optimizer.zero_grad()


def main() -> None:
    """Print a line for each setting."""
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        print(measure(SETTINGS[int(sys.argv[1])]))
        return
    print(f"{'setting':<30}{'estimate, MiB':>15}{'measured, MiB':>15}{'ratio':>8}")
    for number, setting in enumerate(SETTINGS):
        expected = estimate(setting)
        out = subprocess.run([sys.executable, __file__, str(number)], capture_output=True, text=True, check=True).stdout
        measured = int(out.split()[-1])
        ratio = expected.total() / measured
        print(
            f"{setting.name:<30}{expected.total() / 2**20:>15,.0f}{measured / 2**20:>15,.0f}{ratio:>8.2f}", flush=True
        )
        print(json.dumps(asdict(expected)), file=sys.stderr)


if __name__ == "__main__":
    main()
