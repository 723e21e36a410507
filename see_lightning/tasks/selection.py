"""The rows of a task that a run uses: for training, for validation, and held out. Draws depend on the task's name alone."""

import random
from collections.abc import Collection, Iterable, Sequence

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Example
from see_lightning.data.reader import Part, Reader, validation_part
from see_lightning.data.split import Split
from see_lightning.errors import ConfigError
from see_lightning.seeds import seed

Rows = tuple[Example, ...]


def content(prompt: str) -> str:
    r"""A prompt's words with single spaces between them: prompts that differ in whitespace only count as equal.

    >>> content(" Is it\n\nkind? ") == content("Is it kind?")
    True
    """
    return " ".join(prompt.split())


def drawn(rows: Sequence[Example], size: int | None, name: str, key: str) -> Rows:
    """Shuffle the rows, since some files are sorted by label, and keep the first ``size``.

    Args:
        rows: in the order of their file.
        size: rows to keep; None keeps all.
        name: seed of the order.
        key: the setting that has the size, for messages.

    Raises:
        ConfigError: there are fewer rows.
    """
    if size is not None and size > len(rows):
        raise ConfigError(f"{key}={size}, but {name} has {len(rows)} rows; give {key}={len(rows)} or less.")
    return tuple(random.Random(seed(0, name, "subset")).sample(list(rows), len(rows)))[:size]


def set_aside(
    rows: Sequence[Example], tested: Collection[str], train_size: int | None, held_out: int, name: str
) -> tuple[Rows, Rows]:
    """The training rows to keep, and ``held_out`` others that share no prompt with these or the test rows.

    Args:
        rows: the training rows, shuffled.
        tested: contents of the test prompts.
        train_size: rows to keep; None keeps all.
        held_out: rows to set aside.
        name: of the task.

    Raises:
        ConfigError: there are too few rows, or too few different prompts.
    """
    if train_size is not None and train_size > len(rows):
        raise ConfigError(
            f"train_size={train_size}, but {name}-train has {len(rows)} rows; give train_size={len(rows)} or less."
        )
    kept = len(rows) if train_size is None else train_size
    if not held_out:
        return tuple(rows[:kept]), ()
    contents = [content(row.whole_prompt) for row in rows]
    aside = _others(contents, kept, held_out, tested, range(kept, len(rows)))
    train = tuple(row for row, own in zip(rows[:kept], contents, strict=False) if own not in aside)
    if len(aside) < held_out or not train:
        raise ConfigError(
            f"{held_out} training rows of {name} were to be held out, but it has {_size_of(contents, tested)}, and at least"
            f" one is needed to train on; hold out {_most(contents, tested)} or fewer."
        )
    return train, tuple(rows[place] for place in sorted(aside.values()))


def with_validation(
    reader: Reader, split: Split, checks: RowChecks, name: str, train_size: int | None, valid_size: int
) -> tuple[Rows, Rows, tuple[str, ...]]:
    """The training rows, shuffled, ``valid_size`` validation rows, and the notices about the task.

    Validation rows are drawn from the benchmark's own validation split, without rows that are training or test rows too. If
    there is no such split, or nothing is left of it, they are held out from the training rows: those at the end of the
    shuffled rows, with all that repeat their prompts. So the first ``train_size`` rows are those of a run without
    validation, unless there are too few others.

    Args:
        reader: has the validation split, if there is one.
        split: the training and the test rows.
        checks: refuses or counts bad rows.
        name: of the task.
        train_size: training rows that are kept afterwards; None keeps all.
        valid_size: validation rows; 0 for none.

    Raises:
        DataError: a bad row of the validation split.
        ConfigError: there are too few rows.
    """
    rows = drawn(split.train, None, f"{name}-train", "train_size")
    if not valid_size:
        return rows, (), split.notices
    parts = reader.parts(name)
    notices = split.notices
    if part := validation_part(parts):
        own, notices = _own_split(part, parts[part], split, checks, name)
        if own:
            return rows, drawn(own, valid_size, f"{name}-{part}", "valid_size"), notices
    return (*_held_out(rows, split.test, train_size, valid_size, name), notices)


def _own_split(part: str, of: Part, split: Split, checks: RowChecks, name: str) -> tuple[Rows, tuple[str, ...]]:
    """The usable rows of a benchmark's validation split, and the notices about the task."""
    used = {content(row.whole_prompt) for row in (*split.train, *split.test)}
    published = list(of.rows)
    other = [row for row in published if isinstance(row, BadRow) or content(row.whole_prompt) not in used]
    before = checks.notices(name)
    rows = checks.further(name, other, split)
    notices = [notice for notice in split.notices if notice not in before] + [*checks.notices(name)]
    if gone := len(published) - len(other):
        end = "" if rows else "; its validation rows are held out from its training rows instead"
        notices.append(
            f"{name}: {gone} of {len(published)} rows of its split {part} were left out, since their prompts are also in the"
            f" training or test rows{end}"
        )
    return rows, tuple(notices)


def _held_out(
    rows: Rows, test: Iterable[Example], train_size: int | None, valid_size: int, name: str
) -> tuple[Rows, Rows]:
    """The other training rows, and the validation rows that are held out."""
    contents, tested = [content(row.whole_prompt) for row in rows], {content(row.whole_prompt) for row in test}
    kept = len(rows) if train_size is None else min(train_size, len(rows))
    aside = _others(contents, kept, valid_size, tested, range(len(rows) - 1, kept - 1, -1))
    train = tuple(row for row, own in zip(rows, contents, strict=True) if own not in aside)
    if len(aside) < valid_size or not train:
        raise ConfigError(
            f"valid_size={valid_size} rows of {name} were to be held out from its training rows, but it has"
            f" {_size_of(contents, tested)}, and at least one is needed to train on; give"
            f" valid_size={_most(contents, tested)} or less."
        )
    if train_size is not None and train_size > len(train):
        raise ConfigError(
            f"train_size={train_size} and valid_size={valid_size}, but {name} has {len(rows)} training rows, of which"
            f" {len(train)} are left after the validation rows are held out; give train_size={len(train)} or less, or a"
            " smaller valid_size."
        )
    return train, tuple(rows[place] for place in sorted(aside.values()))


def _others(
    contents: Sequence[str], kept: int, number: int, tested: Collection[str], later: Iterable[int]
) -> dict[str, int]:
    """Places of rows with different prompts that are no test prompts, by content.

    Args:
        contents: of the rows.
        kept: rows that are trained on; those at their end are taken if the others are too few.
        number: of places.
        tested: contents of the test prompts.
        later: the places behind the kept ones, in the order in which they are taken.
    """
    trained, found = set(contents[:kept]), dict[str, int]()
    for place in [*later, *reversed(range(kept))]:
        if len(found) == number:
            break
        if contents[place] not in tested and (place < kept or contents[place] not in trained):
            found.setdefault(contents[place], place)
    return found


def _most(contents: Sequence[str], tested: Collection[str]) -> int:
    """The most rows that can be held out such that one is left."""
    different = set(contents)
    free = len(different.difference(tested))
    return free - (free == len(different))


def _size_of(contents: Sequence[str], tested: Collection[str]) -> str:
    """The number of rows, and of different prompts if it is another, in words."""
    free = len(set(contents).difference(tested))
    return f"{len(contents)}" + (f" with {free} different prompts that no test row has" if free < len(contents) else "")
