"""What a score cannot tell of a task's references, found before anything is trained.

A reference that scores less than 100 against itself is one that no answer reaches. Two references that look the same to a
score are one to it, and one that looks like nothing at all is met by an empty answer.
"""

from collections.abc import Iterable, Sequence

from see_lightning.data.example import Example
from see_lightning.evaluation.labels import LABELS
from see_lightning.evaluation.scores import SEEN, best_score, score_fn

MOST = 500  # references whose score is computed; how all of them look is cheap to tell
FULL = 99.99  # some scores divide by a little more than they should
FEW = 200  # different references of labels; of more, those of training rows tell nothing
SHOWN = 40  # characters
#: Scores that may do better, for labels and for texts.
INSTEAD = {True: ("accuracy", "exact_match"), False: ("rouge_l", "chrf", "exact_match")}


def score_notices(name: str, score: str, test: Sequence[Example], train: Sequence[Example], setting: str) -> list[str]:
    """What is to be told of a task's score and its references; empty where it can tell each from the others.

    Args:
        name: of the task.
        score: name of its score.
        test: what it is scored on, at least one.
        train: its training examples, for the labels that may be answered.
        setting: what is typed for another score, with ``{}`` where its name stands.
    """
    few = test[:MOST]
    missed, alike = unreached(score, few), confused(score, test, train)
    if not missed and not alike:
        return []
    better = (one for one in INSTEAD[score in LABELS] if not unreached(one, few) and not confused(one, test, train))
    instead = next((setting.format(one) for one in better), None)
    notices = []
    if missed:
        cure = f"{instead} reaches all" if instead else "no score here reaches all: mend them"
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
    """Those of some rows that even their own references score less than 100 in.

    >>> [row.id for row in unreached("rouge_l_google", [Example("1", "?", "पानी", "t"), Example("2", "?", "water", "t")])]
    ['1']
    """
    return [
        row for row in rows if max(best_score(score, one, row.references, row.prompt) for one in row.references) < FULL
    ]


def confused(score: str, test: Sequence[Example], train: Iterable[Example] = ()) -> dict[str, str]:
    """Labels of test rows to which another label is as good as they are, and that label; an empty answer: an empty text.

    >>> confused("exact_match_olora", [Example(label, "?", label, "t") for label in ("C", "Java", "C#", "...")])
    {'C': 'C#', 'C#': 'C', '...': ''}
    """
    own: dict[str, set[str]] = {}  # label -> those that stand beside it as right
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
        others = labels if look else [*labels, ""]  # what looks like nothing looks like an empty answer
        if len(others) > 1 and equal(others[-1], labels[0]) >= FULL:
            for label in filter(own.get, labels):
                if (other := next((one for one in others if one not in own[label]), None)) is not None:
                    found[label] = other
    return found


def _label(score: str, reference: str) -> str:
    """What of a reference is to be told from others: not its blanks, and not the reasons behind a letter."""
    return " ".join((reference.partition("\n")[0] if score == "first_char_trace" else reference).split())


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...")
