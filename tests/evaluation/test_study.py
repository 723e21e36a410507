"""Replays from memory against walks in plain loops, numbers by hand, and every score that an unknown answer could have."""

import json
import math
import random
import subprocess
import sys
from itertools import permutations, product

import pytest

from see_lightning.cli.study import main
from see_lightning.engine.ledger import Ledger, dump
from see_lightning.errors import Refusal
from see_lightning.evaluation.counterfactual import mismatch, simulate
from see_lightning.evaluation.recorded import gather
from see_lightning.evaluation.sari import sari_of
from see_lightning.evaluation.study import BINS, name_orders, study
from see_lightning.evaluation.thresholds import Sweep, default_thresholds, sweep
from see_lightning.reporting.report.page import render_html
from tests.reporting.test_report import Page
from tests.reporting.test_report import results as report_results
from tests.runs import toy


def asked_by_hand(order, born, opinion):
    """Who answers a query, and how many experts were asked: the walk as the paper tells it."""
    asked = 0
    for expert in order:
        if expert in born:
            asked += 1
            if opinion(expert) != "neg":
                return (expert if opinion(expert) == "pos" else "base"), asked
    return "base", asked


class World:
    """A made-up run of which everything is known, also the scores of answers that were never generated."""

    def __init__(self, draw, tasks=("a", "b", "c"), queries=3):
        self.tasks = list(tasks)
        self.queries = [(task, f"{number}") for task in tasks for number in range(queries)]
        self.verdict = {(e, q): draw.choice(["pos", "neg", "neg", "neither"]) for e in tasks for q in self.queries}
        self.log_odds = {(e, q): round(draw.gauss(2.0 * (e == q[0]), 2), 1) for e in tasks for q in self.queries}
        self.truth = {(e, q): round(draw.uniform(0, 100), 4) for e in (*tasks, "base") for q in self.queries}
        self.needed = {(self.answerer(t, q), q) for t in range(len(tasks)) for q in self.tested(t)}

    def tested(self, t):
        return [query for query in self.queries if query[0] in self.tasks[: t + 2]]

    def opinion(self, query, threshold):
        if threshold is None:
            return lambda expert: self.verdict[expert, query]
        return lambda expert: "pos" if self.log_odds[expert, query] >= threshold else "neg"

    def answerer(self, t, query, order=None, threshold=None):
        return asked_by_hand(order or self.tasks[::-1], self.tasks[: t + 1], self.opinion(query, threshold))[0]

    def matrix(self, order=None, threshold=None, scores=None):
        """Rows of scores by plain loops; given scores stand in for the true ones."""
        scores = self.truth | (scores or {})
        rows = []
        for t in range(len(self.tasks)):
            row = [None] * len(self.tasks)
            for j, task in enumerate(self.tasks[: t + 2]):
                own = [query for query in self.queries if query[0] == task]
                found = [scores[self.answerer(t, query, order, threshold), query] for query in own]
                row[j] = round(sum(found) / len(found), 4)
            rows.append(row)
        return rows

    def records(self):
        """Lines of ``remembered.jsonl``."""
        return [
            {
                "id": query[1],
                "task": query[0],
                "expert": expert,
                "verdict": self.verdict.get((expert, query)),
                "log_odds": self.log_odds.get((expert, query)),
                "margin": None if expert == "base" else 0.5,
                "text": "text" if (expert, query) in self.needed else None,
                "truncated": False if (expert, query) in self.needed else None,
                "score": self.truth[expert, query] if (expert, query) in self.needed else None,
                "key": f"{expert} on {query}",
            }
            for expert in (*self.tasks, "base")
            for query in self.queries
            if expert != "base" or (expert, query) in self.needed
        ]

    def answers(self):
        """Lines of the last stage's ``answers.jsonl``, as far as they are read."""
        return [{"task": task, "id": id_, "prompt_sha": f"{task}{id_}", "target": "none"} for task, id_ in self.queries]

    def recorded(self, records=None):
        return gather(records or self.records(), self.results(), self.answers())

    def results(self):
        columns = [*self.tasks, "base"]
        ends = [(query[0], self.answerer(len(self.tasks) - 1, query)) for query in self.queries]
        counts = [[ends.count((task, column)) for column in columns] for task in self.tasks]
        right = sum(task == expert for task, expert in ends)
        return report_results() | {
            "tasks": self.tasks,
            "score": dict.fromkeys(self.tasks, "rouge_l"),
            "matrix": self.matrix(),
            "metrics": {"AR": 1.0},
            "routing": {"accuracy": right / len(ends), "confusion": counts},
        }


