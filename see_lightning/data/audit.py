"""Audit of a benchmark's files: counts, duplicates, conflicting answers, and leaks from train to test."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from see_lightning.data.checks import BadRow
from see_lightning.data.example import Example
from see_lightning.data.reader import Part

MOST_LABELS = 20  # a task with more different answers has no labels
FEW_TEST_ROWS = 100


@dataclass(frozen=True, slots=True)
class PartAudit:
    """Counts of one part of a task, such as its training rows.

    Args:
        rows: number of rows that could be read.
        bad: number of rows that could not.
        first_bad: place of the first bad row, and its fault.
        prompts: number of different prompts, after stripping.
        conflicts: number of prompts with different answers.
        in_train: number of rows whose prompt is also in the training part; 0 for that part itself.
        longest: characters of the longest prompt.
        labels: number of rows by answer, if there are few different answers; else empty.
        sha256: digest of each file, by name.
        texts: sha256 of all prompts and answers, independent of their order: parts with the same rows have the same digest.
    """

    rows: int
    bad: int
    first_bad: str
    prompts: int
    conflicts: int
    in_train: int
    longest: int
    labels: dict[str, int]
    sha256: dict[str, str]
    texts: str


def audit(parts: Mapping[str, Part]) -> dict[str, PartAudit]:
    """Audit each part of a task.

    Args:
        parts: from ``Reader.parts``; their rows are read.
    """
    trained: set[str] = set()
    audits = {}
    for name in sorted(parts, key=lambda name: name != "train"):
        part = parts[name]
        rows = list(part.rows)
        examples = [row for row in rows if isinstance(row, Example)]
        bad = [row for row in rows if isinstance(row, BadRow)]
        answers: dict[str, set[str]] = {}
        for row in examples:
            answers.setdefault(row.whole_prompt.strip(), set()).add(row.target)
        labels = Counter(row.target for row in examples)
        audits[name] = PartAudit(
            rows=len(examples),
            bad=len(bad),
            first_bad=f"{bad[0].source}: {bad[0].reason}" if bad else "",
            prompts=len(answers),
            conflicts=sum(len(different) > 1 for different in answers.values()),
            in_train=sum(row.whole_prompt.strip() in trained for row in examples),
            longest=max((len(row.whole_prompt) for row in examples), default=0),
            labels=dict(sorted(labels.items())) if len(labels) <= min(MOST_LABELS, len(examples) // 3) else {},
            sha256={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in part.files},
            texts=hashlib.sha256(
                "\x1e".join(sorted(f"{e.whole_prompt}\x1f{e.target}" for e in examples)).encode()
            ).hexdigest(),
        )
        if name == "train":
            trained = set(answers)
    return {name: audits[name] for name in parts}


def warnings(parts: Mapping[str, PartAudit]) -> Iterator[str]:
    """Warnings about a task for its user, one line each: bad rows, conflicts, leaks, duplicates, few test rows."""
    test = parts["test"]
    for name, part in parts.items():
        if part.bad:
            yield f"{name}: {part.bad} rows cannot be read, first {part.first_bad}"
        if part.conflicts:
            yield f"{name}: {part.conflicts} prompts have different answers"
        if part.in_train:
            yield f"{name}: {part.in_train} of {part.rows} rows have a prompt of train"
        if name not in ("train", "test") and part.texts == test.texts:
            yield f"{name} and test are the same rows: a choice on {name} is a choice on test"
        elif name == "train" and part.prompts < part.rows:
            yield f"train: {part.rows - part.prompts} rows repeat a prompt"
    if test.rows < FEW_TEST_ROWS:
        yield f"test: {test.rows} rows, so a share of 50 % has a standard error of {50 / max(test.rows, 1) ** 0.5:.1f} points"
