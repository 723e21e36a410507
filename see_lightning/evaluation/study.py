"""Replays of a finished run from what its experts said: another asking order, another threshold, and no model.

Letters: T tasks, as many as experts and stages.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from see_lightning.config import Refusal
from see_lightning.evaluation.continual import average, backward_transfer
from see_lightning.evaluation.matrix import ResultsMatrix
from see_lightning.evaluation.routing import BASE, routing_report
from see_lightning.experts.walk import Verdict, counted, walk
from see_lightning.seeds import seed

Record = Mapping[str, Any]
Range = tuple[float | None, float | None]
Opinions = Mapping[str, Sequence[Verdict]]

BINS = 60  # of a distribution in the picture
LAST_DIGIT = 1.001e-4  # scores are kept to 4 digits, and Pythons differ in how exactly they sum what is rounded


@dataclass(frozen=True, slots=True)
class Said:
    """What the experts of a run said of every test query, and what the answers scored that the run needed.

    Args:
        tasks: in the order in which their experts were born.
        tests: for each stage, the tasks that were tested after it.
        queries: task and id of every test query.
        verdicts: expert -> its verdict on each query.
        log_odds: expert -> how much it leaned to accepting each query, finite, in natural log units; 0 is undecided.
        scores: expert or ``base`` -> the score of its answer to each query, 0..100; None if it was never generated.
    """

    tasks: tuple[str, ...]
    tests: tuple[tuple[str, ...], ...]
    queries: tuple[tuple[str, str], ...]
    verdicts: Opinions
    log_odds: Mapping[str, Sequence[float]]
    scores: Mapping[str, Sequence[float | None]]

    def opinions(self, threshold: float | None) -> Opinions:
        """What each expert says of each query: its own verdict, or whether its log-odds reach a threshold."""
        if threshold is None:
            return self.verdicts
        return {
            expert: [Verdict.POS if value >= threshold else Verdict.NEG for value in values]
            for expert, values in self.log_odds.items()
        }


def gather(records: Iterable[Record], results: Mapping[str, Any], answers: Sequence[Record]) -> Said:
    """Put what was remembered in order.

    Args:
        records: lines of ``remembered.jsonl``, of all stages, as they were written. Of lines with one key each may say
            what others leave open, and the latest counts.
        results: content of ``results.json``; what its matrix has not measured is not replayed.
        answers: one to every test query, for its task, id, prompt and target, in the order in which scores are averaged.

    Raises:
        Refusal: an expert's verdict or log-odds on a query are missing, or a line belongs to no query of the run.
    """
    tasks, thresholds = tuple(results["tasks"]), results.get("routing", {}).get("thresholds", {})
    prompts = {(answer["task"], answer["id"]): answer["prompt_sha"] for answer in answers}
    heard: dict[str, dict[str, Any]] = {}
    keys: dict[tuple[str, ...], str] = {}
    scores: dict[tuple[str, ...], float] = {}
    for record in records:
        expert, task, id_, key = record["expert"], record["task"], record["id"], record["key"]
        if expert not in (*tasks, BASE) or (task, id_) not in prompts:
            raise Refusal(
                f"what {expert!r} said of {id_!r} of {task!r} belongs to no expert or test query of this run."
            )
        new = {name: record[name] for name in ("verdict", "log_odds", "text") if record[name] is not None}
        heard.setdefault(key, {}).update(new)
        # Queries with the same prompt are asked once, so what was said to one of them holds for all.
        for name in ((expert, task, id_), (expert, task, prompts[task, id_], "prompt"), (expert, prompts[task, id_])):
            keys.setdefault(name, key)
        if record["score"] is not None:
            scores[key, task, id_] = record["score"]

    said: dict[str, list[dict[str, Any]]] = {expert: [] for expert in (*tasks, BASE)}
    for expert, column in said.items():
        for answer in answers:
            task, id_, prompt = answer["task"], answer["id"], answer["prompt_sha"]
            names = ((expert, task, id_), (expert, task, prompt, "prompt"), (expert, prompt))
            key = next((keys[name] for name in names if name in keys), "")
            found = heard.get(key, {})
            if expert != BASE and not ("verdict" in found and math.isfinite(found.get("log_odds", math.nan))):
                raise Refusal(
                    f"expert {expert!r} has no verdict with finite log-odds on {id_!r} of {task!r}, and a study needs all;"
                    f" run the experiment anew."
                )
            score = scores.get((key, task, id_))
            if score is None and "text" in found:
                score = _score(results["score"][task], found["text"], answer)
            column.append({**found, "score": score})
    return Said(
        tasks,
        tuple(
            tuple(task for task, score in zip(tasks, row, strict=True) if score is not None)
            for row in results["matrix"]
        ),
        tuple(prompts),
        {
            expert: [
                counted(Verdict(found["verdict"]), found["log_odds"], thresholds.get(expert)) for found in said[expert]
            ]
            for expert in tasks
        },
        {expert: [found["log_odds"] for found in said[expert]] for expert in tasks},
        {expert: [found["score"] for found in column] for expert, column in said.items()},
    )


def _score(name: str, text: str, answer: Mapping[str, Any]) -> float:
    """The score of an answer that was given to another query with the same prompt."""
    # Late: it takes a second to import, and is seldom needed.
    from see_lightning.evaluation.scores import best_score, references_of

    return best_score(name, text, references_of(answer), answer.get("prompt", ""))


@dataclass(frozen=True, slots=True)
class Replay:
    """What a run would have given, had its experts been asked in another way.

    Where an answer was never generated its score is unknown, and ranges say what it could be.

    Args:
        answers: for each stage, a record for each query tested: ``id, task, expert, verdicts, score``.
        lowest: the results matrix with 0 for unknown scores; None where nothing was tested.
        highest: the same with 100.
        ar: lowest and highest AR, 0..100.
        bwt: lowest and highest BWT; None for a single task.
        routing: as in ``results.json``, after the last stage; nothing in it is unknown.
        unknown: how many answers were never generated that the matrix needs.
        asked: mean number of experts asked per query after the last stage.
    """

    answers: tuple[list[dict[str, Any]], ...]
    lowest: list[list[float | None]]
    highest: list[list[float | None]]
    ar: Range
    bwt: Range | None
    routing: dict[str, Any]
    unknown: int
    asked: float


def replay(said: Said, order: Sequence[str], threshold: float | None = None) -> Replay:
    """Ask the experts of a run once more, from memory.

    Args:
        said: what they said.
        order: all experts, the first to be asked first; at every stage those not born yet are left out.
        threshold: an expert accepts a query if its log-odds reach it, else passes it on; None goes by its verdicts, of
            which ``neither`` ends the walk at the base model.

    Raises:
        Refusal: `order` does not name every expert once, or the threshold is no finite number.
    """
    if sorted(order) != sorted(said.tasks):
        raise Refusal(f"an order names every expert once: {', '.join(said.tasks)}; got {', '.join(order)}.")
    if threshold is not None and not math.isfinite(threshold):
        raise Refusal(f"a threshold is a finite number of log-odds; got {threshold}.")
    opinions = said.opinions(threshold)
    answers = tuple(_stage(said, stage, order, opinions) for stage in range(len(said.tasks)))
    lowest, highest = _matrix(said, answers, 0, 0), _matrix(said, answers, 100, 100)
    # A difference is least if what is unknown at the end is worth 0, and what is unknown before is worth 100.
    most_lost, least_lost = _matrix(said, answers, 0, 100), _matrix(said, answers, 100, 0)
    last = answers[-1]
    return Replay(
        answers,
        lowest,
        highest,
        (average(lowest), average(highest)),
        (backward_transfer(most_lost), backward_transfer(least_lost)) if len(said.tasks) > 1 else None,
        routing_report(last, said.tasks),
        len({(a["task"], a["id"], a["expert"]) for stage in answers for a in stage if a["score"] is None}),
        sum(len(answer["verdicts"]) for answer in last) / len(last),
    )


def _stage(said: Said, stage: int, order: Sequence[str], opinions: Opinions) -> list[dict[str, Any]]:
    """Who answers the queries that are tested after a stage (from 0)."""
    tested = [number for number, (task, _) in enumerate(said.queries) if task in said.tests[stage]]
    born = [expert for expert in order if expert in said.tasks[: stage + 1]]
    walked = walk(born, len(tested), lambda expert, rows: [opinions[expert][tested[row]] for row in rows])
    return [
        {
            "id": said.queries[number][1],
            "task": said.queries[number][0],
            "expert": end.expert or BASE,
            "verdicts": list(end.verdicts),
            "score": said.scores[end.expert or BASE][number],
        }
        for number, end in zip(tested, walked, strict=True)
    ]


def _matrix(
    said: Said, answers: Sequence[list[dict[str, Any]]], unknown: float, unknown_before: float
) -> list[list[float | None]]:
    """The results matrix with a score for every unknown answer, another one for those that the last stage has not."""
    at_end = {(a["task"], a["id"], a["expert"]) for a in answers[-1]}
    matrix = ResultsMatrix(said.tasks)
    for after, stage in enumerate(answers, start=1):
        scores: dict[str, list[float]] = {task: [] for task in said.tests[after - 1]}
        for a in stage:
            # The same expert's answer to the same query is the same answer at every stage.
            fill = unknown if (a["task"], a["id"], a["expert"]) in at_end else unknown_before
            scores[a["task"]].append(fill if a["score"] is None else a["score"])
        for task, values in scores.items():
            matrix.set(after, task, round(sum(values) / len(values), 4))
    return matrix.to_list()


def disagreement(replayed: Replay, results: Mapping[str, Any]) -> str | None:
    """What a replay of the run's own walk gives otherwise than ``results.json``, or None if they agree."""
    tasks = results["tasks"]
    for t, rows in enumerate(zip(replayed.lowest, replayed.highest, results["matrix"], strict=True)):
        for task, low, high, measured in zip(tasks, *rows, strict=True):
            if low is None or high is None or measured is None:
                continue
            if low != high:
                return f"answers to {task!r} after {t + 1} tasks that results.json counts are not remembered"
            if abs(low - measured) > LAST_DIGIT:
                return f"they give {low} on {task!r} after {t + 1} tasks, results.json says {measured}"
    if replayed.routing["confusion"] != results["routing"]["confusion"]:
        return "they route queries otherwise than results.json counts"
    return None


