"""Checks whether a score suits a task's references, before anything is trained.

If a reference scores less than 100 against itself, no answer can reach 100. If two references are the same to a score, an
answer may be counted as right for the wrong one; if a reference is empty to a score, an empty answer is right.
"""

from collections.abc import Iterable, Sequence

from see_lightning.data.example import Example
from see_lightning.evaluation.labels import LABELS
from see_lightning.evaluation.scores import SEEN, best_score, score_fn

MOST = 500  # references whose score is computed; comparing their normal forms is cheap
FULL = 99.99  # some scores have a small constant in their denominator
FEW = 200  # different references of a task with labels; with more, labels of training rows are not compared
SHOWN = 40  # characters
#: Other scores to recommend, for labels and for texts.
INSTEAD = {True: ("accuracy", "exact_match"), False: ("rouge_l", "chrf", "exact_match")}


def score_notices(name: str, score: str, test: Sequence[Example], train: Sequence[Example], setting: str) -> list[str]:
    """Notices on a task's score and its references; empty if the score separates them all.

    Args:
        name: of the task.
        score: name of its score.
        test: its test examples, at least one.
        train: its training examples, whose labels are possible answers.
        setting: the override that sets another score, with ``{}`` in place of its name.
    """
    few = test[:MOST]
    missed, alike = unreached(score, few), confused(score, test, train)
    if not missed and not alike:
        return []
    better = (one for one in INSTEAD[score in LABELS] if not unreached(one, few) and not confused(one, test, train))
    instead = next((setting.format(one) for one in better), None)
    notices = []
    if missed:
        cure = f"{instead} reaches all" if instead else "no score here reaches all: fix them"
        notices.append(
            f"{name}: {_share(len(missed), len(few))} test references score less than 100 against themselves by {score},"
            f" such as {_shown(missed[0].target)}: no answer to them can reach 100; {cure}"
        )
    if alike:
        rows = sum(any(_label(score, one) in alike for one in row.references) for row in test)
        label, other = next(iter(alike.items()))
        like = _shown(other) if other else "an empty answer"
        cure = f"{instead} tells them apart" if instead else "no score here tells them apart"
        notices.append(
            f"{name}: {_share(rows, len(test))} test references are the same as others to {score}, such as"
            f" {_shown(label)} and {like}: one scores 100 for the other; if that is wrong, {cure}"
        )
    return notices


def unreached(score: str, rows: Iterable[Example]) -> list[Example]:
    """The rows whose own references score less than 100.

    >>> [row.id for row in unreached("rouge_l_google", [Example("1", "?", "पानी", "t"), Example("2", "?", "water", "t")])]
    ['1']
    """
    return [
        row for row in rows if max(best_score(score, one, row.references, row.prompt) for one in row.references) < FULL
    ]


def confused(score: str, test: Sequence[Example], train: Iterable[Example] = ()) -> dict[str, str]:
    """Labels of test rows that the score cannot separate from another label or an empty answer: label -> that other text.

    >>> confused("exact_match_olora", [Example(label, "?", label, "t") for label in ("C", "Java", "C#", "...")])
    {'C': 'C#', 'C#': 'C', '...': ''}
    """
    own: dict[str, set[str]] = {}  # label -> all labels of its rows, which are right as well
    for row in test:
        labels = [_label(score, reference) for reference in row.references]
        for label in labels:
            own.setdefault(label, set()).update(labels)
    learned = dict.fromkeys(_label(score, row.target) for row in train) if len(own) <= FEW else {}
    alike: dict[tuple[str, ...], list[str]] = {}
    for label in dict.fromkeys([*own, *learned]):
        alike.setdefault(tuple(SEEN[score](label)), []).append(label)
    equal = score_fn(score)
    found = {}
    for look, labels in alike.items():
        others = labels if look else [*labels, ""]  # an empty normal form is that of an empty answer
        if len(others) > 1 and equal(others[-1], labels[0]) >= FULL:
            for label in filter(own.get, labels):
                if (other := next((one for one in others if one not in own[label]), None)) is not None:
                    found[label] = other
    return found


def _label(score: str, reference: str) -> str:
    """The label in a reference: without extra blanks, and without the reasons after a letter."""
    return " ".join((reference.partition("\n")[0] if score == "first_char_trace" else reference).split())


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...")