def ar_and_bwt(matrix):
    last, T = matrix[-1], len(matrix)
    return sum(last) / T, sum(last[j] - matrix[j][j] for j in range(T - 1)) / (T - 1)


def worlds(count, **size):
    draw = random.Random(0)
    return [World(draw, **size) for _ in range(count)]


@pytest.mark.parametrize("threshold", [None, -1.5, 0.0, 2.0])
def test_whoever_a_plain_walk_ends_at_answers_in_every_order(threshold):
    for world in worlds(8):
        for order in permutations(world.tasks):
            simulated = simulate(world.recorded(), order, threshold)
            for t, answers in enumerate(simulated.answers):
                routes = {
                    query: asked_by_hand(order, world.tasks[: t + 1], world.opinion(query, threshold))
                    for query in world.tested(t)
                }
                assert {(a["task"], a["id"]): (a["expert"], len(a["verdicts"])) for a in answers} == routes
            assert simulated.asked == sum(asked for _, asked in routes.values()) / len(routes)
            ends = [(query[0], expert) for query, (expert, _) in routes.items()]
            assert simulated.routing["accuracy"] == sum(task == expert for task, expert in ends) / len(ends)
            assert simulated.routing["base_share"] == sum(expert == "base" for _, expert in ends) / len(ends)


def test_the_run_s_own_order_and_verdicts_give_its_matrix_and_nothing_unknown():
    for world in worlds(30, tasks=("a", "b", "c", "d")):
        simulated = simulate(world.recorded(), world.tasks[::-1])
        assert simulated.lowest == simulated.highest == world.matrix()
        assert simulated.unknown == 0
        ar, bwt = ar_and_bwt(world.matrix())
        assert simulated.ar == pytest.approx((ar, ar))
        assert simulated.bwt == pytest.approx((bwt, bwt))
        assert mismatch(simulated, world.results()) is None


def test_ranges_end_at_what_the_worst_and_the_best_unknown_answers_would_give():
    """Every way in which unknown answers could score 0 or 100 is tried."""
    tried = 0
    for world in worlds(25, queries=2):
        for order, threshold in product((world.tasks, world.tasks[::-1]), (None, 0.5)):
            used = {(world.answerer(t, query, order, threshold), query) for t in range(3) for query in world.tested(t)}
            unknown = sorted(used - world.needed)
            simulated = simulate(world.recorded(), order, threshold)
            assert simulated.unknown == len(unknown)
            if len(unknown) > 6:
                continue
            found = [
                ar_and_bwt(world.matrix(order, threshold, dict(zip(unknown, scores, strict=True))))
                for scores in product((0.0, 100.0), repeat=len(unknown))
            ]
            for (low, high), values in zip((simulated.ar, simulated.bwt), zip(*found, strict=True), strict=True):
                assert (low, high) == pytest.approx((min(values), max(values)), abs=1e-4)
            tried += bool(unknown)
    assert tried > 20


def remember(expert, task, verdict=None, log_odds=None, score=None):
    """A line of ``remembered.jsonl`` on the only query of a task."""
    line = {"id": "1", "task": task, "expert": expert, "verdict": verdict, "log_odds": log_odds, "score": score}
    return line | {"text": None if score is None else "text", "key": f"{expert} on {task}"}


def gather_single(records, matrix):
    """What was said in a run with one query per task, whose tasks are the letters from a on."""
    tasks = list("abc"[: len(matrix)])
    answers = [{"task": task, "id": "1", "prompt_sha": task, "target": "none"} for task in tasks]
    return gather(records, {"tasks": tasks, "matrix": matrix, "score": dict.fromkeys(tasks, "exact_match")}, answers)


def hand_made():
    """Three experts, one query each: c takes b's query, a takes its own, and c leaves its own to the base model."""
    spoken = {
        # expert: verdict and log-odds on the queries of a, b and c
        "a": [("pos", 3.0), ("neg", -4.0), ("pos", 1.0)],
        "b": [("neg", -2.0), ("pos", 5.0), ("neg", -3.0)],
        "c": [("neg", -1.0), ("pos", 2.0), ("neither", 4.0)],
    }
    scores = {"aa": 80.0, "bb": 60.0, "cb": 40.0, "ac": 5.0}
    records = [
        remember(expert, task, *opinion, scores.get(expert + task))
        for expert, decisions in spoken.items()
        for task, opinion in zip("abc", decisions, strict=True)
    ]
    records += [remember("base", "b", score=10.0), remember("base", "c", score=20.0)]
    return gather_single(records, [[80.0, 10.0, None], [80.0, 60.0, 5.0], [80.0, 40.0, 20.0]])


