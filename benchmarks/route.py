"""Time from a query to the first token of its answer, beside PEFT's ways to ask N experts.

    SEE_DATA=DIR python benchmarks/route.py --csv route.csv --plot route.svg

One query at a time walks the experts, newest first, until one accepts; its first answer token ends the time, as does the
base model's where nobody accepts. Everybody asks the same experts: N that refuse whatever they are asked, one of them
replaced by one that accepts, whose place in the walk goes evenly through all N and "nobody". So walks are as long as those
of N equally frequent tasks and an unknown one. The experts are trained here, in seconds, and their verdicts really read.

Peers: `set_adapter` and `generate` for one expert after the other, stopped as soon as a refusal is written; and one
`generate` over N copies of the query with `adapter_names`. Each with the attention that is faster for it here.
"""

import csv
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

import torch
from peft import PeftModel
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks import common, timing
from benchmarks.common import DEVICE, Setup
from benchmarks.timing import Clock, Round
from see_lightning.data.example import Example
from see_lightning.engine.build import cache_folder
from see_lightning.models.base import load_model
from see_lightning.reporting.figures.latency import latency_figure
from see_lightning.reporting.svg import standalone_svg
from see_lightning.routing.verdicts import Verdict, read_verdict
from see_lightning.tasks.datamodule import TaskDataModule, query_batch
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.reconstruct import Indicators
from see_lightning.tasks.task import Task

