"""Training speed beside trl's SFTTrainer: the same examples, batches, epochs, optimizer and precision.

    SEE_DATA=DIR python benchmarks/train.py

Ours goes through Lightning's Trainer as a run's does, so all of its overhead is inside the time; the activated experts'
one reading of the prompts is, too. Loading the model and tokenising the examples is outside it, on either side. Threads are
set for all alike; freed memory stays with the process while ours trains, as in a run, and not while SFTTrainer does.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

import tempfile

from peft import LoraConfig

from benchmarks import common, timing
from benchmarks.common import DEVICE, Setup
from benchmarks.timing import Clock, Contender
from see_lightning.engine.build import cache_folder
from see_lightning.models.base import load_model
from see_lightning.tasks.batches import Encoded
from see_lightning.tasks.datamodule import TaskDataModule
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import merge

SETTINGS = ("order=superni_10", "order.tasks=[qa,qg,sa,sum,trans,dsg,expl,para]", "optim=small", "test_size=1")
OURS = {"lora": "ours, lora", "activated_lora": "ours, activated_lora"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How SFTTrainer is set.

    Args:
        attention: the model's implementation.
        grouped: batches of like length.
        autocast: trl's ``bf16=True``; the weights have the run's own precision in any case.
        layout: ``padded``; ``padding_free`` (a batch as one row); ``packed`` (one row as long as a batch, best fit).
    """

    attention: str = "sdpa"
    grouped: bool = False
    autocast: bool = True
    layout: str = "padded"

    @property
    def name(self) -> str:
        """For the table."""
        words = [self.layout, self.attention, *["grouped"] * self.grouped, *["no autocast"] * (not self.autocast)]
        return f"SFTTrainer {' '.join(words)}"


DEFAULT = Recipe()
#: Among these, SFTTrainer's best is found by measuring. Grouped rows come with either attention: the better one is meant.
CANDIDATES = (
    DEFAULT,
    Recipe(grouped=True),
    Recipe(attention="eager", grouped=True),
    Recipe(attention="eager", grouped=True, autocast=False),
    Recipe(layout="padding_free"),
    Recipe(layout="packed"),
)


@dataclass
class Seen:
    """What is noted of the contenders besides their times, of the latest sample of each."""

    loss: dict[str, float] = field(default_factory=dict)
    efficiency: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, *, loss: float, efficiency: float, steps: int) -> None:
        """Keep a sample's facts."""
        self.loss[name], self.efficiency[name], self.steps[name] = loss, efficiency, steps

    def columns(self) -> dict[str, dict[str, str]]:
        """For the table."""
        return {
            "token efficiency": {name: f"{share:.3f}" for name, share in self.efficiency.items()},
            "steps": {name: str(steps) for name, steps in self.steps.items()},
            "mean loss": {name: f"{loss:.3f}" for name, loss in self.loss.items()},
        }


def mix(setup: Setup) -> TaskDataModule:
    """The examples of all tasks, marked as one expert's own, tokenised."""
    examples = setup.method().training_examples(merge(setup.tasks), Memory(setup.config.seed))
    return TaskDataModule(
        "mix", examples, setup.template, batch_size=setup.config.optim.global_batch_size, run_seed=setup.config.seed
    )


def train_ours(setup: Setup, name: str, seen: Seen, clock: Clock) -> None:
    """One expert, as a run trains it."""
    data = mix(setup)
    fitted = common.fit(setup, setup.method(), replace(merge(setup.tasks), name="mix"), data, clock)
    seen.note(name, loss=fitted.loss, efficiency=fitted.token_efficiency, steps=fitted.steps)


