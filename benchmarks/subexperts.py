"""Masked mixtures beside one LoRA expert for each task: training, answering, and what their short cuts save.

    SEE_DATA=DIR python benchmarks/subexperts.py

Training: the last task's stage on the same rows, with the earlier tasks learned before, which weigh on a method that
spares or mixes what they left; goes through Lightning's Trainer as a run's stage does. Answering: one batch with queries of
all tasks, each told with its task. Nothing ends an answer but its length, which is the same for all, so that everybody reads
as many prompts and writes as many tokens; what was learned does not matter then, and experts see few rows. Methods are as
`conf/method` has them: a pool of `moses` has `experts` times the ranks of a plain expert.

One pass over all layers, the masked mixture's part alone, with tensors of the model's sizes: a mask over ranks (R2 in
PAPERS.md) with the used ranks multiplied, beside all ranks under a mask of 0 and 1; a mask over weights (R1) with the masked
product formed once for a task, beside forming it at each call. Both ways must give the same before they are timed.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks import common, timing
from benchmarks.common import DEVICE, Fitted, Setup
from benchmarks.timing import Clock, Contender, Ratio, Round
from see_lightning.engine.pages import kept_pages
from see_lightning.methods.method import Method
from see_lightning.methods.subnetworks.mixture import LayerMask, SubExpert, routed
from see_lightning.models.base import DTYPES
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.datamodule import TaskDataModule, query_loader
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

SETTINGS = (
    "order=superni_5", "order.tasks=[qa,qg,sa,sum]", "optim=small", "train_size=16", "test_size=4",
)  # fmt: skip
PLAIN = "stl"
CONTENDERS = {
    PLAIN: ("method=stl",),
    "moses weight": ("method=moses", "method.granularity=weight"),
    "moses rank": ("method=moses", "method.granularity=rank"),
    "exssnet": ("method=exssnet",),
    "mora": ("method=moram",),
}
ANSWERING = (PLAIN, "moses weight", "moses rank", "exssnet")
#: What a layer is given, rows and tokens of each, and passes over all layers in a sample.
PASSES = {"reading": (8, 128, 10), "writing": (16, 1, 200)}
FEW = 4  # rows that an expert is trained on where its time does not count
TOLERANCE = 1e-4  # of the norm, in fp32


@dataclass(frozen=True, slots=True)
class Measured:
    """What is told at the end.

    Args:
        counts: exact numbers.
        ratios: of times, by key.
    """

    counts: dict[str, int | float]
    ratios: dict[str, Ratio]


def same(done: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """What every contender did, which must be the same.

    Args:
        done: contender -> what is counted -> how much.
    """
    first, *others = done.values()
    if any(other != first for other in others):
        raise RuntimeError(f"contenders did not do the same, so that their times cannot be compared: {dict(done)}")
    return dict(first)


def over_plain(what: str, rounds: Sequence[Round], names: Sequence[str], force: bool) -> dict[str, Ratio]:
    """The times of all others over that of plain experts."""
    return {
        f"{what}_{name.replace(' ', '_')}_over_{PLAIN}": timing.compare(rounds, name, PLAIN, force=force)
        for name in names
        if name != PLAIN
    }


# ---------------------------------------------------------------------------------------------- training


def rows_of(setup: Setup, method: Method, task: Task) -> TaskDataModule:
    """What a task's stage trains on."""
    optim, run_seed = setup.config.optim, setup.config.seed
    examples = method.training_examples(task, Memory(run_seed))
    return TaskDataModule(
        task.name,
        examples,
        setup.template,
        batch_size=optim.global_batch_size,
        run_seed=run_seed,
        loss_reduction=optim.loss_reduction,
    )


def teach(setup: Setup, folder: Path) -> None:
    """Let a method learn all tasks, a few rows of each, and save each task's expert under its name."""
    method = setup.method().to(DEVICE)
    for task in setup.tasks:
        few = replace(task, train=task.train[:FEW])
        common.fit(setup, method, task, rows_of(setup, method, few), Clock(common.sync))
        with torch.no_grad():
            method.eval()
            method.end_task(few, Memory(0))
            method.train()
        method.save(task.name, folder / task.name)