SETTINGS = (
    "method=see", "order=superni_10", "order.tasks=[qa,qg,sa,sum,trans,dsg,expl,para]",
    "optim=small", "optim.lr=5e-3", "optim.epochs=3", "train_size=3", "test_size=2",
)  # fmt: skip
ADAPTERS = ["lora", "activated_lora"]
EXPERTS = 8  # beside the peers, and where lengths of prompts are compared
FEW, MANY = 1, 16  # beside one another
TOKENS = 300  # of the prompts on which numbers of experts are compared


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked.

    Args:
        text: as a user would type it.
        place: of the expert that accepts it, 0 for the one asked first; the number of experts where nobody does.
    """

    text: str
    place: int


@dataclass(frozen=True, slots=True)
class StopSignal:
    """What came back.

    Args:
        place: of the expert that answered, the number of experts for the base model.
        token: the answer's first, as text.
    """

    place: int
    token: str


@dataclass(frozen=True, slots=True)
class Taught:
    """Folders of the two experts that all are copies of."""

    accepts: Path
    refuses: Path


def spread_places(experts: int, queries: int) -> list[int]:
    """Accepting places that go evenly through all experts and "nobody".

    >>> spread_places(8, 9), spread_places(8, 4)
    ([0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 3, 5, 7])
    """
    return [(2 * query + 1) * (experts + 1) // (2 * queries) for query in range(queries)]


def prompt_of(template: PromptTemplate, text: str, tokens: int) -> str:
    """The beginning of ``text`` as a query whose whole prompt has ``tokens`` tokens, give or take a few."""
    ids = template.text_ids(text)
    frame = len(template.prompt_ids("x")) - 1
    repeated = list(islice(cycle(ids), max(1, tokens - frame)))
    return template.text(repeated)


def teach(setup: Setup, verdict: Verdict, folder: Path) -> Path:
    """Train an expert that gives every query the same verdict, and save it."""
    indicators = Indicators(setup.config.indicators.pos, setup.config.indicators.neg)
    examples = [
        Example(
            example.id,
            example.prompt[-160:],  # short, and so quick: the verdict does not hang on the query
            f"{indicators.pos} {example.target.split()[0]}" if verdict is Verdict.POS else indicators.neg,
            task.name,
        )
        for task in setup.tasks
        for example in task.train
    ]
    data = TaskDataModule(
        verdict, examples, setup.template, batch_size=setup.config.optim.global_batch_size, run_seed=setup.config.seed
    )
    method = setup.method()
    fitted = common.fit(setup, method, Task(verdict, (), (), "exact_match", 1), data, Clock(common.sync))
    common.tell(f"an expert that always says {verdict}: {fitted.steps} steps, mean loss {fitted.loss:.3f}")
    method.save(verdict, folder / verdict)
    return folder / verdict


class Contender:
    """One way to ask experts; a sample walks all queries.

    Args:
        setup: of one kind of experts.
        taught: the experts.
        experts: how many are asked.
        queries: what they are asked.
    """

    def __init__(self, setup: Setup, taught: Taught, experts: int, queries: Sequence[Query]) -> None:
        self.setup, self.experts, self.queries = setup, experts, queries
        self.indicators = Indicators(setup.config.indicators.pos, setup.config.indicators.neg)
        self.told: list[StopSignal] = []

    def names(self, place: int) -> list[str]:
        """The experts in the order in which they are asked; the one at ``place`` accepts."""
        refusing = [f"no{number}" for number in range(self.experts)]
        return [*refusing[:place], "yes", *refusing[place + 1 :]] if place < self.experts else refusing

    def __call__(self, clock: Clock) -> None:
        """One sample."""
        with torch.inference_mode():
            self.told = [self.ask(query, clock) for query in self.queries]

    def ask(self, query: Query, clock: Clock) -> StopSignal:
        """Walk one query."""
        raise NotImplementedError


class Ours(Contender):
    """The method as a run uses it."""

    def __init__(self, setup: Setup, taught: Taught, experts: int, queries: Sequence[Query]) -> None:
        super().__init__(setup, taught, experts, queries)
        self.method = setup.method()
        for name in self.names(experts):
            self.method.restore(name, taught.refuses)
        self.method.restore("yes", taught.accepts)
        self.method.to(DEVICE).eval()
        self.pairs = 0

    def __call__(self, clock: Clock) -> None:
        """One sample; what was counted before is forgotten."""
        self.method.counts.clear()
        self.pairs = 0
        super().__call__(clock)

    def ask(self, query: Query, clock: Clock) -> StopSignal:
        """Answer, as to a user who asks a single query."""
        names = self.names(query.place)
        if self.method.pool.names != names[::-1]:
            # Who is asked changes here from query to query, as in no run; what that costs is no part of the time.
            self.method.pool.names = names[::-1]
            counted = self.method.counts.copy()
            self.method.answer(query_batch(["Hello."], self.setup.template, max_new_tokens=1))
            self.method.counts = counted
        with clock:
            [answer] = self.method.answer(query_batch([query.text], self.setup.template, max_new_tokens=1))
        by_base = answer.expert == "base"
        self.pairs += len(answer.verdicts) + by_base
        return StopSignal(self.experts if by_base else names.index(str(answer.expert)), answer.text)


class _UntilRefused(StoppingCriteria):
    """Stops ``generate`` when the rows' verdicts are known and none accepts."""

    def __init__(self, read: Callable[[list[int]], Verdict | None], start: int) -> None:
        self.read, self.start = read, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        refused = all(self.read(row) in (Verdict.NEG, Verdict.NEITHER) for row in input_ids[:, self.start :].tolist())
        return torch.full((len(input_ids),), refused, device=input_ids.device)


