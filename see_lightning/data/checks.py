"""Row checks: a bad row stops the run, or is left out, counted and reported."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from see_lightning.data.example import Example
from see_lightning.data.split import Split
from see_lightning.errors import DataError

OnBadRow = Literal["stop", "skip"]
MOST_SKIPPED = 1  # per cent of a task's rows


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that a reader could not turn into an example.

    Args:
        source: ``file:line`` of the row.
        reason: its fault.
    """

    source: str
    reason: str


@dataclass(slots=True)
class _Tally:
    seen: int = 0
    skipped: list[BadRow] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)  # sources of rows by remark


class RowChecks:
    """Checks every row of every reader, and refuses or counts the rows that fail.

    Args:
        on_bad_row: ``stop`` raises at the first bad row; ``skip`` leaves it out and counts it, up to 1 % of the rows of
            a task.
        indicators: strings that no prompt and no answer may contain, since an expert's verdict is such a string.
        trained_on: whether methods are trained on the training rows. If not, test rows may be among them, and they may be
            empty.
        most_skipped: per cent of a task's rows that may be skipped.

    Raises:
        ValueError: ``on_bad_row`` is neither of the two.
    """

    def __init__(
        self,
        on_bad_row: OnBadRow = "stop",
        indicators: tuple[str, ...] = ("<<pos>>", "<<neg>>"),
        *,
        trained_on: bool = True,
        most_skipped: float = MOST_SKIPPED,
    ) -> None:
        if on_bad_row not in get_args(OnBadRow):
            raise ValueError(f"on_bad_row is {on_bad_row!r}; allowed are: {', '.join(get_args(OnBadRow))}")
        self.on_bad_row, self.most_skipped = on_bad_row, most_skipped
        self.indicators, self.trained_on = tuple(indicators), trained_on
        self._tallies: dict[str, _Tally] = {}

    def split(self, task: str, train: Iterable[Example | BadRow], test: Iterable[Example | BadRow]) -> Split:
        """The rows that pass the checks, in their order, with notices of those that do not.

        Args:
            task: name of the task; its counts start from zero.
            train: its training rows.
            test: its test rows.

        Raises:
            DataError: a bad row under ``stop``; more than 1 % bad rows under ``skip``; no training or no test row is left.
        """
        self._tallies[task] = _Tally()
        ids: dict[str, str] = {}
        train_examples = tuple(self._passing(task, train, ids=ids, taken={}))
        prompts = {example.whole_prompt.strip(): example.source for example in train_examples if self.trained_on}
        test_examples = tuple(self._passing(task, test, ids=ids, taken=prompts))
        notices = self.notices(task)
        for half, examples in (("training", train_examples), ("test", test_examples)):
            if not examples and (half == "test" or self.trained_on):
                raise DataError(f"{task}: no {half} rows; a task needs at least one")
        return Split(train=train_examples, test=test_examples, notices=notices)

    def further(self, task: str, rows: Iterable[Example | BadRow], split: Split) -> tuple[Example, ...]:
        """The rows of another part of a task that pass the checks; they count as the task's others do.

        Args:
            task: name of the task, whose training and test rows were checked before.
            rows: of the part, such as its validation split.
            split: the task's other rows; no id occurs in both.

        Raises:
            DataError: a bad row under ``stop``.
        """
        ids = {example.id: example.source for example in (*split.train, *split.test)}
        return tuple(self._passing(task, rows, ids=ids, taken={}))

    def bad(self, task: str, source: str, reason: str) -> None:
        """Refuse or count one bad row. Later checks call this too, for example for a prompt that is too long for the model.

        Args:
            task: name of the row's task.
            source: ``file:line``, as in ``Example.source``.
            reason: the row's fault.

        Raises:
            DataError: under ``stop``. Under ``skip`` the row is counted, and the caller leaves it out.
        """
        if self.on_bad_row == "stop":
            raise DataError(
                f"{source}: {reason}. Fix the row, or set data.on_bad_row=skip to leave out up to {self.most_skipped} % of "
                f"the rows of a task"
            )
        self._tallies.setdefault(task, _Tally()).skipped.append(BadRow(source, reason))

    def skipped(self, task: str) -> tuple[BadRow, ...]:
        """The rows of a task that were skipped so far."""
        return tuple(self._tallies.get(task, _Tally()).skipped)

    def notices(self, task: str) -> tuple[str, ...]:
        """One line about the skipped rows of a task so far, and one for each remark on rows that were read.

        Raises:
            DataError: more than 1 % of the rows were skipped.
        """
        tally = self._tallies.get(task, _Tally())
        read = tuple(
            f"{task}: {len(sources)} of {tally.seen} rows are read as published: {remark}; first {sources[0]}"
            for remark, sources in tally.remarks.items()
        )
        if not tally.skipped:
            return read
        first = tally.skipped[0]
        line = f"{task}: {len(tally.skipped)} of {tally.seen} rows skipped: first {first.source}: {first.reason}"
        if 100 * len(tally.skipped) > self.most_skipped * tally.seen:
            raise DataError(f"{line}. That is more than {self.most_skipped} % of the rows: fix the files")
        return (line, *read)

    def _passing(
        self, task: str, rows: Iterable[Example | BadRow], *, ids: dict[str, str], taken: dict[str, str]
    ) -> Iterator[Example]:
        """The rows that pass. Adds their ids to ``ids``; ``taken`` has the source of each prompt that must not occur."""
        tally = self._tallies[task]
        for row in rows:
            tally.seen += 1
            reason = row.reason if isinstance(row, BadRow) else self._fault(row, ids=ids, taken=taken)
            if reason:
                self.bad(task, row.source, reason)
            elif isinstance(row, Example):
                ids[row.id] = row.source
                if row.remark:
                    tally.remarks.setdefault(row.remark, []).append(row.source)
                yield row

    def _fault(self, row: Example, *, ids: dict[str, str], taken: dict[str, str]) -> str:
        """The fault of a row, or an empty string."""
        before = (("conversation", text) for text in row.context)
        for part, text in (*before, ("prompt", row.prompt), *(("answer", text) for text in row.references)):
            if not text.strip() and not (part == "answer" and row.remark):
                return f"empty {part}"
            for indicator in self.indicators:
                if indicator in text:
                    return f"the {part} contains the indicator {indicator!r}"
        if row.id in ids:
            return f"id {row.id!r:.100} is used twice, first at {ids[row.id]}"
        if row.whole_prompt.strip() in taken:
            return f"this test prompt is also in the training rows, at {taken[row.whole_prompt.strip()]}"
        return ""