def train_peer(setup: Setup, recipe: Recipe, rows: Sequence[Encoded], seen: Seen, clock: Clock) -> None:
    """One LoRA adapter by SFTTrainer, on the tokens that ours reads.

    Args:
        setup: of ordinary experts; gives rank, targets, dropout, optimizer and schedule.
        recipe: SFTTrainer's own options.
        rows: the examples.
        seen: takes the facts.
        clock: runs while SFTTrainer trains.
    """
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    optim, adapter = setup.config.optim, setup.config.adapter
    lengths = [len(row) for row in rows]
    packed = recipe.layout == "packed"
    model = load_model(setup.config.model, cache_folder(setup.config), setup.dtype)
    model.set_attn_implementation(recipe.attention)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            processing_class=setup.template.tokenizer,
            train_dataset=Dataset.from_list(
                [{"input_ids": r.prompt + r.target, "labels": [-100] * len(r.prompt) + r.target} for r in rows]
            ),
            peft_config=LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # any number serves
                lora_dropout=adapter.dropout,
                target_modules=list(adapter.targets),
                task_type="CAUSAL_LM",
            ),
            args=SFTConfig(
                output_dir=folder,
                use_cpu=DEVICE.type == "cpu",
                bf16=recipe.autocast and setup.dtype == "bf16",
                gradient_checkpointing=False,
                train_sampling_strategy="group_by_length" if recipe.grouped else "random",
                padding_free=recipe.layout == "padding_free",
                packing=packed,
                # A packed row holds what a batch holds; nothing is cut off.
                max_length=max(*lengths, optim.global_batch_size * sum(lengths) // len(lengths)) if packed else None,
                per_device_train_batch_size=1 if packed else optim.global_batch_size,
                num_train_epochs=optim.epochs,
                optim="adamw_torch",
                learning_rate=optim.lr,
                weight_decay=optim.weight_decay,
                lr_scheduler_type=optim.schedule,
                max_grad_norm=optim.grad_clip,
                dataloader_pin_memory=DEVICE.type == "cuda",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=setup.config.seed,
            ),
        )
        trainer.remove_callback(PrinterCallback)
        with clock:
            done = trainer.train()
        real = computed = 0
        for batch in trainer.get_train_dataloader():  # of one more epoch, which is not trained
            computed += batch["input_ids"].numel()
            real += int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
    seen.note(recipe.name, loss=done.training_loss, efficiency=real / computed, steps=done.global_step)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = common.options(__doc__)
    parser.add_argument("--examples", type=common.positive, default=64, help="training examples of all tasks together")
    parser.add_argument("--epochs", type=common.positive, default=3, help="passes over them")
    parser.add_argument("--batch", type=common.positive, default=8, help="examples a step")
    parser.add_argument("--adapters", type=common.adapter_names, default=list(OURS), help="of ours that take part")
    parser.add_argument(
        "--best", choices=[recipe.name for recipe in CANDIDATES], help="SFTTrainer's best, where it is known already"
    )
    args = common.parse(parser, arguments)
    common.require("trl")

    settings = [*SETTINGS, f"optim.epochs={args.epochs}", f"optim.global_batch_size={args.batch}"]
    tasks = len(common.compose([*settings, *args.overrides]).order.tasks)
    settings += [f"train_size={max(1, args.examples // tasks)}", *args.overrides]
    ordinary = common.prepare([*settings, "adapter=lora"])
    rows = mix(ordinary).rows
    examples = len(rows) * args.epochs
    tokens, targets = sum(len(row) for row in rows) / len(rows), sum(len(row.target) for row in rows) / len(rows)
    print(ordinary.conditions())
    print(
        f"{len(rows)} examples of {tasks} tasks, {tokens:.0f} tokens each, {targets:.0f} of them the answer's;"
        f" {args.epochs} epochs, {args.batch} examples a step"
    )

    seen = Seen()
    best = next((recipe for recipe in CANDIDATES if recipe.name == args.best), None)
    if best is None:
        best = fastest(common.prepare([*settings, "adapter=lora", "optim.epochs=1"]), rows)
    contenders: dict[str, Contender] = {
        recipe.name: partial(train_peer, ordinary, recipe, rows, seen) for recipe in dict.fromkeys([DEFAULT, best])
    }
    for adapter in args.adapters:
        setup = common.prepare([*settings, f"adapter={adapter}"])
        contenders[OURS[adapter]] = partial(train_ours, setup, OURS[adapter], seen)
    rounds = timing.alternate(contenders, repeats=args.repeats, sync=common.sync, tell=common.tell)
    timing.print_times("Training", rounds, unit="examples", amount=examples, notes=seen.columns())

    def over(peer: Recipe, adapter: str) -> timing.Ratio:
        if adapter not in args.adapters:
            return timing.UNMEASURED
        return timing.compare(rounds, peer.name, OURS[adapter], force=args.force)

    ratios = {
        "lora_over_sft_default": over(DEFAULT, "lora"),
        "lora_over_sft_best": over(best, "lora"),
        "activated_over_sft_best": over(best, "activated_lora"),
    }
    timing.print_ratios(ratios)
    ours = OURS[args.adapters[0]]
    counts = {
        "token_efficiency": round(seen.efficiency[ours], 4),
        "sft_best": best.name,
        "sft_token_efficiency": {r.name: round(seen.efficiency[r.name], 4) for r in (DEFAULT, best)},
    }
    print(timing.result_line(counts, ratios, forced=args.force))


def fastest(setup: Setup, rows: Sequence[Encoded]) -> Recipe:
    """SFTTrainer's best recipe, by one epoch of each; one that does not run here is told and left out."""
    seen = Seen()
    times: dict[Recipe, timing.Sample] = {}
    for recipe in CANDIDATES:
        try:
            times[recipe] = timing.take(partial(train_peer, setup, recipe, rows, seen), common.sync)
        except (ValueError, RuntimeError, ImportError) as error:
            common.tell(f"{recipe.name} does not run here: {str(error).splitlines()[0]}")
            continue
        common.tell(f"trying: {recipe.name} {len(rows) / times[recipe].seconds:.2f} examples/s")
    timing.print_times(
        "SFTTrainer's recipes, one epoch of each",
        [{recipe.name: sample for recipe, sample in times.items()}],
        unit="examples",
        amount=len(rows),
        notes=seen.columns(),
    )
    return min(times, key=lambda recipe: times[recipe].seconds)


if __name__ == "__main__":
    common.main(main)