class Peer(Contender):
    """PEFT's own ways.

    Args:
        setup: of one kind of experts.
        taught: the experts.
        experts: how many are asked.
        queries: what they are asked.
        mixed: ask all in one batch, instead of one by one.
    """

    def __init__(self, setup: Setup, taught: Taught, experts: int, queries: Sequence[Query], *, mixed: bool) -> None:
        super().__init__(setup, taught, experts, queries)
        self.mixed = mixed
        base = load_model(setup.config.model, cache_folder(setup.config), setup.dtype)
        self.model = PeftModel.from_pretrained(base, str(taught.accepts), adapter_name="yes")
        for name in self.names(experts):
            self.model.load_adapter(str(taught.refuses), adapter_name=name)
        self.model.to(DEVICE).eval()
        tokenizer = setup.template.tokenizer
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.longest = max(len(setup.template.target_ids(w)) - 1 for w in (self.indicators.pos, self.indicators.neg))

    def choose_attention(self) -> str:
        """Take the implementation that is faster for one of these queries, asked twice."""
        query = self.queries[len(self.queries) // 2]
        times: dict[str, float] = {}
        for attention in ("eager", "sdpa"):
            self.model.get_base_model().set_attn_implementation(attention)
            with torch.inference_mode():
                self.ask(query, Clock(common.sync))
                clock = Clock(common.sync)
                self.ask(query, clock)
            times[attention] = clock.seconds
        faster = min(times, key=lambda attention: times[attention])
        self.model.get_base_model().set_attn_implementation(faster)
        return faster

    def ask(self, query: Query, clock: Clock) -> StopSignal:
        """Ask in the order of the walk."""
        names = self.names(query.place)
        with clock:
            ids = torch.tensor([self.setup.template.prompt_ids(query.text)], device=DEVICE)
            if self.mixed:
                rows = self._generate(ids.repeat(len(names), 1), self.longest + 1, adapter_names=names)
                said = iter(rows)
            else:
                said = (self._one(name, ids) for name in names)
            for place, row in enumerate(said):
                verdict = self._read(row)
                if verdict is Verdict.POS:
                    return StopSignal(place, self._answer(row))
                if verdict is not Verdict.NEG:
                    break
            with self.model.disable_adapter():
                return StopSignal(self.experts, self.setup.template.text(self._generate(ids, 1)[0]).strip())

    def _one(self, name: str, ids: torch.Tensor) -> list[int]:
        self.model.set_adapter(name, inference_mode=True)
        return self._generate(ids, self.longest + 1)[0]

    def _generate(self, ids: torch.Tensor, longest: int, adapter_names: list[str] | None = None) -> list[list[int]]:
        more = {"adapter_names": adapter_names} if adapter_names else {}
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=longest,
            pad_token_id=self.pad,
            stopping_criteria=StoppingCriteriaList([_UntilRefused(self._read, ids.shape[1])] if longest > 1 else []),
            **more,
        )
        new: list[list[int]] = written[:, ids.shape[1] :].tolist()
        return new

    def _read(self, row: list[int]) -> Verdict | None:
        return read_verdict(self.setup.template.text(row).rstrip("\ufffd"), self.indicators)

    def _answer(self, row: list[int]) -> str:
        """The first token behind the indicator."""
        for end in range(1, len(row) + 1):
            if self._read(row[:end]) is Verdict.POS:
                return self.setup.template.text(row[end : end + 1]).strip()
        raise AssertionError("an answer was accepted without its indicator")


def contenders_for(
    setups: Mapping[str, Setup], taught: Mapping[str, Taught], experts: int, texts: Sequence[str]
) -> dict[str, Contender]:
    """Ours and both of PEFT's ways, for each kind of experts.

    Args:
        setups: by adapter.
        taught: experts by adapter.
        experts: how many are asked.
        texts: the queries.
    """
    queries = place_queries(texts, experts)
    contenders: dict[str, Contender] = {}
    for adapter, setup in setups.items():
        asked = (setup, taught[adapter], experts, queries)
        contenders[f"ours, {adapter}"] = Ours(*asked)
        contenders[f"PEFT one by one, {adapter}"] = Peer(*asked, mixed=False)
        contenders[f"PEFT mixed batch, {adapter}"] = Peer(*asked, mixed=True)
    return contenders


def place_queries(texts: Sequence[str], experts: int) -> list[Query]:
    """The texts, each with the place of the expert that accepts it."""
    return [Query(text, place) for text, place in zip(texts, spread_places(experts, len(texts)), strict=True)]


