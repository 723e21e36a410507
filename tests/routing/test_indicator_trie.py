"""Verdicts read off a tree of tokens, against decoding the same logits token by token."""

import random

import pytest
import torch
from torch import Tensor

from see_lightning.routing.indicator_trie import DecodedVerdict, IndicatorTrie
from see_lightning.routing.verdicts import Verdict, read_verdict
from see_lightning.tasks.reconstruct import Indicators
from tests.adapters import small

WORDS = [
    ("<<pos>>", "<<neg>>"),
    ("++", "--"),
    ("+", "-"),
    ("aab", "ab"),
    ("a", "ba"),
    ("✓", "✗"),
    ("是的", "不是"),
    ("🙂", "🙁"),
    ("yes é", "yes è"),
]
EOS, BLANK, OTHER = 2, *small.TEMPLATE.target_ids(" x")[:-1]
VOCABULARY = 259


def word_ids(word: str) -> tuple[int, ...]:
    return tuple(small.TEMPLATE.target_ids(word)[:-1])


def greedy_paths(pos: tuple[int, ...], neg: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every way in which greedy decoding may go until it has left both words, or is at the end of one."""
    found, open_ = [], [()]
    while open_:
        path = open_.pop()
        inside = [word for word in (pos, neg) if word[: len(path)] == path]
        for token in {*(word[len(path)] for word in inside), EOS, BLANK, OTHER}:
            longer = (*path, token)
            goes_on = any(word[: len(longer)] == longer and len(word) > len(longer) for word in inside)
            ends = longer in (pos, neg)
            (open_ if goes_on and not ends else found).append(longer)
    return found


def logits_after(path: tuple[int, ...], chosen: tuple[int, ...], draw: random.Random) -> Tensor:
    """What the expert computes after ``path``, if its greedy answer begins with ``chosen``."""
    logits = torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(draw.randrange(2**31)))
    if chosen[: len(path)] == path and len(chosen) > len(path):
        logits[chosen[len(path)]] = 1.1 + draw.random()
    return logits


@pytest.mark.parametrize(("pos", "neg"), WORDS)
def test_the_tree_tells_what_decoding_token_by_token_would_tell(pos, neg):
    words, draw = IndicatorTrie(Indicators(pos, neg), small.TEMPLATE), random.Random(0)
    ids = {Verdict.POS: word_ids(pos), Verdict.NEG: word_ids(neg)}
    paths_in_tree = [()]
    for place, token in enumerate(words.tree.ids):
        paths_in_tree.append((*paths_in_tree[words.tree.parents[place] + 1], token))
    beginnings = {word[:n] for word in ids.values() for n in range(len(word))}
    assert sorted(paths_in_tree) == sorted(beginnings), "each beginning of a word once, and nothing else"
    assert words.longest == max(map(len, ids.values()))
    chosen = greedy_paths(*ids.values())
    tables = [{path: logits_after(path, one, draw) for path in paths_in_tree} for one in chosen]
    decode_verdicts = words.decode_verdicts(
        torch.stack([torch.stack([table[path] for path in paths_in_tree]) for table in tables])
    )
    shared = next(n for n, (p, q) in enumerate(zip(*ids.values(), strict=False)) if p != q)
    for one, table, decision in zip(chosen, tables, decode_verdicts, strict=True):
        decoded: list[int] = []
        leads = []
        while tuple(decoded) in table and tuple(decoded) not in ids.values():
            ranked = table[tuple(decoded)].sort(descending=True)
            leads.append(float(ranked.values[0] - ranked.values[1]))
            decoded.append(int(ranked.indices[0]))
        assert decision.ids == tuple(decoded) == one
        assert [words.tree.ids[place] for place in decision.path] == decoded[:-1]
        assert decision.margin == pytest.approx(min(leads), abs=1e-6)
        fork = table[ids[Verdict.POS][:shared]]
        odds = float(fork[ids[Verdict.POS][shared]] - fork[ids[Verdict.NEG][shared]])
        assert decision.log_odds == pytest.approx(odds, abs=1e-6)
        in_words = next((verdict for verdict, word in ids.items() if word == one), None)
        if in_words:
            assert decision.verdict is in_words
        elif EOS in one or BLANK in one[:1]:
            # A word that ended unfinished, or may still come after the blank, is nothing that one pass can tell.
            assert decision.verdict is read_verdict(
                small.TEMPLATE.text(list(one)).rstrip("\ufffd"), Indicators(pos, neg)
            )
        else:
            assert decision.verdict is Verdict.NEITHER


def test_rows_are_told_apart():
    words = IndicatorTrie(Indicators("+", "-"), small.TEMPLATE)
    assert len(words.tree) == 0, "the last token of a word need not be read"
    (plus,), (minus,) = word_ids("+"), word_ids("-")
    logits = torch.zeros(3, 1, VOCABULARY)
    logits[0, 0, plus], logits[1, 0, minus], logits[2, 0, OTHER] = 3.0, 2.0, 1.0
    assert words.decode_verdicts(logits) == [
        DecodedVerdict((plus,), (), Verdict.POS, 3.0, 3.0),
        DecodedVerdict((minus,), (), Verdict.NEG, -2.0, 2.0),
        DecodedVerdict((OTHER,), (), Verdict.NEITHER, 0.0, 1.0),
    ]


@pytest.mark.parametrize(("pos", "neg"), [("ab", "abc"), ("abc", "ab"), ("ab", "ab")])
def test_words_of_which_one_begins_the_other_are_refused(pos, neg):
    with pytest.raises(ValueError, match=f"'{pos}' and '{neg}' differ in no token"):
        IndicatorTrie(Indicators(pos, neg), small.TEMPLATE)