def learned(setup: Setup, folder: Path, tasks: Sequence[Task]) -> Method:
    """A method that has learned these tasks, as a resumed run has it."""
    method = setup.method().to(DEVICE)
    for task in tasks:
        method.restore(task.name, folder / task.name)
    return method


def train(setup: Setup, folder: Path, name: str, seen: dict[str, Fitted], clock: Clock) -> None:
    """One sample: the last task's stage, after all others."""
    *earlier, last = setup.tasks
    method = learned(setup, folder, earlier)
    seen[name] = common.fit(setup, method, last, rows_of(setup, method, last), clock)


def measure_training(setups: Mapping[str, Setup], folder: Path, repeats: int, force: bool) -> Measured:
    """Every contender's stage in turn."""
    seen: dict[str, Fitted] = {}
    contenders: dict[str, Contender] = {
        name: partial(train, setup, folder / name, name, seen) for name, setup in setups.items()
    }
    rounds = timing.alternate(contenders, repeats=repeats, sync=common.sync, tell=common.tell)
    done = same({name: {"steps": fitted.steps, "tokens": fitted.tokens} for name, fitted in seen.items()})
    timing.print_times(
        f"Training: stage {len(setups[PLAIN].tasks)} of {len(setups[PLAIN].tasks)}, {done['steps']} steps",
        rounds,
        unit="tokens",
        amount=done["tokens"],
        notes={"mean loss": {name: f"{fitted.loss:.3f}" for name, fitted in seen.items()}},
    )
    ratios = over_plain("training", rounds, list(setups), force)
    return Measured({f"training_{key}": value for key, value in done.items()}, ratios)


# ---------------------------------------------------------------------------------------------- answering


def mixed_queries(setup: Setup, new_tokens: int) -> list[Queries]:
    """All tasks' test queries in one stream, as a run asks them, each told with its task; answers are of one length."""
    batches = query_loader(setup.tasks, setup.template, batch_size=setup.config.data.eval_batch_size, tell_task=True)
    return [replace(batch, limits=[new_tokens] * len(batch)) for batch in batches]


def answer(method: Method, batches: Sequence[Queries], clock: Clock) -> None:
    """One sample; what was counted before is forgotten, and no token ends an answer."""
    method.counts.clear()
    with torch.inference_mode(), kept_pages(), patch.object(method, "eos_ids", return_value=()), clock:
        for batch in batches:
            method.answer(batch)


def measure_answering(
    setups: Mapping[str, Setup], folder: Path, new_tokens: int, repeats: int, force: bool
) -> Measured:
    """Every contender's answers to the same queries, in turn."""
    batches = mixed_queries(setups[PLAIN], new_tokens)
    methods = {name: learned(setups[name], folder / name, setups[name].tasks).eval() for name in ANSWERING}
    contenders: dict[str, Contender] = {name: partial(answer, method, batches) for name, method in methods.items()}
    for contender in contenders.values():
        contender(Clock(common.sync))  # what a task's weights are made into is made once in a run
    rounds = timing.alternate(contenders, repeats=repeats, sync=common.sync, tell=common.tell)
    done = same({name: dict(method.counts) for name, method in methods.items()})
    timing.print_times(
        f"Answering: {done['prefills']} queries of {len(setups[PLAIN].tasks)} tasks, {new_tokens} tokens each",
        rounds,
        unit="new tokens",
        amount=done["new_tokens"],
    )
    return Measured(done, over_plain("answering", rounds, ANSWERING, force))


# ---------------------------------------------------------------------------------------------- the masked part alone


@dataclass(frozen=True, slots=True)
class Layer:
    """What the plain ways multiply at one layer.

    Letters: N experts, U ranks of all of them, I and O the sizes of the layer's input and output.

    Args:
        down_UI: A, unmasked.
        up_OU: B, unmasked, the adapter's scale within.
        mask: 0 and 1 in the type of the weights, over weights or over whole ranks.
        router_NI: R.
        used_U: which ranks the task uses.
    """

    down_UI: Tensor
    up_OU: Tensor
    mask: LayerMask
    router_NI: Tensor
    used_U: Tensor


def all_ranks(x_TI: Tensor, at: Layer, k: int) -> Tensor:
    """A mask over ranks: all are multiplied, and then those that the task does not use by 0."""
    low_TU = linear(x_TI, at.down_UI) * at.mask.down[:, 0] * gates(x_TI, at, k)
    return linear(low_TU, at.up_OU)


