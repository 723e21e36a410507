"""Verdicts and the walk, each against a plain enumeration."""

from collections.abc import Callable
from itertools import permutations, product

import pytest

from see_lightning.routing.verdicts import Route, Verdict, read_verdict, strip_indicator, walk
from see_lightning.tasks.reconstruct import Indicators

POS, NEG, NEITHER = Verdict.POS, Verdict.NEG, Verdict.NEITHER
SPEC = Indicators("aab", "ab")


def whole(text: str) -> Verdict:
    """The verdict of a finished text."""
    begun = text.lstrip()
    return POS if begun.startswith(SPEC.pos) else NEG if begun.startswith(SPEC.neg) else NEITHER


def texts(longest: int) -> list[str]:
    return ["".join(letters) for length in range(longest + 1) for letters in product("ab ", repeat=length)]


def test_a_verdict_is_told_exactly_when_no_further_text_could_change_it():
    further = texts(3)
    told = {}
    for text in texts(5):
        possible = {whole(text + more) for more in further}
        told[text] = read_verdict(text, SPEC)
        assert told[text] == (possible.pop() if len(possible) == 1 else None), repr(text)
    assert set(told.values()) == {POS, NEG, NEITHER, None}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("<<pos>>", POS), ("<<pos>>4", POS), ("\n <<pos>> 4", POS), ("<<neg>>", NEG), ("<<neg>> but", NEG),
        ("<<POS>> 4", NEITHER), ("<pos>", NEITHER), ("4 <<pos>>", NEITHER), ("<<po >>", NEITHER),
        ("", None), (" \n", None), ("<<", None), ("<<pos>", None), ("<<ne", None),
    ],
)  # fmt: skip
def test_verdicts_of_the_default_indicators(text, verdict):
    assert read_verdict(text, Indicators()) is verdict


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<<pos>> 4", "4"), ("<<pos>>4", "4"), (" <<pos>> 4 ", "4 "), ("<<pos>>", ""), ("<<pos>>  4", " 4"),
        ("<<pos>> say <<pos>> twice", "say <<pos>> twice"), ("<<pos>> <<pos>> 4", "<<pos>> 4"),
    ],
)  # fmt: skip
def test_one_indicator_and_the_space_behind_it_are_cut_off(text, answer):
    assert strip_indicator(text, Indicators()) == answer


def one_by_one(experts: list[str], said: dict[tuple[str, int], Verdict], query: int) -> Route:
    """The walk of one query, as figure 1 draws it."""
    verdicts = []
    for expert in experts:
        verdicts.append(said[expert, query])
        if verdicts[-1] is POS:
            return Route(expert, tuple(verdicts))
        if verdicts[-1] is NEITHER:
            break
    return Route(None, tuple(verdicts))


def noting(
    said: dict[tuple[str, int], Verdict], calls: list[tuple[str, list[int]]]
) -> Callable[[str, list[int]], list[Verdict]]:
    """Experts that say what the table says, and a note of who was asked what."""

    def ask(expert: str, rows: list[int]) -> list[Verdict]:
        calls.append((expert, list(rows)))
        return [said[expert, row] for row in rows]

    return ask


@pytest.mark.parametrize(("number", "queries"), [(0, 2), (1, 3), (2, 3), (3, 2)])
def test_every_walk_there_is_ends_where_a_single_query_would_and_asks_nobody_in_vain(number, queries):
    experts = ["c", "b", "a"][:number]
    asked_in_some = set()
    for table in product(Verdict, repeat=number * queries):
        said = dict(zip(product(experts, range(queries)), table, strict=True))
        calls: list[tuple[str, list[int]]] = []
        walked = walk([experts] * queries, noting(said, calls))
        assert walked == [one_by_one(experts, said, query) for query in range(queries)]
        reached = [
            (expert, [q for q in range(queries) if len(walked[q].verdicts) > place])
            for place, expert in enumerate(experts)
        ]
        assert calls == [(expert, rows) for expert, rows in reached if rows]
        asked_in_some.add(len(calls))
    assert asked_in_some == set(range(min(number, 1), number + 1))


def test_an_expert_that_gives_too_few_verdicts_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        walk([["a"]] * 2, lambda expert, rows: [POS])


def test_without_queries_nobody_is_asked():
    assert walk([], lambda expert, rows: pytest.fail("asked")) == []


ORDERS = [list(some) for number in range(3) for some in permutations("ab", number)]


@pytest.mark.parametrize("orders", list(product(ORDERS, repeat=2)))
def test_each_query_asks_the_experts_of_its_own_order_and_no_others(orders):
    for table in product(Verdict, repeat=4):
        said = dict(zip(product("ab", range(2)), table, strict=True))
        calls: list[tuple[str, list[int]]] = []
        expected = [one_by_one(order, said, query) for query, order in enumerate(orders)]
        assert walk(orders, noting(said, calls)) == expected
        asked = [(expert, query) for expert, rows in calls for query in rows]
        needed = [
            (expert, query)
            for query, (order, route) in enumerate(zip(orders, expected, strict=True))
            for expert in order[: len(route.verdicts)]
        ]
        assert sorted(asked) == sorted(needed)
