"""Score one answer against its reference, in 0..100.

A score is a pure function ``(text, target) -> float``; every one is found by name in `SCORES`. Those in `READS_PROMPT` need
the query as well, and `score_fn` gives it to them. A name that ends in a paper's measures as its code does, faults included.
The text is what was generated, blanks around it included: what they mean is a matter of the score.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

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


def accuracy_trace(text: str, target: str) -> float:
    """100 if both are the same string, blanks included, else 0; two empty strings are 0.

    TRACE's accuracy (C-STANCE, FOMC, NumGLUE).

    >>> accuracy_trace("B", "B"), accuracy_trace("B.", "B"), accuracy_trace("b", "B")
    (100.0, 0.0, 0.0)
    """
    return 100.0 * (text == target != "")


def first_char_trace(text: str, target: str) -> float:
    r"""100 if both begin with the same character, else 0: TRACE's accuracy on ScienceQA, where reasons follow the letter.

    An empty text, at which TRACE's code stops with an error, scores 0.

    >>> first_char_trace("B because of gravity", "B\nGravity pulls."), first_char_trace("(B)", "B")
    (100.0, 0.0)
    """
    return 100.0 * (text[:1] == target[:1] != "")


def exact_match_olora(text: str, target: str) -> float:
    r"""100 if both are the same in lower case, without ASCII punctuation and with single blanks, else 0.

    SQuAD's exact match with the articles kept. Signs and points of numbers are punctuation too, so that "3.5" equals "35";
    and what is nothing but punctuation equals the empty text. Of an answer counts what stands behind its last "Answer:",
    the end of O-LoRA's prompts.

    >>> exact_match_olora("Science or  technology!", "science or Technology"), exact_match_olora("the world", "world")
    (100.0, 0.0)
    >>> exact_match_olora("Bad\nAnswer: good", "Good")
    100.0
    """
    return 100.0 * (_squad(_behind(text, "Answer:")) == _squad(target))


def exact_match_sapt(text: str, target: str) -> float:
    r"""As `exact_match_olora`, but of an answer counts what stands behind its last "Output:", the end of SAPT's prompts.

    >>> exact_match_sapt("Bad\nOutput: good", "Good"), exact_match_sapt("Bad\nAnswer: good", "Good")
    (100.0, 0.0)
    """
    return 100.0 * (_squad(_behind(text, "Output:")) == _squad(target))


def rouge_l_sapt(text: str, target: str) -> float:
    """`rouge_l_google` of what stands behind the last "Output:" of an answer, as SAPT's code has it.

    >>> rouge_l_sapt("A dog. Output: a cat", "A cat.")
    100.0
    """
    return rouge_l_google(_behind(text, "Output:"), target)


def _behind(text: str, marker: str) -> str:
    """What stands behind the last marker, or the whole text if there is none: their prompts end in it."""
    return text.rpartition(marker)[2]


def _squad(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def rouge_l_trace(text: str, target: str) -> float:
    """ROUGE-L of the package rouge (1.0.1), which TRACE uses on MeetingBank; case-sensitive.

    Both are cut into pieces at every full stop and into words at blanks. U is the set of the words in the longest common
    subsequences of each piece of the text with each of the target; with P and R the shares of the target's and of the text's
    different words that are in U, F = 2PR / (P + R + 1e-8), times 100. So a word counts once however often it is said.
    A side without a piece, at which that package stops with an error, scores 0.

    >>> round(rouge_l_trace("a b c d", "a b c d."), 4), round(rouge_l_trace("the the the", "the"), 4)
    (100.0, 100.0)
    """
    texts, targets = _pieces(text), _pieces(target)
    if not texts or not targets:
        return 0.0
    shared = {word for first in texts for second in targets for word in _common_words(first, second)}
    precision = len(shared) / len({word for piece in targets for word in piece})
    recall = len(shared) / len({word for piece in texts for word in piece})
    return 200 * precision * recall / (precision + recall + 1e-8)


def _pieces(text: str) -> list[list[str]]:
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


def edit_similarity(text: str, target: str) -> float:
    """Similarity of two lines of code, in whole points: TRACE's measure on Py150.

    It is 100 (1 - d / n), rounded, for d insertions and deletions of characters and n characters in both: fuzzywuzzy's
    ``ratio`` with python-Levenshtein; without that package fuzzywuzzy counts otherwise. Before, ``<NUM_LIT>`` becomes 0,
    ``<STR_LIT>`` and ``<CHAR_LIT>`` nothing, and ``<STR_LIT:x>`` (or NUM, CHAR) x. An empty side scores 0.

    >>> edit_similarity("x = <NUM_LIT:1>", "x = 1"), edit_similarity("return self", "return None")
    (100.0, 73.0)
    """
    text, target = _literals(text), _literals(target)
    if not text or not target:
        return 0.0
    characters = len(text) + len(target)
    return float(round(100 * (1 - (characters - 2 * lcs_length(text, target)) / characters)))


def _literals(code: str) -> str:
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    for kind, literal in re.findall(r"<(STR|NUM|CHAR)_LIT:(.*?)>", code, flags=re.DOTALL):
        code = code.replace(f"<{kind}_LIT:{literal}>", literal)  # one by one, which matters where one stands in another
    return code


def bleu(text: str, target: str) -> float:
    """BLEU of one sentence, by sacrebleu: 13a tokens, case-sensitive, exponential smoothing, effective order.

    A mean over sentences is not the BLEU of a corpus, which counts n-grams over all of them.

    >>> round(bleu("the cat sat on a mat", "the cat sat on the mat"), 2)
    53.73
    """
    from sacrebleu import sentence_bleu

    return min(100.0, float(sentence_bleu(text, [target]).score))


def chrf(text: str, target: str) -> float:
    """chrF2 of one sentence, by sacrebleu: F of character n-grams up to 6, recall weighing twice; not that of a corpus.

    >>> round(chrf("the cat sat on a mat", "the cat sat on the mat"), 2)
    65.98
    """
    from sacrebleu import sentence_chrf

    return min(100.0, float(sentence_chrf(text, [target]).score))


def sari(text: str, target: str, prompt: str) -> float:
    r"""SARI of a simplification (Xu et al. 2016): what was rightly kept, deleted and added, against the source.

    As in Hugging Face's ``sari``: lower case, 13a tokens, the mean over n-grams of 1 to 4 of `keep` (F), `delete`
    (precision) and `add` (F), where 0/0 is 1. The source is the paragraph in 20Minuten's prompt, or the whole prompt if it
    has none. An empty answer does not score 0: all that had to go is gone.

    >>> prompt = "Simplify.\n\nParagraph:\nthe large cat sat\n\nSimplification:"
    >>> sari("the big cat sat", "the big cat sat", prompt), round(sari("the large cat sat", "the big cat sat", prompt), 2)
    (100.0, 44.64)
    """
    paragraph = re.search(r"Paragraph:\n(.*)\n\nSimplification:", prompt, flags=re.DOTALL)
    return sari_of(paragraph[1] if paragraph else prompt, text, [target])


def sari_trace(text: str, target: str, prompt: str) -> float:
    r"""SARI with the whole prompt as the source, as TRACE's code has it: its instruction counts as rightly deleted.

    >>> prompt = "Simplify.\n\nParagraph:\nthe large cat sat\n\nSimplification:"
    >>> round(sari("large cat", "the cat", prompt), 2), round(sari_trace("large cat", "the cat", prompt), 2)
    (75.0, 77.98)
    """
    return sari_of(prompt, text, [target])


def sari_of(source: str, text: str, targets: Sequence[str]) -> float:
    """SARI of one sentence with any number of references; see `sari`.

    >>> sari_of("the cat", "the cat", ["the cat"])
    100.0
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokens = Tokenizer13a()
    sides = [tokens(side.lower()).split(" ") for side in (source, text, *targets)]
    total = 0.0
    for n in range(1, 5):
        before, after, *wanted = (Counter(zip(*(side[i:] for i in range(n)), strict=False)) for side in sides)
        total += _sari(_times(before, len(targets)), _times(after, len(targets)), sum(wanted, Counter()))
    return min(100.0, 100 * total / 4)