# ------------------------------------------------------------------------------------------- over all thresholds


@dataclass(frozen=True, slots=True)
class Sweep:
    """Routing after the last stage for every threshold at once.

    The own expert gets a query if the threshold is above the log-odds of all that are asked before it, and not above its
    own; nobody gets it above all of them.

    Args:
        opens: sorted, the thresholds above which a query reaches its own expert, of the queries that it could get.
        closes: sorted, those above which the own expert no longer accepts it.
        highest: sorted, each query's highest log-odds.
    """

    opens: Sequence[float]
    closes: Sequence[float]
    highest: Sequence[float]

    def accuracy(self, threshold: float) -> float:
        """Share of queries that their own expert answers, 0..1."""
        return (bisect_left(self.opens, threshold) - bisect_left(self.closes, threshold)) / len(self.highest)

    def base_share(self, threshold: float) -> float:
        """Share of queries that the base model answers, 0..1."""
        return bisect_left(self.highest, threshold) / len(self.highest)

    def best(self) -> tuple[float, float, float]:
        """Where accuracy is highest: ends of the widest such interval, the lower one excluded, and a threshold in it."""
        ends = sorted(filter(math.isfinite, {*self.opens, *self.closes, self.highest[-1]}))
        intervals = list(zip([-math.inf, *ends], ends, strict=False))
        low, high = max(intervals, key=lambda interval: (self.accuracy(interval[1]), interval[1] - interval[0]))
        middle = (low + high) / 2 if math.isfinite(low) else math.floor(high)
        return low, high, shortest_between(low, high, middle)