def measure(contenders: Mapping[str, Contender], repeats: int) -> list[Round]:
    """Warm up, give each peer its better attention, and take samples in turn."""
    for name, contender in contenders.items():
        if isinstance(contender, Peer):
            common.tell(f"{name}: {contender.choose_attention()} attention")
        else:
            contender(Clock(common.sync))
    return timing.alternate(contenders, repeats=repeats, sync=common.sync, tell=common.tell)


def agreement(contenders: Mapping[str, Contender], adapter: str) -> dict[str, int]:
    """Of how many queries the walk ended where it should, and ours and the peers had the same expert and first token."""
    ours = contenders[f"ours, {adapter}"]
    peers = [c for name, c in contenders.items() if isinstance(c, Peer) and name.endswith(f", {adapter}")]
    rows = list(zip(ours.queries, ours.told, *(peer.told for peer in peers), strict=True))
    return {
        "queries": len(rows),
        "as_planned": sum(told.place == query.place for query, told, *_ in rows),
        "same_expert": sum(all(other.place == told.place for other in others) for _, told, *others in rows),
        "same_token": sum(all(other == told for other in others) for _, told, *others in rows),
    }


def csv_rows(
    sweep: str, experts: int, tokens: int, contenders: Mapping[str, Contender], rounds: Sequence[Round]
) -> list[dict[str, object]]:
    """A line for every contender: milliseconds a query."""
    rows: list[dict[str, object]] = []
    for name, contender in contenders.items():
        seconds, clean = timing.seconds_of(rounds, name)
        each = [1000 * second / len(contender.queries) for second in seconds]
        times = {"median_ms": median(each), "min_ms": min(each), "max_ms": max(each)}
        rows.append(
            {"sweep": sweep, "contender": name, "experts": experts, "tokens": tokens}
            | {key: round(value, 2) for key, value in times.items()}
            | {"clean": clean, "samples": len(rounds)}
        )
    return rows


