"""InsCL: transport against all plans, shares against all roundings, and which rows of past tasks are chosen."""

import math
import random
from itertools import permutations, product
from types import SimpleNamespace

import pytest
import torch

from see_lightning.adapters.embeddings import cosine, embed_prompts
from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.methods.inscl import InsCl, by_instruction, deal, information, wasserstein, words
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small


def inscl(*, seed: int = 0, ratio: float = 0.5, max_instructions: int = 100) -> InsCl:
    setup = Setup(small.pool(rank=4, targets=["q_proj"]), small.TEMPLATE, OptimConfig(), seed)
    return InsCl(setup, ratio=ratio, max_instructions=max_instructions)


def task_of(name: str, *instructions: str, rows: int = 6) -> Task:
    """The instructions in turn, each with an input of its own."""
    train = tuple(
        Example(f"{name}-{n}", f"{instructions[n % len(instructions)]}\n\n{n}", "a", name) for n in range(rows)
    )
    return Task(name, train, train[:1], "rouge_l", 8)


def ended(method: InsCl, *tasks: Task) -> Memory:
    """The memory behind some tasks, which the method has ended."""
    memory = Memory(method.run_seed)
    for task in tasks:
        method.end_task(task, memory)
        memory.add(task)
    return memory


@pytest.mark.parametrize("number", range(12))
def test_a_distance_is_that_of_the_best_of_all_plans(number):
    """Masses are multiples of 1/6, so some best plan sends six equal parts, each from one point to one."""
    draw = torch.Generator().manual_seed(number)
    left = torch.randint(4, (6,), generator=draw)
    right = torch.randint(3, (6,), generator=draw)
    cost = torch.rand(4, 3, generator=draw, dtype=torch.float64)
    best = min(sum(cost[left[n], right[m]] for n, m in enumerate(order)) for order in permutations(range(6))) / 6
    masses = [torch.bincount(points, minlength=size).double() / 6 for points, size in ((left, 4), (right, 3))]
    assert wasserstein(cost, *masses) == pytest.approx(float(best), abs=1e-12)


def test_the_cheapest_pairs_do_not_always_make_the_best_plan():
    """Chosen one after the other they would cost 0 + 9: mass must be taken back."""
    cost = torch.tensor([[0.0, 1.0], [1.0, 9.0]], dtype=torch.float64)
    assert wasserstein(cost, torch.full((2,), 0.5).double(), torch.full((2,), 0.5).double()) == 1.0


