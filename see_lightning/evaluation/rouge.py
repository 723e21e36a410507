"""ROUGE-L in the versions of SSR, of Google's rouge_score, of SAPT and of TRACE."""

import re
from collections.abc import Callable, Sequence
from functools import cache

from torchmetrics.functional.text import rouge_score

from see_lightning.evaluation.labels import after_marker


@cache
def _jieba_cut() -> Callable[[str], list[str]]:
    """The segmenter of jieba without its log; imported late because its dictionary takes a second to load."""
    import logging

    import jieba  # type: ignore[import-untyped]

    jieba.setLogLevel(logging.WARNING)
    cut: Callable[[str], list[str]] = jieba.lcut
    return cut


def jieba_tokens(text: str) -> list[str]:
    """Tokens of `text` as SSR counts them: jieba's words and punctuation marks, case kept.

    As in rouge_chinese, a text is first cut into lines, at line breaks and after sentence ends, and a line of blanks is an
    empty token: an answer with an empty line is not equal to the same answer without it.
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
    text_tokens, target_tokens = jieba_tokens(text), jieba_tokens(target)
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


def rouge_l_sapt(text: str, target: str) -> float:
    """`rouge_l_google` of the part of an answer after its last "Output:", as in SAPT's code.

    >>> rouge_l_sapt("A dog. Output: a cat", "A cat.")
    100.0
    """
    return rouge_l_google(after_marker(text, "Output:"), target)


def stemmed_words(text: str) -> list[str]:
    """Words of a-z and 0-9 in lower case; those of more than three letters by Porter's stem."""
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

    stemmer = PorterStemmer()
    return [stemmer.stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower())]


def rouge_l_trace(text: str, target: str) -> float:
    """ROUGE-L of the package rouge (1.0.1), which TRACE uses on MeetingBank; case-sensitive.

    Both are cut into pieces at every full stop and into words at blanks. U is the set of the words in the longest common
    subsequences of each piece of the text with each of the target; with P and R the shares of the target's and of the text's
    different words that are in U, F = 2PR / (P + R + 1e-8), times 100. So a word counts once, even if it is repeated.
    A side without a piece, at which that package stops with an error, scores 0.

    >>> round(rouge_l_trace("a b c d", "a b c d."), 4), round(rouge_l_trace("the the the", "the"), 4)
    (100.0, 100.0)
    """
    texts, targets = pieces_trace(text), pieces_trace(target)
    if not texts or not targets:
        return 0.0
    shared = {word for first in texts for second in targets for word in _common_words(first, second)}
    precision = len(shared) / len({word for piece in targets for word in piece})
    recall = len(shared) / len({word for piece in texts for word in piece})
    return 200 * precision * recall / (precision + recall + 1e-8)


def pieces_trace(text: str) -> list[list[str]]:
    """Words between full stops; a piece of blanks has one word, the empty one."""
    return [piece.split() or [""] for piece in text.split(".") if piece]


def _common_words(first: Sequence[str], second: Sequence[str]) -> set[str]:
    """Words of one longest common subsequence; among several, of the one that the package rouge takes."""
    lengths = [[0] * (len(second) + 1)]
    for x in first:
        above, row = lengths[-1], [0]
        for j, y in enumerate(second):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
        lengths.append(row)
    words, i, j = set(), len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            words.add(first[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