def plot(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Time to the first answer token over the number of experts, and over the length of the prompt."""
    figure = latency_figure(rows)
    if path.suffix == ".svg":
        path.write_text(standalone_svg(figure, "route", "Latency of routing"), encoding="utf-8")
    else:
        figure.savefig(path, facecolor="white")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = common.options(__doc__)
    parser.add_argument(
        "--adapters", type=common.adapter_names, default=ADAPTERS, help="kinds of experts, comma between"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="measure the scaling too, and write it there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="measure the scaling too, and draw it: .svg or .png")
    parser.add_argument("--experts", type=common.numbers, default=[1, 2, 4, 8, 16], help=f"scaling: at {TOKENS} tokens")
    parser.add_argument(
        "--lengths", type=common.numbers, default=[50, 100, 300, 1000], help=f"scaling: tokens, with {EXPERTS} experts"
    )
    parser.add_argument("--queries", type=common.positive, default=4, help="of a sample at a given length")
    args = common.parse(parser, arguments)

    setups = {adapter: common.prepare([*SETTINGS, *args.overrides, f"adapter={adapter}"]) for adapter in args.adapters}
    first = next(iter(setups.values()))
    print(first.conditions())
    real = [example.prompt for row in zip(*(task.test for task in first.tasks), strict=True) for example in row]

    def of_length(tokens: int) -> list[str]:
        return [prompt_of(first.template, f"{text} ", tokens) for text in islice(cycle(real), args.queries)]

    with tempfile.TemporaryDirectory() as folder:
        taught = {
            adapter: Taught(*(teach(setup, verdict, Path(folder) / adapter) for verdict in (Verdict.POS, Verdict.NEG)))
            for adapter, setup in setups.items()
        }
        contenders = contenders_for(setups, taught, EXPERTS, list(islice(cycle(real), EXPERTS + 1)))
        rounds = measure(contenders, args.repeats)
        tokens = sum(len(first.template.prompt_ids(query.text)) for query in contenders[next(iter(rounds[0]))].queries)
        timing.print_times(
            f"First answer token: {EXPERTS} experts, real prompts of {tokens / (EXPERTS + 1):.0f} tokens",
            rounds,
            unit="queries",
            amount=EXPERTS + 1,
            per_second=False,
        )
        agreed = {adapter: agreement(contenders, adapter) for adapter in setups}
        print(f"walks and first tokens: {agreed}")
        ratios = main_ratios(rounds, args.adapters, args.force)
        counts: dict[str, object] = {"agreement": agreed, **counted(contenders)}
        ratios["activated_n16_over_n1"] = timing.UNMEASURED
        if "activated_lora" in setups:
            pools: dict[str, Contender] = {
                f"{n} experts": Ours(
                    setups["activated_lora"], taught["activated_lora"], n, place_queries(of_length(TOKENS), n)
                )
                for n in (FEW, MANY)
            }
            few_and_many = measure(pools, args.repeats)
            timing.print_times(
                f"Ours, activated_lora, prompts of {TOKENS} tokens",
                few_and_many,
                unit="queries",
                amount=args.queries,
                per_second=False,
            )
            ratios["activated_n16_over_n1"] = timing.compare(
                few_and_many, f"{MANY} experts", f"{FEW} experts", force=args.force
            )
        if args.csv or args.plot:
            rows: list[dict[str, object]] = []
            for sweep, values in (("experts", args.experts), ("tokens", args.lengths)):
                for value in values:
                    n, length = (value, TOKENS) if sweep == "experts" else (EXPERTS, value)
                    common.tell(f"{n} experts, {length} tokens")
                    cell = contenders_for(setups, taught, n, of_length(length))
                    rows += csv_rows(sweep, n, length, cell, measure(cell, args.repeats))
            write(rows, args.csv, args.plot)
    timing.print_ratios(ratios)
    print(timing.result_line(counts, ratios, forced=args.force))


def main_ratios(rounds: Sequence[Round], adapters: Sequence[str], force: bool) -> dict[str, timing.Ratio]:
    """PEFT's times over ours, for the same experts; and for activated ones also over ordinary ones asked by PEFT."""
    pairs = {
        "activated_over_peft_n8": ("PEFT one by one, activated_lora", "ours, activated_lora"),
        "lora_over_peft_n8": ("PEFT one by one, lora", "ours, lora"),
        "activated_over_peft_lora_n8": ("PEFT one by one, lora", "ours, activated_lora"),
        "activated_over_mixed_n8": ("PEFT mixed batch, activated_lora", "ours, activated_lora"),
        "lora_over_mixed_n8": ("PEFT mixed batch, lora", "ours, lora"),
    }
    return {
        key: timing.compare(rounds, peer, ours, force=force) if {peer, ours} <= set(rounds[0]) else timing.UNMEASURED
        for key, (peer, ours) in pairs.items()
    }


def counted(contenders: Mapping[str, Contender]) -> dict[str, object]:
    """What ours read in one sample, of ordinary experts under the names that count, of activated ones beside them.

    A pair is a query and an expert that was asked it, or the base model where it had to answer: each reads the prompt once.
    In bf16 close decisions are made again, which reads the prompt once more.
    """
    found: dict[str, object] = {"prefills": None, "pairs_asked": None, "decided_again": None}
    for adapter, prefix in (("lora", ""), ("activated_lora", "activated_")):
        ours = contenders.get(f"ours, {adapter}")
        if isinstance(ours, Ours):
            counts = ours.method.counts
            found |= {
                f"{prefix}prefills": counts["prefills"],
                f"{prefix}pairs_asked": ours.pairs,
                f"{prefix}decided_again": counts["decided_again"],
            }
    return found


def write(rows: Sequence[dict[str, object]], table: Path | None, picture: Path | None) -> None:
    """The scaling as a CSV, as a plot, or both."""
    if table:
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"scaling: {table}")
    if picture:
        plot(rows, picture)
        print(f"scaling: {picture}")


if __name__ == "__main__":
    common.main(main)
