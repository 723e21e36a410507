"""Similarity of strings: edit similarity of code, BLEU and chrF."""

import re

from see_lightning.evaluation.rouge import lcs_length


def edit_similarity(text: str, target: str) -> float:
    """Similarity of two lines of code, in whole points: TRACE's measure on Py150.

    It is 100 (1 - d / n), rounded, for d insertions and deletions of characters and n characters in both: fuzzywuzzy's
    ``ratio`` with python-Levenshtein; without that package fuzzywuzzy gives other values. Before, ``<NUM_LIT>`` becomes 0,
    ``<STR_LIT>`` and ``<CHAR_LIT>`` nothing, and ``<STR_LIT:x>`` (or NUM, CHAR) x. An empty side scores 0.

    >>> edit_similarity("x = <NUM_LIT:1>", "x = 1"), edit_similarity("return self", "return None")
    (100.0, 73.0)
    """
    text, target = with_literals(text), with_literals(target)
    if not text or not target:
        return 0.0
    characters = len(text) + len(target)
    return float(round(100 * (1 - (characters - 2 * lcs_length(text, target)) / characters)))


def with_literals(code: str) -> str:
    """A line of Py150 with its placeholders replaced by the literals in them."""
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    for kind, literal in re.findall(r"<(STR|NUM|CHAR)_LIT:(.*?)>", code, flags=re.DOTALL):
        code = code.replace(f"<{kind}_LIT:{literal}>", literal)  # one by one, since one literal may contain another
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


def words_13a(text: str) -> list[str]:
    """The words of sacrebleu's 13a tokenizer."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    words: list[str] = Tokenizer13a()(text).split()
    return words
