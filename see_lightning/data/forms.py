"""The forms of a user's own rows: which columns have the prompt, the answers and the conversation of an example."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from see_lightning.data.checks import BadRow
from see_lightning.data.example import Example, Turn
from see_lightning.data.files import RawRow
from see_lightning.data.messages import Conversation, from_json, read_messages
from see_lightning.data.reader import RowError, made, references, require_keys, texts
from see_lightning.errors import listed

#: Columns of the query, and of its answer beside each; the empty one is the answer in the messages themselves.
ANSWERS = {
    "messages": ("answers", ""),
    "prompt": ("answer", "answers", "completion"),
    "instruction": ("output", "answers"),
}
#: Columns that may stand beside a query; data sets with messages repeat the first one as ``prompt``.
BESIDE = {"messages": ("prompt",), "prompt": (), "instruction": ("input",)}
ANY_FORM = ("id", "system")  # columns that rows of every form may have
COLUMNS = {*ANSWERS, *(one for some in (*ANSWERS.values(), *BESIDE.values()) for one in some if one)}
ALLOWED = (
    "a row has prompt and answer (or completion, or answers, a list); or instruction, input and output; or messages; and"
    " with each of them system and id, if you like"
)
TRAIN_ON = ("last", "all")


@dataclass(frozen=True, slots=True)
class Form:
    """The columns of a row.

    Args:
        query: ``prompt``, ``instruction`` or ``messages``.
        answer: column of the answer; empty where the messages end with it.
    """

    query: str
    answer: str

    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return (self.query, self.answer) if self.answer else (self.query,)

    def others(self, row: Mapping[str, Any]) -> list[str]:
        """The columns of a row that belong to another form."""
        own = (*self.columns(), *BESIDE[self.query])
        return [name for name, value in row.items() if name in COLUMNS and name not in own and value is not None]


def form_of(row: Mapping[str, Any]) -> Form:
    """The form of a row.

    Args:
        row: values by column; in a column that is null it has none, as in a table whose rows differ.

    Raises:
        RowError: its columns are of no form, or of two.

    >>> form_of({"prompt": "2 + 2?", "completion": "4"}), form_of({"messages": [], "prompt": "2 + 2?"})
    (Form(query='prompt', answer='completion'), Form(query='messages', answer=''))
    """
    there = {name for name, value in row.items() if value is not None} & COLUMNS or row.keys() & COLUMNS
    query = next((name for name in ANSWERS if name in there), "prompt")
    found = [name for name in ANSWERS[query] if name in there]
    if len(found) > 1:
        raise RowError(f"{' and '.join(found)} both have the answer; keep one of them: {ALLOWED}")
    form = Form(query, found[0] if found else ANSWERS[query][-1 if query == "messages" else 0])
    if others := form.others(row):
        raise RowError(f"columns of two forms, {' and '.join(form.columns())} beside {listed(others)}: {ALLOWED}")
    try:
        require_keys(dict(row), form.columns())
    except RowError as error:
        raise RowError(f"{error}; {ALLOWED}") from error
    return form


class RowReader:
    """Reads the rows of one half of a task as examples; all rows of a half have the form of the first.

    Args:
        task: name of the task.
        half: ``train`` or ``test``.
        train_on: answers of a conversation that become examples: ``last``, or ``all``. Test rows have the last alone.
    """

    def __init__(self, task: str, half: str, train_on: str) -> None:
        self.task, self.half = task, half
        self.every_answer = half == "train" and train_on == "all"
        self.form: Form | None = None
        #: Columns that were not read, with the number of their rows.
        self.unread: Counter[str] = Counter()
        #: Answers before the last of a row that may be trained on.
        self.earlier = 0

    def examples(self, rows: Iterator[RawRow]) -> Iterator[Example | BadRow]:
        """The examples of rows, in their order."""
        for row in rows:
            found = made(row.source, partial(self._of_row, row))
            yield from [found] if isinstance(found, BadRow) else found

    def notices(self) -> Iterator[str]:
        """Facts about the rows that were read: columns without effect."""
        if self.unread:
            verb = "is" if len(self.unread) == 1 else "are"
            column = "column" if len(self.unread) == 1 else "columns"
            yield f"{self.task}: the {column} {listed(sorted(self.unread))} of the {self.half} rows {verb} not read"
        if self.every_answer and not self.earlier:
            yield (
                f"{self.task}: benchmark.reader.train_on=all has no effect, since no training row has messages with an answer"
                f" before the last"
            )

    def _of_row(self, raw: RawRow) -> list[Example]:
        row = raw.columns()
        if row.get("id") is None:
            row["id"] = f"{self.task}-{self.half}-{raw.number}"
        if self.form is None:
            self.form = form_of(row)
        require_keys(row, ("id", *self.form.columns()))
        if others := self.form.others(row):
            raise RowError(
                f"column {listed(others)} of another form than {' and '.join(self.form.columns())}: {ALLOWED}"
            )
        (example_id,) = texts(row, keys=("id",))
        system = _optional(row, "system")
        if self.form.query == "messages":
            found = self._of_messages(row, example_id, system)
        else:
            query, (target, *others) = _query(row, self.form.query), _answers(row, self.form.answer)
            found = [Example(example_id, query, target, self.task, alternatives=tuple(others), system=system)]
        self._count_unread(row)
        return [replace(one, source=raw.source) for one in found]

    def _of_messages(self, row: dict[str, Any], example_id: str, system: str | None) -> list[Example]:
        read = read_messages(row["messages"])
        if system is not None and read.system is not None:
            raise RowError("two system prompts, in the column system and in messages; keep one")
        self.unread.update(f"messages.{key}" for key in read.unread)
        turns, weights, alternatives = _turns(row, read)
        chosen = [place for place, weight in enumerate(weights) if weight]
        last = len(turns) - 1
        self.earlier += sum(weights[:last])
        if not self.every_answer:
            if not weights[last] and self.half == "train":
                more = ", or set benchmark.reader.train_on=all" if chosen else ""
                raise RowError(
                    f"the last answer has the weight 0, so there is nothing to train on; leave the row out{more}"
                )
            chosen = [last]
        elif not chosen:
            raise RowError("all answers have the weight 0, so there is nothing to train on; leave the row out")
        return [
            Example(
                example_id if place == last else f"{example_id}-turn-{place + 1}",
                turns[place].query,
                turns[place].answer,
                self.task,
                alternatives=alternatives if place == last else (),
                system=read.system if system is None else system,
                turns=turns[:place],
            )
            for place in chosen
        ]

    def _count_unread(self, row: Mapping[str, Any]) -> None:
        assert self.form is not None
        read = {*ANY_FORM, *self.form.columns(), *(() if self.form.query == "messages" else BESIDE[self.form.query])}
        self.unread.update(name for name, value in row.items() if name not in read and value is not None)


def _turns(row: dict[str, Any], read: Conversation) -> tuple[tuple[Turn, ...], tuple[int, ...], tuple[str, ...]]:
    """All turns of a conversation with their weights, and further references of the last answer."""
    if row.get("answers") is None:
        if read.query is not None:
            raise RowError("the last message is the user's; a row ends with the assistant's, or has the column answers")
        return read.turns, read.weights, ()
    if read.query is None:
        raise RowError("the last message is not the user's, to which the column answers would have the answers")
    target, *others = _answers(row, "answers")
    return (*read.turns, Turn(read.query, target)), (*read.weights, 1), tuple(others)


def _answers(row: dict[str, Any], column: str) -> list[str]:
    """The references of a row; ``answers`` must be a list, also as JSON in a cell of a CSV file."""
    if column != "answers":
        return references(row, column)
    value = row[column]
    value = from_json(column, value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise RowError(f"'answers' must be a list of strings, found {type(value).__name__}")
    return references({column: value}, column)


def _query(row: dict[str, Any], column: str) -> str:
    """The prompt of a row: its column, or an instruction and its input with a blank line between them."""
    (query,) = texts(row, keys=(column,))
    given = _optional(row, "input") if column == "instruction" else None
    if given is not None and not query.strip():
        raise RowError("empty instruction")
    return query if given is None else f"{query}\n\n{given}"


def _optional(row: dict[str, Any], column: str) -> str | None:
    """The text of a column; None if it is missing, null or blank."""
    if row.get(column) is None:
        return None
    (text,) = texts(row, keys=(column,))
    return text if text.strip() else None