def test_a_run_of_three_queries_counted_by_hand():
    by_verdict = simulate(hand_made(), "cba")
    assert by_verdict.lowest == [[80.0, 10.0, None], [80.0, 60.0, 5.0], [80.0, 40.0, 20.0]]
    assert by_verdict.ar == pytest.approx((140 / 3, 140 / 3))
    assert by_verdict.bwt == (-10.0, -10.0)  # (80 - 80 + 40 - 60) / 2
    assert [a["expert"] for a in by_verdict.answers[-1]] == ["a", "c", "base"]
    assert [a["verdicts"] for a in by_verdict.answers[-1]] == [["neg", "neg", "pos"], ["pos"], ["neither"]]
    assert (by_verdict.routing["accuracy"], by_verdict.routing["base_share"]) == (1 / 3, 1 / 3)
    assert (by_verdict.asked, by_verdict.unknown) == (5 / 3, 0)

    right = simulate(
        hand_made(), "cba", threshold=2.5
    )  # a 3, b 5, c 4: each to its own, but c's answer was never generated
    assert [a["expert"] for a in right.answers[-1]] == ["a", "b", "c"]
    assert right.routing["accuracy"] == 1.0
    assert right.unknown == 1
    assert (right.lowest[-1], right.highest[-1]) == ([80.0, 60.0, 0.0], [80.0, 60.0, 100.0])
    assert right.ar == pytest.approx((140 / 3, 80))
    assert right.bwt == (0.0, 0.0)

    oldest = simulate(hand_made(), "abc")  # a takes its own and c's query, b its own
    assert [a["expert"] for a in oldest.answers[-1]] == ["a", "b", "a"]
    assert oldest.lowest[-1] == oldest.highest[-1] == [80.0, 60.0, 5.0]

    assert sweep(hand_made(), "cba").best() == (2.0, 3.0, 2.0 + 0.5)
    assert default_thresholds(hand_made()) == [0.0, 2.0, 3.0]


def test_an_answer_that_is_unknown_before_and_after_does_not_widen_the_backward_transfer():
    """The same expert's answer to the same query is the same answer, whatever it scores."""
    records = [remember(expert, task, "neg", 1.0 if expert == task else -1.0) for expert in "ab" for task in "ab"]
    records += [remember("base", task, score=50.0) for task in "ab"]
    recorded = gather_single(records, [[50.0, 50.0], [50.0, 50.0]])
    simulated = simulate(recorded, "ba", threshold=0.0)
    assert (simulated.ar, simulated.bwt, simulated.unknown) == ((0.0, 100.0), (0.0, 0.0), 2)


def test_a_single_task_has_no_backward_transfer():
    (world,) = worlds(1, tasks=("a",))
    assert simulate(world.recorded(), ["a"]).bwt is None
    assert sweep(world.recorded(), ["a"]).best()[0] == -math.inf
    found = study(world.recorded(), {"newest": ["a"]}, [])
    assert json.loads(dump(found))["picture"]["best"]["above"] is None


def test_the_sweep_is_the_replay_at_every_threshold():
    for world in worlds(10, queries=4):
        recorded = world.recorded()
        for order in (world.tasks, world.tasks[::-1], ["b", "c", "a"]):
            swept = sweep(recorded, order)
            heard = sorted(set(world.log_odds.values()))
            tried = [heard[0] - 1, *heard, *(value + 0.05 for value in heard)]
            accuracies = []
            for threshold in tried:
                routing = simulate(recorded, order, threshold).routing
                assert (swept.accuracy(threshold), swept.fallback_rate(threshold)) == (
                    routing["accuracy"],
                    routing["base_share"],
                )
                accuracies.append(routing["accuracy"])
            low, high, best = swept.best()
            assert low < best <= high
            assert swept.accuracy(best) == swept.accuracy(high) == max(accuracies)


def test_of_equally_good_thresholds_the_widest_interval_is_the_best():
    """Three queries, which their experts get from -inf to 10, from 0 to 1 and from 2 to 10."""
    assert Sweep([-math.inf, 0.0, 2.0], [1.0, 10.0, 10.0], [1.0, 10.0, 10.0]).best() == (2.0, 10.0, 6.0)