def sweep(said: Said, order: Sequence[str]) -> Sweep:
    """Routing over all thresholds; arguments as in `replay`."""
    reached = []
    for number, (task, _) in enumerate(said.queries):
        before = [said.log_odds[expert][number] for expert in order[: order.index(task)]]
        reached.append((max(before, default=-math.inf), said.log_odds[task][number]))
    possible = [(before, own) for before, own in reached if before < own]
    return Sweep(
        sorted(before for before, _ in possible),
        sorted(own for _, own in possible),
        sorted(max(values) for values in zip(*said.log_odds.values(), strict=True)),
    )


def shortest_between(low: float, high: float, near: float) -> float:
    """The number with the fewest decimals above `low` and not above `high`, found by rounding one that lies there.

    >>> shortest_between(0.24, 0.33, 0.285), shortest_between(-7.2, 3.1, -2.05)
    (0.3, -2.0)
    """
    rounded = (round(near, digits) + 0.0 for digits in range(17))  # adding 0 makes 0 of -0
    return next((value for value in rounded if low < value <= high), high)


def own_and_foreign(said: Said, experts: Iterable[str]) -> tuple[list[float], list[float]]:
    """Sorted log-odds of experts on queries of their own task, and on all others."""
    own: list[float] = []
    foreign: list[float] = []
    for expert in experts:
        for (task, _), value in zip(said.queries, said.log_odds[expert], strict=True):
            (own if task == expert else foreign).append(value)
    return sorted(own), sorted(foreign)


