"""Score one answer against its reference, in 0..100.

A score is a pure function ``(text, target) -> float``; every one is found by name in `SCORES`. Those in `READS_PROMPT` take
the query as well, which `score_fn` binds. A score named after a paper computes the same as the paper's code, faults included.
The text is the generated answer with the blanks around it; each score treats these in its own way.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from see_lightning.errors import ConfigError, nearest
from see_lightning.evaluation.labels import (
    accuracy,
    accuracy_trace,
    bare_label,
    exact_match,
    exact_match_olora,
    exact_match_sapt,
    first_char_trace,
    squad_text,
)
from see_lightning.evaluation.rouge import (
    jieba_tokens,
    pieces_trace,
    rouge_l,
    rouge_l_google,
    rouge_l_sapt,
    rouge_l_trace,
    stemmed_words,
)
from see_lightning.evaluation.sari import sari, sari_trace
from see_lightning.evaluation.similarity import bleu, chrf, edit_similarity, with_literals, words_13a

ScoreFn = Callable[[str, str], float]
#: The normal form of a text under each score: two texts with the same one score 100 against each other.
SEEN: dict[str, Callable[[str], Sequence[str]]] = {
    "rouge_l": jieba_tokens,
    "rouge_l_google": stemmed_words,
    "rouge_l_sapt": stemmed_words,
    "rouge_l_trace": lambda text: [word for piece in pieces_trace(text) for word in piece],
    "exact_match": str.strip,
    "exact_match_olora": squad_text,
    "exact_match_sapt": squad_text,
    "accuracy": bare_label,
    "accuracy_trace": str,
    "first_char_trace": lambda text: text[:1],
    "edit_similarity": with_literals,
    "bleu": lambda text: words_13a(text.rstrip()),
    "chrf": lambda text: "".join(text.split()),
    "sari": lambda text: words_13a(text.lower()),
    "sari_trace": lambda text: words_13a(text.lower()),
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
    """The score of an answer against its best matching reference, as in Tk-Instruct and CITB.

    Args:
        name: of the score.
        text: the answer.
        references: at least one.
        prompt: the query, read by the scores in `READS_PROMPT` alone.

    >>> best_score("exact_match", "a sofa", ["a couch", "a sofa"])
    100.0
    """
    score = score_fn(name, prompt)
    return max(score(text, reference) for reference in references)


def references_of(record: Mapping[str, Any]) -> Sequence[str]:
    """The references of a line of ``answers.jsonl``, which has ``references`` if there are more than the ``target``."""
    references: Sequence[str] = record.get("references") or [record["target"]]
    return references