def test_the_study_holds_a_row_for_every_order_and_rule_and_counts_every_log_odds():
    (world,) = worlds(1, tasks=("a", "b", "c", "d"), queries=7)
    recorded = world.recorded()
    found = study(recorded, name_orders(["newest,oldest"], world.tasks, 0), [-1.0, 1.0])
    for name, order in (("newest", world.tasks[::-1]), ("oldest", world.tasks)):
        rows = [row for row in found["rows"] if row["order"] == name]
        best = sweep(recorded, order).best()[2]
        assert [row["threshold"] for row in rows] == [None, *sorted({-1.0, 1.0, best})]
        assert [row["threshold"] for row in rows if row["is_best"]] == [best]
        assert max(row["routing_accuracy"] for row in rows[1:]) == sweep(recorded, order).accuracy(best)
        for row in rows:
            simulated = simulate(recorded, order, row["threshold"])
            assert (row["AR"], row["BWT"], row["unknown"]) == (simulated.ar, simulated.bwt, simulated.unknown)
    picture = found["picture"]
    assert len(picture["edges"]) == len(picture["accuracy"]) == BINS + 1
    for groups in picture["experts"].values():
        assert (sum(groups["own"]), sum(groups["foreign"])) == (7, 21)
    by_hand = study(hand_made(), {"newest": "cba"}, [])["picture"]  # log-odds from -4, a's on b, to 5, b's own
    assert (by_hand["edges"][0], by_hand["edges"][-1]) == (-4.0, 5.0)
    assert (by_hand["experts"]["a"]["foreign"][0], by_hand["experts"]["b"]["own"][-1]) == (1, 1)


def test_of_lines_with_one_key_each_may_say_what_the_others_leave_open_and_the_latest_counts():
    (world,) = worlds(1)
    whole = world.records()
    nothing = dict.fromkeys(("text", "truncated", "score"))
    decided = [record | nothing for record in whole if record["expert"] != "base"]
    answered = [record for record in whole if record["score"] is not None]
    uncertain = [record | {"log_odds": 0.25, "verdict": "neither"} for record in decided]
    assert world.recorded([*uncertain, *decided, *answered]) == world.recorded(whole)
    assert world.recorded([*decided, *uncertain]).verdicts["a"] == ["neither"] * len(world.queries)


def test_what_was_said_to_one_of_two_queries_with_the_same_prompt_holds_for_both():
    """Each against its own target: the answer, remembered once, is right for the first and wrong for the second."""
    query = {"task": "a", "prompt_sha": "same"}
    answers = [query | {"id": "1", "target": "text"}, query | {"id": "2", "target": "other"}]
    results = {"tasks": ["a"], "matrix": [[50.0]], "score": {"a": "exact_match"}}
    recorded = gather([remember("a", "a", "pos", 2.5, 100.0)], results, answers)
    assert (recorded.verdicts, recorded.log_odds) == ({"a": ["pos", "pos"]}, {"a": [2.5, 2.5]})
    assert recorded.scores == {"a": [100.0, 0.0], "base": [None, None]}
    assert simulate(recorded, ["a"]).lowest == [[50.0]]


def test_a_score_that_reads_the_prompt_is_computed_from_that_of_the_answer():
    query = {"task": "a", "prompt_sha": "same", "prompt": "the other text"}
    answers = [query | {"id": "1", "target": "text"}, query | {"id": "2", "target": "the text"}]
    results = {"tasks": ["a"], "matrix": [[50.0]], "score": {"a": "sari"}}
    recorded = gather([remember("a", "a", "pos", 2.5, 100.0)], results, answers)
    assert recorded.scores["a"] == [100.0, sari_of("the other text", "text", ["the text"])]
    assert recorded.scores["a"][1] != sari_of("", "text", ["the text"])