def formed_anew(x_TI: Tensor, at: Layer, k: int) -> Tensor:
    """A mask over weights, multiplied by them at each call."""
    low_TU = linear(x_TI, at.down_UI * at.mask.down) * gates(x_TI, at, k)
    return linear(low_TU, at.up_OU * at.mask.up)


def gates(x_TI: Tensor, at: Layer, k: int) -> Tensor:
    """The gate of each rank's expert, which the short cuts compute in the same way."""
    gates_TN = routed(x_TI, at.router_NI, at.used_U, k)
    return gates_TN.repeat_interleave(len(at.down_UI) // len(at.router_NI), dim=-1)


class OneTask:
    """A sub-expert with masks and routers drawn at random at all layers of the model, and the plain way beside it.

    Args:
        setup: of ``moses``, whose number of experts, density and granularity count.
    """

    ADAPTER = "pool"

    def __init__(self, setup: Setup) -> None:
        settings = setup.cfg.method
        self.by_rank, self.k, self.dtype = settings.granularity == "rank", settings.top_k, DTYPES[setup.dtype]
        self.pool = setup.method().to(DEVICE).eval().pool
        self.pool.add_adapter(self.ADAPTER, setup.config.seed, settings.experts)
        self.draw = torch.Generator().manual_seed(setup.config.seed)
        self.layers = list(self.pool.layers)
        self.masks: list[LayerMask] = []
        self.routers: list[Tensor] = []
        for layer in self.layers:
            a_UI, b_OU = self.pool.pair(layer, self.ADAPTER)
            with torch.no_grad():
                b_OU.copy_(torch.randn(b_OU.shape, generator=self.draw))  # of zeros, any two ways would be alike
            self.masks.append(self._mask(a_UI, b_OU, settings.density))
            router_NI = torch.randn(settings.experts, a_UI.shape[1], generator=self.draw) * a_UI.shape[1] ** -0.5
            self.routers.append(router_NI.to(DEVICE))
        self.part = SubExpert(self.pool, self.ADAPTER, self.masks, self.routers, k=self.k)
        self.plain = {dtype: self._plain(dtype) for dtype in {torch.float32, self.dtype}}

    def _mask(self, a_UI: Tensor, b_OU: Tensor, density: float) -> LayerMask:
        ranks = len(a_UI)
        if self.by_rank:
            used_U = (torch.randperm(ranks, generator=self.draw) < max(1, int(density * ranks))).to(DEVICE)
            return LayerMask(used_U[:, None], used_U[None])
        down, up = (torch.rand(weight.shape, generator=self.draw) < density for weight in (a_UI, b_OU))
        return LayerMask(down.to(DEVICE), up.to(DEVICE))

    def _plain(self, dtype: torch.dtype) -> list[Layer]:
        plain = []
        for layer, mask, router_NI in zip(self.layers, self.masks, self.routers, strict=True):
            a_UI, b_OU = (weight.detach() for weight in self.pool.pair(layer, self.ADAPTER))
            up_OU = (b_OU * self.pool.scale(layer, self.ADAPTER)).to(dtype)
            numbers = LayerMask(mask.down.to(dtype), mask.up.to(dtype))
            plain.append(Layer(a_UI.to(dtype), up_OU, numbers, router_NI.to(dtype), mask.ranks()))
        return plain

    def _inner(self, layer: str) -> int:
        return self.pool.pair(layer, self.ADAPTER)[0].shape[1]

    def inputs(self, rows: int, tokens: int, dtype: torch.dtype) -> dict[int, Tensor]:
        """What layers are given, (rows, tokens, I), by I."""
        return {
            size: torch.randn(rows, tokens, size, generator=self.draw).to(DEVICE, dtype)
            for size in sorted({self._inner(layer) for layer in self.layers})
        }

    def short_cut(self, inputs: Mapping[int, Tensor]) -> Iterator[Tensor]:
        """What each layer is given to add, as a run computes it."""
        for layer in self.layers:
            yield self.part.add(layer, inputs[self._inner(layer)])

    def plainly(self, inputs: Mapping[int, Tensor]) -> Iterator[Tensor]:
        """The same without the short cut."""
        way = all_ranks if self.by_rank else formed_anew
        dtype = next(iter(inputs.values())).dtype
        for layer, at in zip(self.layers, self.plain[dtype], strict=True):
            x = inputs[self._inner(layer)]
            yield way(x.flatten(0, -2), at, self.k).view(*x.shape[:-1], -1)

    def apart(self, rows: int, tokens: int) -> float:
        """How far the two ways are apart in fp32, where no close choice of an expert hangs on rounding.

        Returns:
            The norm of the difference as a share of the norm, of the layer where it is largest.
        """
        inputs = self.inputs(rows, tokens, torch.float32)
        pairs = zip(self.short_cut(inputs), self.plainly(inputs), strict=True)
        return max(float((ours - plain).norm() / plain.norm()) for ours, plain in pairs)


def repeated(way: Callable[[], Iterator[Tensor]], passes: int, clock: Clock) -> None:
    """One sample: so many passes over all layers."""
    with torch.inference_mode(), kept_pages(), clock:
        for _ in range(passes):
            for _ in way():
                pass


def measure_passes(by_rank: OneTask, by_weight: OneTask, repeats: int, force: bool) -> Measured:
    """Both masks' short cuts and plain ways in turn, with many tokens in a pass and with one a row."""
    ratios: dict[str, Ratio] = {}
    distance = 0.0
    for kind, (rows, tokens, passes) in PASSES.items():
        distance = max(distance, *(agreed(task, rows, tokens) for task in (by_rank, by_weight)))
        rank_x, weight_x = (task.inputs(rows, tokens, task.dtype) for task in (by_rank, by_weight))
        contenders: dict[str, Contender] = {
            name: partial(repeated, partial(way, x), passes)
            for name, way, x in (
                ("ranks: used ones", by_rank.short_cut, rank_x),
                ("ranks: all, masked", by_rank.plainly, rank_x),
                ("weights: formed once", by_weight.short_cut, weight_x),
                ("weights: formed anew", by_weight.plainly, weight_x),
            )
        }
        for contender in contenders.values():
            contender(Clock(common.sync))
        taken = timing.alternate(contenders, repeats=repeats, sync=common.sync, tell=common.tell)
        timing.print_times(
            f"Masked part, {kind}: {len(by_rank.layers)} layers, {rows} x {tokens} tokens",
            taken,
            unit="passes",
            amount=passes,
        )
        ratios |= {
            f"{kind}_all_ranks_over_used": timing.compare(taken, "ranks: all, masked", "ranks: used ones", force=force),
            f"{kind}_formed_anew_over_once": timing.compare(
                taken, "weights: formed anew", "weights: formed once", force=force
            ),
        }
    return Measured({"apart": float(f"{distance:.1e}")}, ratios)


def agreed(task: OneTask, rows: int, tokens: int) -> float:
    """How far the two ways are apart.

    Raises:
        RuntimeError: they do not give the same.
    """
    with torch.inference_mode():
        distance = task.apart(rows, tokens)
    if not distance <= TOLERANCE:
        raise RuntimeError(f"the short cut and the plain way are {distance:.1e} of the norm apart: they differ.")
    return distance


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = common.options(__doc__)
    parser.add_argument("--new-tokens", type=common.positive, default=16, help="of every answer")
    args = common.parse(parser, arguments)
    setups = {name: common.prepare([*SETTINGS, *args.overrides, *own]) for name, own in CONTENDERS.items()}
    print(setups[PLAIN].conditions())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, setup in setups.items():
            common.tell(f"{name} learns {', '.join(task.name for task in setup.tasks)}")
            teach(setup, folder / name)
        measured = [
            measure_training(setups, folder, args.repeats, args.force),
            measure_answering(setups, folder, args.new_tokens, args.repeats, args.force),
        ]
    by_rank, by_weight = OneTask(setups["moses rank"]), OneTask(setups["moses weight"])
    measured.append(measure_passes(by_rank, by_weight, args.repeats, args.force))
    ratios = {key: ratio for part in measured for key, ratio in part.ratios.items()}
    timing.print_ratios(ratios)
    counts = {key: value for part in measured for key, value in part.counts.items()}
    print(timing.result_line(counts, ratios, forced=args.force))


if __name__ == "__main__":
    common.main(main)
