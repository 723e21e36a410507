"""Score one answer against its reference, in 0..100, and average over many.

A score is a pure function ``(text, target) -> float``; every one is found by name in `SCORES`.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score

from see_lightning.config import ConfigError, nearest

ScoreFn = Callable[[str, str], float]


@cache
def _jieba_cut() -> Callable[[str], list[str]]:
    """The segmenter of jieba, imported late because its dictionary takes a second to load, and told not to log that."""
    import logging

    import jieba  # type: ignore[import-untyped]

    jieba.setLogLevel(logging.WARNING)
    cut: Callable[[str], list[str]] = jieba.lcut
    return cut


def _tokens(text: str) -> list[str]:
    """Tokens of `text` as SSR counts them: jieba's words and punctuation marks, case kept.

    As in rouge_chinese, a text is first cut into lines, at line breaks and behind sentence ends, and a line of blanks
    is a token of its own, the empty one: an answer with an empty line in it is not equal to the same without.
    """
    words = " ".join(_jieba_cut()(text))
    lines = re.sub(r"([。！？?]|\.{6})(.)", r"\1\n\2", words, flags=re.DOTALL).rstrip().split("\n")
    return [token for line in lines if line for token in line.split() or [""]]


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bits: one addition per token of `second` (Hyyrö 2004).

    >>> lcs_length("the cat sat on the mat".split(), "the mat on the cat".split())
    3
    """
    positions: dict[str, int] = {}
    for i, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << i
    every = (1 << len(first)) - 1
    unused = every  # its zeros count the subsequence found so far
    for token in second:
        hits = unused & positions.get(token, 0)
        unused = (unused + hits | unused - hits) & every
    return len(first) - unused.bit_count()


def rouge_l(text: str, target: str) -> float:
    """ROUGE-L as SSR measures it: F of the longest common token subsequence, case-sensitive, rounded to 4 digits.

    With P = LCS / tokens of the text and R = LCS / tokens of the target, F = 2PR / (P + R + 1e-8), times 100. Words
    and punctuation marks are tokens, Chinese is segmented by jieba, nothing is stemmed. A blank side scores 0. Equal to
    jieba and rouge_chinese 1.0.3 as used in SSR's ``metric.py``, and not comparable to `rouge_l_google`.

    >>> rouge_l("a b c d", "a b c d.")
    88.8889
    >>> rouge_l("Positive", "positive")
    0.0
    """
    if not text.strip() or not target.strip():
        return 0.0
    text_tokens, target_tokens = _tokens(text), _tokens(target)
    length = lcs_length(text_tokens, target_tokens)
    precision, recall = length / len(text_tokens), length / len(target_tokens)
    return round(200 * precision * recall / (precision + recall + 1e-8), 4)


def rouge_l_google(text: str, target: str) -> float:
    """ROUGE-L of Google's rouge_score with its Porter stemmer: lower-cased words of a-z and 0-9 only.

    The measure of Tk-Instruct and SAPT; computed by torchmetrics. A side without such words scores 0.

    >>> rouge_l_google("Positive!", "positive")
    100.0
    """
    return 100 * float(rouge_score(text, target, rouge_keys="rougeL", use_stemmer=True)["rougeL_fmeasure"])


def exact_match(text: str, target: str) -> float:
    """100 if both are the same but for blanks around them, else 0.

    >>> exact_match(" yes ", "yes"), exact_match("Yes", "yes")
    (100.0, 0.0)
    """
    return 100.0 * (text.strip() == target.strip())


def _label(text: str) -> str:
    """`text` in lower case, without blanks and punctuation around it; only without blanks if it is all punctuation."""
    outer = "".join(c for c in set(text) if c.isspace() or unicodedata.category(c).startswith("P"))
    return (text.strip(outer) or text.strip()).lower()


def accuracy(text: str, target: str) -> float:
    """100 if both are the same label, whatever its case and the blanks and punctuation around it, else 0.

    Punctuation is Unicode's category P. A hyphen is among it, so that "-5" equals "5": numbers want `exact_match`.

    >>> accuracy("Positive.", "positive"), accuracy("not positive", "positive")
    (100.0, 0.0)
    """
    return 100.0 * (_label(text) == _label(target))


SCORES: dict[str, ScoreFn] = {
    "rouge_l": rouge_l,
    "rouge_l_google": rouge_l_google,
    "exact_match": exact_match,
    "accuracy": accuracy,
}


def score_fn(name: str) -> ScoreFn:
    """The score called `name` in `SCORES`.

    Raises:
        ConfigError: there is none of that name; the message names the nearest and lists all.
    """
    if name not in SCORES:
        raise ConfigError(f"there is no score {name!r}.{nearest(name, SCORES)} Scores: {', '.join(SCORES)}.")
    return SCORES[name]


class MeanScore(Metric):
    """Mean of one score over all answers seen, in 0..100; NaN before the first.

    Args:
        score: a name in `SCORES`.

    >>> mean = MeanScore("exact_match")
    >>> mean.update(["yes", "no"], ["yes", "yes"])
    >>> mean.compute()
    tensor(50., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, score: str) -> None:
        super().__init__()
        self.score = score_fn(score)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, texts: Sequence[str], targets: Sequence[str]) -> None:
        """Add answers.

        Args:
            texts: the answers.
            targets: their references, in the same order.
        """
        if len(texts) != len(targets):
            raise ValueError(f"every text needs its target; got {len(texts)} texts and {len(targets)} targets.")
        self.total += sum(map(self.score, texts, targets))
        self.count += len(texts)

    def compute(self) -> Tensor:
        """The mean, a float64 scalar."""
        return self.total / self.count