def test_a_distribution_lies_at_no_distance_from_itself_in_any_order():
    draw = torch.Generator().manual_seed(0)
    points, mass = torch.rand(40, 3, generator=draw).double(), torch.rand(40, generator=draw).double()
    order = torch.randperm(40, generator=draw)
    mass /= mass.sum()
    assert wasserstein(torch.cdist(points, points[order]), mass, mass[order]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("number", range(8))
def test_shares_are_the_whole_numbers_nearest_to_the_proportion(number):
    draw = random.Random(number)
    weights, total = [draw.random() for _ in range(4)], draw.randrange(1, 12)
    exact = [total * weight / sum(weights) for weight in weights]

    def error(shares) -> float:
        return sum(abs(share - one) for share, one in zip(shares, exact, strict=True))

    best = min(error(shares) for shares in product(range(total + 1), repeat=4) if sum(shares) == total)
    dealt = deal(total, weights, [total] * 4)
    assert sum(dealt) == total
    assert error(dealt) == pytest.approx(best, abs=1e-5)


def test_a_share_stays_within_its_bounds_and_the_rest_goes_to_the_others():
    assert deal(10, [8.0, 1.0, 1.0], [4, 9, 9]) == [4, 3, 3]
    assert deal(10, [0.0, 0.0, 0.0], [4, 9, 9]) == [4, 3, 3], "without distances, tasks are alike"
    assert deal(10, [1.0, 0.0, 0.0], [4, 9, 9]) == [4, 3, 3]
    assert deal(99, [1.0, 5.0], [4, 9]) == [4, 9]
    assert deal(7, [0.0, 1.0, 0.0], [4, 9, 9], least=1) == [1, 5, 1]


def test_information_is_the_sum_of_the_logarithms_of_how_rare_each_tag_is():
    tags = [words(text) for text in ("Add the numbers", "Add the words", "Sort 12 words, the longest WORDS first")]
    ln = math.log
    found = information(tags)
    assert found[0] == pytest.approx(ln(3 / 2) + ln(3 / 3) + ln(3 / 1))
    assert found[1] == pytest.approx(ln(3 / 2) + ln(3 / 3) + ln(3 / 2))
    assert found[2] == pytest.approx(ln(3) + ln(3 / 2) + ln(3 / 3) + ln(3) + ln(3))


@pytest.mark.parametrize(
    ("prompts", "found"),
    [
        (["Add.\n\n1", "Take.\n\n2", "Take.\n\n3"], {"Take.": 2, "Add.": 1}),
        (["Add all.\n1", "Add all.\n2"], {"Add all.": 2}),
        (["one", "two", "one"], {"one": 2, "two": 1}),
    ],
)
def test_an_instruction_is_the_definition_or_without_one_the_prompt(prompts, found):
    rows = [Example(str(n), prompt, "a", "t") for n, prompt in enumerate(prompts)]
    assert {text: len(own) for text, own in by_instruction(rows).items()} == found
    assert list(by_instruction(rows)) == list(found)


#: Embeddings of a task's instructions and their shares of its rows; the last task is the new one.
AUTHORS = {
    "a": ([[0.25, 1, 0.75, -0.5], [1, -0.25, 0.5, 0.5]], [0.75, 0.25]),
    "b": ([[1, -0.5, 0.5, 0], [0.5, 0.5, -1, 1], [-1, 0.5, 0.25, 0.5], [0, 1, -0.5, 0.75]], [0.4, 0.3, 0.2, 0.1]),
    "c": ([[-1, 0.5, -0.25, 1]], [1.0]),
    "new": ([[1, -0.5, 0.25, 0], [0.5, 0.75, -1, 1], [-1.25, 0.5, 0.5, 0.25]], [0.5, 0.3, 0.2]),
}
DISTANCES = [0.7968964426548306, 0.12936668592594494, 1.0977369624205604]


def test_distances_are_those_of_the_authors_code():
    """``pW_cal_dist`` of replay/InsCL_sampling.py, OPPO-Mente-Lab/InsCL, commit 3ad357c, with POT 0.9.5."""
    states = {name: torch.tensor(one, dtype=torch.float64) for name, (one, _) in AUTHORS.items()}
    mass = {name: torch.tensor(one, dtype=torch.float64) for name, (_, one) in AUTHORS.items()}
    found = [wasserstein(cosine(states["new"], states[name]), mass["new"], mass[name]) for name in "abc"]
    assert found == pytest.approx(DISTANCES, abs=1e-12)


@pytest.mark.parametrize(
    ("rows", "authors", "nearer"),
    [(200, [236, 38, 326], False), (8, [9, 1, 14], True), (21, [24, 4, 35], True)],
)
def test_shares_are_those_of_the_authors_code_or_nearer_to_the_distances(rows, authors, nearer, monkeypatch):
    """``cal_dynamic_num`` of that file: what its rounding down leaves goes to the largest weights, whatever their remainders."""
    method, tasks = inscl(ratio=0.5), {name: SimpleNamespace(name=name, train=range(2 * rows)) for name in AUTHORS}
    monkeypatch.setattr(method, "_embed", lambda task: torch.tensor(AUTHORS[task.name][0]))
    monkeypatch.setattr(method, "_masses", lambda task: torch.tensor(AUTHORS[task.name][1], dtype=torch.float64))
    method.embedded = {name: method._embed(tasks[name]) for name in "abc"}
    found = method.shares(tasks["new"], [tasks[name] for name in "abc"])
    exact = [3 * rows * one / sum(DISTANCES) for one in DISTANCES]
    far = [sum(abs(n - one) for n, one in zip(shares, exact, strict=True)) for shares in (found, authors)]
    assert sum(found) == sum(authors) == 3 * rows
    assert (far[0] < far[1]) if nearer else (found == authors)


def test_information_and_chosen_instructions_are_those_of_the_authors_code():
    """``get_InsInfo_dic`` of replay/tag_utils.py, with the imports that it lacks and without clusters; ``sample_example``."""
    tags = {
        "a": [{"sum", "number"}, {"sum", "word", "length"}, {"sort"}],
        "b": [{"sum"}, {"word", "list", "sort", "rare"}],
        "new": [{"number", "odd"}],
    }
    found = iter(information([one for own in tags.values() for one in own]))
    of = {name: [next(found) for _ in own] for name, own in tags.items()}
    for name, authors in (("a", [0.27676702515809, 0.55353405031618, 0.1696989245257299]),
                          ("b", [0.10706810063236012, 0.8929318993676398])):  # fmt: skip
        assert [one / sum(of[name]) for one in of[name]] == pytest.approx(authors)
    past, rates = task_of("past", "i0", "i1", "i2", rows=30), [0.25, 0.25, 0.5]
    for number, authors in ((1, [0, 0, 1]), (2, [1, 0, 1]), (3, [1, 1, 1]), (8, [2, 2, 4]), (16, [4, 4, 8])):
        chosen = InsCl.chosen(past, number, rates, random.Random(0))
        assert [sum(row.prompt.startswith(f"i{n}") for row in chosen) for n in range(3)] == authors
    assert len(InsCl.chosen(past, 24, rates, random.Random(0))) == 24, "theirs draws 12 of the ten rows of i2, an error"


def test_far_tasks_get_more_rows_in_proportion_to_the_cosine_distance_of_their_instructions():
    texts = ("Add the two numbers.", "Add the three numbers.", "zzz zzz")
    near, far = task_of("near", texts[1], rows=20), task_of("far", texts[2], rows=20)
    method = inscl()
    memory = ended(method, near, far)
    new = task_of("new", texts[0], rows=4)
    states = embed_prompts(method.pool, [small.TEMPLATE.text_ids(text) for text in texts]).double()
    apart = [1 - torch.cosine_similarity(states[0], states[n], dim=0).item() for n in (1, 2)]
    expected = [round(20 * one / sum(apart)) for one in apart]
    rows = method.training_examples(new, memory)
    assert rows[:4] == list(new.train)
    assert [sum(row.task == name for row in rows[4:]) for name in ("near", "far")] == expected
    assert expected[0] < expected[1] < 20
    assert len({row.id for row in rows}) == len(rows), "no row twice"
    replay = memory.rehearse(new, ratio=0.5, resample="once")
    assert len(rows) - 4 == len(replay), "as many as of replay"


def test_instructions_with_more_information_get_more_rows_and_with_few_rows_they_alone_get_one():
    poor, rich = "Add.", "Sort every second word by its length."
    past = task_of("past", poor, rich, rows=20)
    rates = information([words(text) for text in (poor, rich)])
    counts = [
        sum(row.prompt.startswith(text) for row in InsCl.chosen(past, 8, rates, random.Random(0)))
        for text in (poor, rich)
    ]
    assert counts == deal(8, rates, [10, 10], least=1)
    assert counts[0] < counts[1]
    (one,) = InsCl.chosen(past, 1, rates, random.Random(0))
    assert one.prompt.startswith(rich)
    assert InsCl.chosen(past, 0, rates, random.Random(0)) == []


def test_draws_depend_on_seed_and_task_alone():
    past, new, other = task_of("past", "Add.", rows=40), task_of("new", "Take."), task_of("other", "Take.")
    drawn = []
    for seed, task in ((0, new), (0, new), (1, new), (0, other)):
        method = inscl(seed=seed)
        drawn.append([row.id for row in method.training_examples(task, ended(method, past)) if row.task == "past"])
    assert drawn[0] == drawn[1]
    assert len({tuple(row) for row in drawn}) == 3
    assert {len(row) for row in drawn} == {20}


def test_the_frequent_instructions_make_the_distance():
    past = task_of("past", "Add.", "Add.", "zzz zzz zzz", rows=9)
    for most in (1, 2, 100):
        method = inscl(max_instructions=most)
        ended(method, past)
        assert method.embedded["past"].shape[0] == min(most, 2)
        assert method._masses(past).tolist() == pytest.approx([1.0] if most == 1 else [2 / 3, 1 / 3])


@pytest.mark.parametrize(("ratio", "past"), [(0.0, True), (0.5, False)])
def test_without_a_memory_the_new_rows_are_trained_on_alone(ratio, past):
    method = inscl(ratio=ratio)
    memory = ended(method, *[task_of("past", "Add.")][: int(past)])
    new = task_of("new", "Take.")
    assert method.training_examples(new, memory) == list(new.train)


def test_a_restored_method_chooses_the_same_rows(tmp_path):
    method, fresh = inscl(), inscl()
    tasks = [task_of("a", "Add.", "Take.", rows=9), task_of("b", "zzz", rows=9)]
    memory = ended(method, *tasks)
    fresh.load_state("a", {"instructions a": method.state()["instructions a"]})
    fresh.load_state("b", method.state())
    new = task_of("new", "Sort.")
    assert fresh.training_examples(new, memory) == method.training_examples(new, memory)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": 1.5}, r"method\.ratio is the share of past examples"),
        ({"max_instructions": 0}, r"method\.max_instructions must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        inscl(**settings)