def test_a_score_is_computed_against_all_references_of_the_answer():
    query = {"task": "a", "prompt_sha": "same"}
    second = query | {"id": "2", "target": "another", "references": ["another", "text"]}
    results = {"tasks": ["a"], "matrix": [[50.0]], "score": {"a": "exact_match"}}
    answers = [query | {"id": "1", "target": "text"}, second]
    assert gather([remember("a", "a", "pos", 2.5, 100.0)], results, answers).scores["a"] == [100.0, 100.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_odds": None}, "'a' has no verdict with finite log-odds on '0' of 'a'"),
        ({"log_odds": math.nan}, "'a' has no verdict with finite log-odds on '0' of 'a'"),
        ({"log_odds": -math.inf}, "'a' has no verdict with finite log-odds on '0' of 'a'"),
        ({"verdict": None}, "'a' has no verdict with finite log-odds on '0' of 'a'"),
        ({"id": "1"}, "'a' has no verdict with finite log-odds on '0' of 'a'"),
        ({"id": "9"}, "'a' on '9' of 'a' belongs to no expert or test"),
        ({"expert": "z"}, "'z' on '0' of 'a' belongs to no expert or test"),
    ],
)
def test_memories_that_are_not_whole_are_refused(change, message):
    (world,) = worlds(1)
    records = world.records()
    records[0] |= change
    with pytest.raises(Refusal, match=message):
        world.recorded(records)


def test_answers_of_a_mixture_of_experts_are_no_decisions():
    (world,) = worlds(1)
    records = world.records()
    mixed = records[0] | {"expert": "(arrow)", "verdict": None, "log_odds": None}
    assert world.recorded([mixed, *records]) == world.recorded(records)


@pytest.mark.parametrize(
    ("order", "threshold", "message"),
    [
        ("ab", None, "names every expert once: a, b, c; got a, b"),
        ("aabc", None, "names every expert once"),
        ("abc", math.nan, "a threshold is a finite number of log-odds; got nan"),
    ],
)
def test_a_replay_that_makes_no_sense_is_refused(order, threshold, message):
    with pytest.raises(Refusal, match=message):
        simulate(hand_made(), order, threshold)


def test_results_that_the_memories_do_not_give_are_told():
    (world,) = worlds(1)
    simulated = simulate(world.recorded(), world.tasks[::-1])
    results = world.results()
    results["matrix"][1][0] += 0.5
    assert "on 'a' after 2 tasks, results.json has" in mismatch(simulated, results)
    results = world.results()
    results["routing"]["confusion"][0].reverse()
    results["routing"]["confusion"][1].reverse()
    assert "route queries differently" in mismatch(simulated, results)
    lost = world.recorded([record | dict.fromkeys(("text", "score")) for record in world.records()])
    told = mismatch(simulate(lost, world.tasks[::-1]), world.results())
    assert "that results.json counts are not in the record" in told


def test_orders_by_name_are_permutations_and_the_same_every_time():
    tasks = list("abcdef")
    named = name_orders(["newest,oldest,random:4", "b,a,c,f,e,d"], tasks, 0)
    assert list(named) == ["newest", "oldest", "random 1", "random 2", "random 3", "random 4", "b,a,c,f,e,d"]
    assert (named["newest"], named["oldest"], named["b,a,c,f,e,d"]) == (
        tuple("fedcba"),
        tuple("abcdef"),
        tuple("bacfed"),
    )
    assert all(sorted(order) == tasks for order in named.values())
    assert named == name_orders(["newest,oldest,random:4", "b,a,c,f,e,d"], tasks, 0)
    assert named["random 1"] != name_orders(["random:1"], tasks, 1)["random 1"]
    assert name_orders(["newest,oldest"], ["a"], 0) == {"newest = oldest": ("a",)}


@pytest.mark.parametrize("wanted", ["newset", "random", "random:0", "random:-1", "a,b", "newest,a,b,c", ""])
def test_unknown_orders_are_refused(wanted):
    with pytest.raises(Refusal, match=r"an order is newest, oldest, random:N.*\(a,b,c\); got"):
        name_orders([wanted], ["a", "b", "c"], 0)


# ---------------------------------------------------------------------------------------------- report and command


@pytest.fixture
def world():
    return World(random.Random(3), tasks=("qa", "<b>", "sum"), queries=8)


