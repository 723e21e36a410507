"""Exact match and accuracy: whether an answer equals its reference."""

import string
import unicodedata


def exact_match(text: str, target: str) -> float:
    """100 if both are the same but for blanks around them, else 0.

    >>> exact_match(" yes ", "yes"), exact_match("Yes", "yes")
    (100.0, 0.0)
    """
    return 100.0 * (text.strip() == target.strip())


def bare_label(text: str) -> str:
    """`text` in lower case, without blanks and punctuation around it; only without blanks if it is all punctuation."""
    outer = "".join(c for c in set(text) if c.isspace() or unicodedata.category(c).startswith("P"))
    return (text.strip(outer) or text.strip()).lower()


def accuracy(text: str, target: str) -> float:
    """100 if both are the same label, whatever its case and the blanks and punctuation around it, else 0.

    Punctuation is Unicode's category P. It has the hyphen, so that "-5" equals "5": use `exact_match` for numbers.

    >>> accuracy("Positive.", "positive"), accuracy("not positive", "positive")
    (100.0, 0.0)
    """
    return 100.0 * (bare_label(text) == bare_label(target))


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
    and a text of punctuation alone equals the empty text. Only the part of an answer after its last "Answer:", the end of
    O-LoRA's prompts, is compared.

    >>> exact_match_olora("Science or  technology!", "science or Technology"), exact_match_olora("the world", "world")
    (100.0, 0.0)
    >>> exact_match_olora("Bad\nAnswer: good", "Good")
    100.0
    """
    return 100.0 * (squad_text(after_marker(text, "Answer:")) == squad_text(target))


def exact_match_sapt(text: str, target: str) -> float:
    r"""`exact_match_olora` of the part of an answer after its last "Output:", the end of SAPT's prompts.

    >>> exact_match_sapt("Bad\nOutput: good", "Good"), exact_match_sapt("Bad\nAnswer: good", "Good")
    (100.0, 0.0)
    """
    return 100.0 * (squad_text(after_marker(text, "Output:")) == squad_text(target))


def after_marker(text: str, marker: str) -> str:
    """The text after the last marker, or the whole text without one; prompts end in the marker."""
    return text.rpartition(marker)[2]


def squad_text(text: str) -> str:
    """`text` in lower case, without ASCII punctuation, with single blanks: SQuAD's normal form with its articles kept."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


LABELS = ("exact_match", "exact_match_olora", "exact_match_sapt", "accuracy", "accuracy_trace", "first_char_trace")


def strict_and_normalised(score: str, text: str, target: str) -> tuple[float, float]:
    r"""Compare a label strictly, and without regard to its case and the blanks and punctuation around it.

    The difference of the two is a matter of form: a model may know the answer but not its spelling.

    Args:
        score: one of `LABELS`; with ``first_char_trace`` only first characters are compared.
        text: the answer.
        target: its reference.

    >>> strict_and_normalised("accuracy_trace", "b.", "B"), strict_and_normalised("first_char_trace", "(B) as", "B\nas")
    ((0.0, 100.0), (0.0, 100.0))
    """
    if score == "first_char_trace":
        return first_char_trace(text, target), first_char_trace(bare_label(text), bare_label(target))
    strict = accuracy_trace if score == "accuracy_trace" else exact_match  # TRACE alone counts blanks around a label
    return strict(text, target), accuracy(text, target)