def _sari(source: Counter[tuple[str, ...]], text: Counter[tuple[str, ...]], target: Counter[tuple[str, ...]]) -> float:
    """SARI of the n-grams of one length, in 0..1."""
    kept, gone, new = source & text, source - text, set(text) - set(source)
    right, wrong = kept & target, gone & target
    hits = len(new & set(target))
    keep = _f1(_mean([right[gram] / kept[gram] for gram in kept]), _share(right.total(), (source & target).total()))
    delete = _mean([1 - wrong[gram] / gone[gram] for gram in gone])
    add = _f1(_share(hits, len(new)), _share(hits, len(set(target) - set(source))))
    return (keep + delete + add) / 3


def _times(counter: Counter[tuple[str, ...]], factor: int) -> Counter[tuple[str, ...]]:
    return Counter({gram: factor * count for gram, count in counter.items()})


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares) if shares else 1.0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _stems(text: str) -> list[str]:
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

    stemmer = PorterStemmer()
    return [stemmer.stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower())]


def _words_13a(text: str) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    words: list[str] = Tokenizer13a()(text).split()
    return words


#: What each score sees of a text: of two texts that look the same to it, one scores 100 against the other.
SEEN: dict[str, Callable[[str], Sequence[str]]] = {
    "rouge_l": _tokens,
    "rouge_l_google": _stems,
    "rouge_l_sapt": _stems,
    "rouge_l_trace": lambda text: [word for piece in _pieces(text) for word in piece],
    "exact_match": str.strip,
    "exact_match_olora": _squad,
    "exact_match_sapt": _squad,
    "accuracy": _label,
    "accuracy_trace": str,
    "first_char_trace": lambda text: text[:1],
    "edit_similarity": _literals,
    "bleu": lambda text: _words_13a(text.rstrip()),
    "chrf": lambda text: "".join(text.split()),
    "sari": lambda text: _words_13a(text.lower()),
    "sari_trace": lambda text: _words_13a(text.lower()),
}

