"""A benchmark's tasks: which rows are kept, and with which settings."""

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from see_lightning.data.checks import RowChecks
from see_lightning.data.example import Example
from see_lightning.data.split import Split
from see_lightning.data.trace import TraceReader
from see_lightning.errors import ConfigError
from see_lightning.tasks.task import MERGED, Benchmark, Task, changed_data, longest_answer, merge, told_apart


class Rows:
    """A reader of rows that were never in a file: sorted by label, as some published ones are."""

    def __init__(self, train: int, test: int) -> None:
        self.sizes = {"train": train, "test": test}

    def tasks(self) -> list[str]:
        return ["qa", "qg"]

    def read(self, task: str, checks: RowChecks) -> Split:
        train, test = (
            tuple(Example(f"{task}-{half}-{i}", f"{half} {i}?", "ab"[2 * i // size], task) for i in range(size))
            for half, size in self.sizes.items()
        )
        return Split(train=train, test=test, notices=(f"{task}: read",))


def benchmark(train: int = 100, test: int = 50, **settings: object) -> Benchmark:
    tasks = {"qa": {"score": "rouge_l", "max_new_tokens": 8}, "qg": {"score": "accuracy", "max_new_tokens": 4}}
    plain = {"name": "mine", "version": "1", "licence": "none", "citation": "none", "tasks": tasks}
    return Benchmark(**{**plain, "reader": Rows(train, test), **settings})


def task(of: Benchmark, name: str = "qa", *, train: int | None = None, test: int | None = None) -> Task:
    return of.task(name, checks=RowChecks(), tokens=len, train_size=train, test_size=test)


def ids(rows: Sequence[Example]) -> list[str]:
    return [row.id for row in rows]


def test_without_a_size_every_row_is_there_once():
    made = task(benchmark())
    assert sorted(ids(made.train)) == sorted(f"qa-train-{i}" for i in range(100))
    assert sorted(ids(made.test)) == sorted(f"qa-test-{i}" for i in range(50))
    assert (made.name, made.score, made.max_new_tokens, made.notices) == ("qa", "rouge_l", 8, ("qa: read",))


def test_the_rows_are_shuffled_so_that_a_few_of_a_sorted_file_have_both_labels():
    made = task(benchmark(), train=10, test=10)
    assert {row.target for row in made.train} == {row.target for row in made.test} == {"a", "b"}


def test_the_draw_is_the_same_every_time_and_its_own_for_each_task_and_half():
    first, again, other = task(benchmark()), task(benchmark()), task(benchmark(), "qg")
    assert (first.train, first.test) == (again.train, again.test)
    numbers = {name: [int(id_.rsplit("-")[-1]) for id_ in ids(rows)][:20]
               for name, rows in (("train", first.train), ("test", first.test), ("other", other.train))}  # fmt: skip
    assert numbers["train"] != numbers["other"] != numbers["test"]


def test_the_draw_hangs_on_nothing_that_was_read_before():
    of = benchmark()
    task(of, "qg", train=7)
    assert task(of, train=20).train == task(benchmark(), train=20).train


def test_fewer_rows_are_the_first_of_the_same_draw():
    of = benchmark()
    assert task(of, train=10, test=5).train == task(of, train=20).train[:10]
    assert task(of, test=5).test == task(of, train=3).test[:5]


@pytest.mark.parametrize(("size", "told"), [({"train": 101}, "train_size=101, but qa-train has 100 rows; give train_size=100"),
                                            ({"test": 51}, "test_size=51, but qa-test has 50 rows; give test_size=50")])  # fmt: skip
def test_more_rows_than_there_are_is_refused_with_their_number(size, told):
    with pytest.raises(ConfigError, match=told):
        task(benchmark(), **size)
    exact = {key: value - 1 for key, value in size.items()}
    assert len(task(benchmark(), **exact).train) == 100


def test_a_task_takes_from_the_default_what_it_does_not_set_itself():
    default = {"score": "rouge_l", "max_new_tokens": 128}
    of = benchmark(tasks={"qa": {"score": "accuracy"}}, default=default)
    assert (task(of).score, task(of).max_new_tokens) == ("accuracy", 128)
    assert (task(of, "qg").score, task(of, "qg").max_new_tokens) == ("rouge_l", 128)


def test_a_task_without_a_score_is_refused():
    with pytest.raises(ConfigError, match="benchmark mine sets no score for task 'qa'"):
        task(benchmark(tasks={"qa": {"max_new_tokens": 3}}))


def test_a_task_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(
        ConfigError, match=r"has no task 'qa'\. Did you mean 'qaa'\? There are: qaa, sum\. .*default\.score"
    ):
        task(benchmark(tasks={"qaa": {"score": "accuracy"}, "sum": {"score": "rouge_l"}}))


@pytest.mark.parametrize("longest", [0, -3, 2.5, "8"])
def test_a_longest_answer_that_is_no_number_of_tokens_is_refused(longest):
    with pytest.raises(ConfigError, match="max_new_tokens of task 'qa' must be a whole number, at least 1; got"):
        task(benchmark(tasks={"qa": {"score": "accuracy", "max_new_tokens": longest}}))


class Answers(Rows):
    """Rows whose training answers are of these lengths, and whose test answers are far longer."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def read(self, task: str, checks: RowChecks) -> Split:
        train = tuple(Example(f"{task}-{i}", f"{i}?", "a" * n, task) for i, n in enumerate(self.lengths))
        return Split(train=train, test=(Example("t", "t?", "a" * 500, task),))


@pytest.mark.parametrize(("lengths", "expected"), [
    ([8], 14),                        # 8, a quarter of it, four more
    ([9], 16),                        # 15.25 is rounded up
    ([2] * 99 + [50], 7),             # one in a hundred does not count
    ([2] * 98 + [50, 60], 67),        # two do, but for the longest
    (list(range(1, 101)), 128),
    (list(range(1, 201)), 252),
])  # fmt: skip
@pytest.mark.parametrize("size", [None, 1])
def test_where_none_is_set_the_training_answers_tell_how_long_one_may_be(lengths, expected, size):
    of = benchmark(reader=Answers(random.Random(0).sample(lengths, len(lengths))), tasks={"qa": {"score": "rouge_l"}})
    assert task(of, train=size).max_new_tokens == expected
    assert longest_answer(lengths) == expected


def ruled(longest: object, published: int | None = None, **qa: object) -> Benchmark:
    """A benchmark whose training answers have 8 letters, so that they tell 14 tokens."""
    return benchmark(
        reader=Answers([8]),
        tasks={"qa": {"score": "rouge_l", **qa}},
        max_new_tokens=longest,
        protocol_max_new_tokens=published,
    )


@pytest.mark.parametrize(
    ("of", "rule", "tokens", "reserved"),
    [
        (ruled("training"), "training", 14, 14),
        (ruled("training", 512), "training", 14, 14),
        (ruled("protocol", 512), "protocol", 512, 14),
        (ruled("protocol", 10), "protocol", 10, 10),
        (ruled(99, 512), "number", 99, 14),
        (ruled("protocol", 512, max_new_tokens=7), "number", 7, 7),
        (ruled("protocol", 512, max_new_tokens=None), "protocol", 512, 14),
        (ruled("protocol", 512, max_new_tokens="training"), "training", 14, 14),
        (ruled(99, 512, max_new_tokens="protocol"), "protocol", 512, 14),
    ],
)
def test_a_rule_tells_the_longest_answer_unless_a_task_sets_its_own(of, rule, tokens, reserved):
    made = task(of)
    assert (made.rule, made.max_new_tokens, made.reserved) == (rule, tokens, reserved)


def test_a_protocol_that_a_benchmark_does_not_have_is_refused_before_anything_is_read():
    told = r"benchmark\.max_new_tokens=protocol, but benchmark mine has no published protocol; use training, or .*, such as 128\."
    with pytest.raises(ConfigError, match=told):
        ruled("protocol").settings("qa")


@pytest.mark.parametrize("longest", [0, -1, 1.5, True, "protocl", "64"])
def test_a_longest_answer_that_is_neither_rule_nor_number_is_refused(longest):
    with pytest.raises(ConfigError, match=r"benchmark\.max_new_tokens must be a whole number.*protocol or training"):
        ruled(longest).settings("qa")


def test_the_digest_sees_every_change_of_the_data_and_no_other():
    rows = (Example("1", "2+2?", "4", "qa", source="f:1"), Example("2", "3+3?", "6", "qa", source="f:2"))

    def digest(*train: Example, **other: object) -> str:
        plain = {"name": "qa", "train": train, "test": rows[:1], "score": "rouge_l", "max_new_tokens": 8}
        return Task(**{**plain, **other}).digest()

    here = digest(*rows)
    assert digest(*rows, score="accuracy", notices=("a",)) == here
    assert digest(Example("1", "2+2?", "4", "qa", source="g:7"), rows[1]) == here
    others = [digest(*rows[::-1]), digest(rows[0]), digest(Example("1", "2+2?", "5", "qa"), rows[1]),
              digest(Example("1", "2+2?4", "", "qa"), rows[1]), digest(Example("", "12+2?", "4", "qa"), rows[1]),
              digest(*rows, test=rows[1:]), digest(Example("1", "2+2?", "4", "qa", alternatives=("four",)), rows[1])]  # fmt: skip
    assert len({here, *others}) == 1 + len(others)


def test_a_row_that_moves_between_the_halves_and_a_separator_in_an_answer_are_other_data():
    def digest(train: int, *answers: str) -> str:
        rows = tuple(Example(str(n), "?", answer, "qa") for n, answer in enumerate(answers))
        return Task("qa", rows[:train], rows[train:], "rouge_l", 8).digest()

    found = [digest(1, "a", "b"), digest(2, "a", "b"), digest(1, "a\x1e1\x1f?\x1fb"), digest(1, "a\x1e1", "b")]
    found.append(Task("qa", (Example("0", "?", "a", "qa", alternatives=("b",)),), (), "rouge_l", 8).digest())
    found.append(Task("qa", (Example("0", "?", "a\x1fb", "qa"),), (), "rouge_l", 8).digest())
    assert len(set(found)) == len(found)


def test_the_digest_of_an_earlier_version_is_recognised_as_that_of_the_same_data():
    rows = (Example("1", "2+2?", "4", "qa"), Example("2", "3+3?", "6", "qa"))
    before = hashlib.sha256(b"1\x1f2+2?\x1f4\x1e2\x1f3+3?\x1f6").hexdigest()
    now = Task("qa", rows[:1], rows[1:], "rouge_l", 8)
    assert changed_data({"qa": now.digest()}, {"qa": before}) == []
    assert changed_data({"qa": before}, {"qa": now.digest()}) == []
    assert changed_data({"qa": now.digest()}, {"qa": replace(now, train=rows, test=()).digest()}) == ["qa"]
    assert changed_data({"qa": before}, {"qa": Task("qa", rows[:1], (), "rouge_l", 8).digest()}) == ["qa"]
    assert changed_data({"qa": before}, {}) == ["qa"]


def test_merged_tasks_are_all_training_rows_in_order():
    qa, qg = task(benchmark(), train=3), task(benchmark(), "qg", train=2)
    merged = merge([qa, qg])
    assert (merged.name, merged.test) == (MERGED, ())
    assert merged.train == (*qa.train, *qg.train)


class Repeated(Rows):
    """Training rows of few prompts, that differ in their answers and blanks; some of their prompts are tested too."""

    def __init__(self, prompts: list[str], test: list[str]) -> None:
        self.prompts, self.test = prompts, test

    def read(self, task: str, checks: RowChecks) -> Split:
        train = tuple(Example(f"{task}-{i}", prompt, f"a{i}", task) for i, prompt in enumerate(self.prompts))
        return Split(train, tuple(Example(f"{task}-test-{i}", prompt, "a", task) for i, prompt in enumerate(self.test)))


def aside(of: Benchmark, train: int | None, held_out: int) -> Task:
    return of.task("qa", checks=RowChecks(), tokens=len, train_size=train, test_size=None, held_out=held_out)


def words(rows: Sequence[Example]) -> list[str]:
    return [" ".join(row.prompt.split()) for row in rows]


@pytest.mark.parametrize("size", [None, 6, 9, 20, 36])
@pytest.mark.parametrize("held_out", [1, 5, 8])
def test_held_out_prompts_are_all_different_and_neither_trained_on_nor_tested(size, held_out):
    prompts = [f"What is{' ' * (1 + n % 3)}{n % 12}?" for n in range(36)]
    made = aside(benchmark(reader=Repeated(prompts, ["What is 3?", "What  is 4?", "else"])), size, held_out)
    held = words(made.held_out)
    assert len(held) == len(set(held)) == held_out
    assert not set(held) & {*words(made.train), *words(made.test)}
    assert made.train
    assert len(made.train) <= (size or 36)
    fewer = [notice for notice in made.notices if f"for {held_out} others had to be held out" in notice]
    assert bool(fewer) == (len(made.train) < (size or 36))
    without = aside(benchmark(reader=Repeated(prompts, ["else"])), size, 0)
    assert set(made.train) <= set(without.train)
    assert without.held_out == ()


def test_rows_that_do_not_repeat_are_held_out_as_they_come():
    plain, made = task(benchmark(), train=60), aside(benchmark(), 60, 30)
    every = task(benchmark())
    assert made.train == plain.train == every.train[:60]
    assert made.held_out == every.train[60:90]
    short = aside(benchmark(), 60, 70)
    assert (short.train, short.held_out) == (every.train[:30], every.train[30:])


@pytest.mark.parametrize(
    ("prompts", "test", "held_out", "told"),
    [
        (["a", "a ", "b", "c"], ["d"], 3, "3 training rows of qa .* it has 4 with 3 different prompts that no test row .* 2 or fewer"),
        (["a", "b", "c"], ["d"], 3, "3 training rows of qa were to be held out, but it has 3, and .* hold out 2 or fewer"),
        (["a", "b", "c"], ["c"], 3, "has 3 with 2 different prompts"),
        (["a"], ["d"], 1, "hold out 0 or fewer"),
    ],
)  # fmt: skip
def test_too_few_different_prompts_to_hold_out_are_refused(prompts, test, held_out, told):
    with pytest.raises(ConfigError, match=told):
        aside(benchmark(reader=Repeated(prompts, test)), None, held_out)


def test_foreign_queries_that_are_trained_on_are_told():
    rows = [Example(str(n), prompt, "a", "x") for n, prompt in enumerate(("one", "two ", "three", "four"))]
    own = [Task("qa", (rows[0],), (rows[2],), "rouge_l", 8), Task("qg", (rows[1],), (), "rouge_l", 8)]
    foreign = Task("x", (), (*rows, Example("9", "two", "b", "x")), "rouge_l", 8, notices=("read",))
    clean = Task("y", (), (rows[3],), "rouge_l", 8)
    told, same = told_apart([foreign, clean], own)
    assert told.notices == ("read", "x: 3 of 5 foreign queries are in the training rows of qa, qg")
    assert same is clean


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "size", "held_out"), [("NumGLUE-cm", None, 100), ("Py150", 120, 100), ("ScienceQA", 24, 40)]
)
def test_held_out_rows_of_a_published_task_that_repeats_its_rows_are_seen_nowhere_else(name, size, held_out):
    of = benchmark(reader=TraceReader(Path(os.environ["SEE_DATA"]) / "trace_500"))
    settings = {"checks": RowChecks(), "tokens": len, "train_size": size, "test_size": None, "held_out": held_out}
    of.tasks[name] = {"score": "accuracy", "max_new_tokens": 4}
    made = of.task(name, **settings)
    held = words(made.held_out)
    assert len(set(held)) == held_out
    assert not set(held) & {*words(made.train), *words(made.test)}
