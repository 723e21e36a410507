"""SARI of simplifications (Xu et al. 2016)."""

import re
from collections import Counter
from collections.abc import Sequence


def sari(text: str, target: str, prompt: str) -> float:
    r"""SARI of a simplification (Xu et al. 2016): the words rightly kept, deleted and added, relative to the source.

    As in Hugging Face's ``sari``: lower case, 13a tokens, the mean over n-grams of 1 to 4 of `keep` (F), `delete`
    (precision) and `add` (F), where 0/0 is 1. The source is the paragraph in 20Minuten's prompt, or the whole prompt if it
    has none. An empty answer does not score 0: every word that had to be deleted is deleted.

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
    """SARI of one sentence with any number of references, in 0..100.

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