@pytest.fixture
def run_dir(world, tmp_path):
    """A finished run's directory, as far as a study reads it."""
    directory = tmp_path / "run"
    with Ledger(directory) as ledger:
        ledger.about({"command": "python run.py method=see"})
        for t, newest in enumerate(world.tasks):
            for task in world.tasks:
                # The base model's answers come with the last stage.
                adapters = [newest, "base"] if t == 2 else [newest]
                new = [{**toy.SAID, **r} for r in world.records() if r["expert"] in adapters and r["task"] == task]
                answers = [{**toy.ANSWER, **answer} for answer in world.answers() if answer["task"] == task]
                blocks = {"answers": answers} if task in world.tasks[: t + 2] else {}
                ledger.note_answers(f"0{t + 1}-stage", task, blocks | {"remembered": new}, {})
                ledger.commit()
    (directory / "results.json").write_text(dump(world.results()))
    return directory


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_the_command_prints_the_table_and_draws_it_into_the_report(run_dir, world, capsys):
    main([str(run_dir), "--thresholds", "-2,0.5", "--orders", "newest,random:1", "--orders", "sum,qa,<b>"])
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(run_dir / "report.html")
    kept = json.loads((run_dir / "study.json").read_text())
    assert {row["threshold"] for row in kept["rows"]} >= {None, -2.0, 0.5}
    assert list(dict.fromkeys(row["order"] for row in kept["rows"])) == ["newest", "random 1", "sum,qa,<b>"]
    right = world.results()["routing"]["accuracy"]
    assert f"{100 * right:.1f} %" in next(line for line in out.splitlines() if "newest" in line)
    assert "log-odds ≥ −2" in out
    assert out.count("newest ") == 1
    assert "None" not in out
    page = (run_dir / "report.html").read_text()
    assert page == render_html(json.loads((run_dir / "results.json").read_text()), kept)
    assert page.count('<svg role="img" aria-labelledby="study-title"') == 1


def test_the_same_study_gives_the_same_bytes_and_another_one_takes_its_place(run_dir, capsys):
    files = [run_dir / "study.json", run_dir / "report.html"]
    main([str(run_dir)])
    first = [file.read_bytes() for file in files]
    main([str(run_dir), "--thresholds=1.25"])
    assert [file.read_bytes() for file in files] != first
    main([str(run_dir)])
    assert [file.read_bytes() for file in files] == first


def test_a_page_with_a_study_is_well_formed_and_its_drawing_has_a_name(world):
    results = world.results()
    found = study(world.recorded(), name_orders(["newest,oldest"], world.tasks, 0), [0.0])
    with_study, without = render_html(results, found), render_html(results)
    page = Page(with_study)
    assert page.open == []
    assert "<b>" not in with_study
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert with_study.count("<svg ") == without.count("<svg ") + 1
    best = found["picture"]["best"]
    assert f"at best {100 * best['accuracy']:.1f} % at {best['threshold']:g}" in page.text
    assert "Other thresholds" in page.text
    assert "Other thresholds" not in Page(without).text
    cells = "routing accuracy", "unknown", "log-odds ≥ 0", "verdict"
    assert all(cell in page.text for cell in cells)


def test_runs_that_cannot_be_studied_are_refused(run_dir, world, tmp_path, capsys):
    assert "holds no run; give the folder that has ledger.json in it" in refusal(capsys, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert "got 'newset'" in refusal(capsys, run_dir, "--orders=newset")
    assert "finite numbers between commas" in refusal(capsys, run_dir, "--thresholds", "0,nan")
    assert "finite numbers between commas" in refusal(capsys, run_dir, "--thresholds", "0,x")

    path = run_dir / "results.json"
    whole = json.loads(path.read_text())
    path.write_text(dump(whole | {"matrix": [[0.0, 0.0, None], [0.0] * 3, [0.0] * 3]}))
    assert "does not belong to its results: they give" in refusal(capsys, run_dir)
    path.unlink()
    assert "is not finished, and a study needs every answer; go on with: python run.py method=see" in refusal(
        capsys, run_dir
    )
    assert not list(run_dir.glob("study.json"))
    assert not list(run_dir.glob("report.html"))


def test_a_run_without_memories_is_refused(run_dir, capsys):
    with Ledger(run_dir) as ledger:
        for stage in ledger.content["stages"].values():
            del stage["remembered"]
        ledger.commit()
    assert "has no record of its experts' verdicts" in refusal(capsys, run_dir)


def test_damaged_memories_are_refused(run_dir, capsys):
    path = run_dir / "tasks" / "02-stage" / "remembered.jsonl"
    path.write_text(path.read_text().replace("pos", "neg", 1))
    assert f"{path} is damaged" in refusal(capsys, run_dir)


def test_help_and_refusals_come_without_torch(tmp_path):
    for arguments, code, told in ((["--help"], 0, "--thresholds"), ([str(tmp_path)], 2, "holds no run")):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "see_lightning.study", *arguments],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == code
        assert told in done.stdout + done.stderr
        imported = {
            line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
        }
        assert "argparse" in imported
        assert not imported & {"torch", "lightning", "transformers", "matplotlib"}