def default_thresholds(said: Said) -> list[float]:
    """Thresholds that say something: 0, one that 1 % of foreign queries reach, and one that 1 % of own ones miss."""
    own, foreign = own_and_foreign(said, said.tasks)
    chosen = {0.0, own[len(own) // 100]} | ({foreign[-1 - len(foreign) // 100]} if foreign else set())
    return sorted({round(value, 2) + 0.0 for value in chosen})


# ------------------------------------------------------------------------------------------- the study


def name_orders(wanted: Iterable[str], tasks: Sequence[str], run_seed: int) -> dict[str, tuple[str, ...]]:
    """Asking orders by name; orders that turn out the same share a row.

    Args:
        wanted: ``newest``, ``oldest``, ``random:3``, several of them between commas, or all tasks between commas.
        tasks: in the order in which their experts were born.
        run_seed: the run's seed; random orders are drawn by it.

    >>> name_orders(["newest,oldest", "b,a,c"], ["a", "b", "c"], 0)
    {'newest': ('c', 'b', 'a'), 'oldest': ('a', 'b', 'c'), 'b,a,c': ('b', 'a', 'c')}
    """
    names: dict[tuple[str, ...], list[str]] = {}
    for given in wanted:
        words = tuple(word.strip() for word in given.split(","))
        if sorted(words) == sorted(tasks):
            names.setdefault(words, []).append(",".join(words))
            continue
        for word in words:
            kind, _, count = word.partition(":")
            if word in ("newest", "oldest"):
                drawn = {word: tuple(tasks if word == "oldest" else reversed(tasks))}
            elif kind == "random" and count.isdecimal() and int(count):
                drawn = {f"random {n}": _shuffled(tasks, run_seed, n) for n in range(1, int(count) + 1)}
            else:
                raise Refusal(
                    f"an order is newest, oldest, random:N with N of at least 1, or every task once"
                    f" ({','.join(tasks)}); got {word!r}."
                )
            for name, order in drawn.items():
                names.setdefault(order, []).append(name)
    return {" = ".join(dict.fromkeys(same)): order for order, same in names.items()}


def _shuffled(tasks: Sequence[str], run_seed: int, number: int) -> tuple[str, ...]:
    return tuple(random.Random(seed(run_seed, ",".join(tasks), f"asking order {number}")).sample(tasks, len(tasks)))


def study(said: Said, orders: Mapping[str, Sequence[str]], thresholds: Iterable[float]) -> dict[str, Any]:
    """The content of ``study.json``: every order by the experts' verdicts and by every threshold, and the picture.

    Args:
        said: what the experts said.
        orders: by name, at least one; the picture shows the first.
        thresholds: the one with the best routing of each order is added.
    """
    rows = []
    for name, order in orders.items():
        best = sweep(said, order).best()[2]
        for threshold in (None, *sorted({*thresholds, best})):
            replayed = replay(said, order, threshold)
            rows.append(
                {
                    "order": name,
                    "experts": list(order),
                    "threshold": threshold,
                    "is_best": threshold == best,
                    "AR": replayed.ar,
                    "BWT": replayed.bwt,
                    "routing_accuracy": replayed.routing["accuracy"],
                    "base_share": replayed.routing["base_share"],
                    "asked": replayed.asked,
                    "unknown": replayed.unknown,
                }
            )
    name, order = next(iter(orders.items()))
    return {"queries": len(said.queries), "rows": rows, "picture": {"order": name, **_picture(said, order)}}


def _picture(said: Said, order: Sequence[str]) -> dict[str, Any]:
    """Counts of log-odds in `BINS` of equal width for each expert, and the sweep at the bins' edges."""
    values = [value for column in said.log_odds.values() for value in column]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    edges = [round(low + (high - low) * k / BINS, 4) for k in range(BINS + 1)]
    swept = sweep(said, order)
    above, to, best = swept.best()
    return {
        "edges": edges,
        "experts": {
            expert: {
                group: _histogram(values, low, high)
                for group, values in zip(("own", "foreign"), own_and_foreign(said, [expert]), strict=True)
            }
            for expert in said.tasks
        },
        "accuracy": [swept.accuracy(edge) for edge in edges],
        "base_share": [swept.base_share(edge) for edge in edges],
        "best": {
            "threshold": best,
            "above": above if math.isfinite(above) else None,
            "to": to,
            "accuracy": swept.accuracy(best),
        },
    }


def _histogram(values: Iterable[float], low: float, high: float) -> list[int]:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / (high - low) * BINS))] += 1
    return counts