SCORES: dict[str, Callable[..., float]] = {
    "rouge_l": rouge_l,
    "rouge_l_google": rouge_l_google,
    "rouge_l_sapt": rouge_l_sapt,
    "rouge_l_trace": rouge_l_trace,
    "exact_match": exact_match,
    "exact_match_olora": exact_match_olora,
    "exact_match_sapt": exact_match_sapt,
    "accuracy": accuracy,
    "accuracy_trace": accuracy_trace,
    "first_char_trace": first_char_trace,
    "edit_similarity": edit_similarity,
    "bleu": bleu,
    "chrf": chrf,
    "sari": sari,
    "sari_trace": sari_trace,
}
READS_PROMPT = ("sari", "sari_trace")
LABELS = ("exact_match", "exact_match_olora", "exact_match_sapt", "accuracy", "accuracy_trace", "first_char_trace")


def score_fn(name: str, prompt: str = "") -> ScoreFn:
    """The score called `name` in `SCORES`.

    Args:
        name: of the score.
        prompt: the query that is answered; read by the scores in `READS_PROMPT` alone.

    Raises:
        ConfigError: there is none of that name; the message names the nearest and lists all.

    >>> score_fn("sari", prompt="the large cat sat")("the big cat sat", "the big cat sat")
    100.0
    """
    if name not in SCORES:
        raise ConfigError(f"there is no score {name!r}.{nearest(name, SCORES)} Scores: {', '.join(SCORES)}.")
    return partial(SCORES[name], prompt=prompt) if name in READS_PROMPT else SCORES[name]


def best_score(name: str, text: str, references: Sequence[str], prompt: str = "") -> float:
    """What an answer scores against the reference that it matches best, as Tk-Instruct counts and CITB with it.

    Args:
        name: of the score, see `score_fn`.
        text: the answer.
        references: at least one.
        prompt: see `score_fn`.

    >>> best_score("exact_match", "a sofa", ["a couch", "a sofa"])
    100.0
    """
    score = score_fn(name, prompt)
    return max(score(text, reference) for reference in references)


def references_of(record: Mapping[str, Any]) -> Sequence[str]:
    """The references of a line of ``answers.jsonl``, which has ``references`` where there is more than the ``target``."""
    references: Sequence[str] = record.get("references") or [record["target"]]
    return references


def strict_and_normalised(score: str, text: str, target: str) -> tuple[float, float]:
    r"""A label compared in two ways: letter by letter, and whatever its case and the blanks and punctuation around it.

    What the two differ by is form, not knowledge: a model may know the answer and have lost the way it is written.

    Args:
        score: one of `LABELS`; with ``first_char_trace`` only first characters are compared.
        text: the answer.
        target: its reference.

    >>> strict_and_normalised("accuracy_trace", "b.", "B"), strict_and_normalised("first_char_trace", "(B) as", "B\nas")
    ((0.0, 100.0), (0.0, 100.0))
    """
    if score == "first_char_trace":
        return first_char_trace(text, target), first_char_trace(_label(text), _label(target))
    strict = accuracy_trace if score == "accuracy_trace" else exact_match  # TRACE alone counts blanks around a label
    return strict(text, target), accuracy(text, target)
