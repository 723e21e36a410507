"""Task files of Super-NaturalInstructions: split into folders as by SAPT, or one file per task as first published."""

import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

from see_lightning.config.checks import one_of, within
from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Body, Example
from see_lightning.data.reader import (
    EMPTY_ANSWER,
    Part,
    RowError,
    array_rows,
    json_document,
    read_published,
    references,
    require_task,
    texts,
    where_to_put,
)
from see_lightning.data.split import Split
from see_lightning.errors import DataError, listed
from see_lightning.seeds import seed


@dataclass(frozen=True, slots=True)
class Style:
    """The format of a prompt of definition, positive examples and input.

    Args:
        definition: format of the definition; left out if the file has no definition.
        before: text between the examples and the input.
        behind: text after the input.
        example: format of a positive example with its number, input and output.
        full_stops: add a full stop to a definition, input or output that ends in no ASCII punctuation.
        strip_input: strip whitespace around inputs.
        strip_answer: strip whitespace around answers.
        needs_definition: refuse a file without a definition.
    """

    definition: str
    before: str
    behind: str
    example: str = "Positive Example {number} -\nInput: {input}\nOutput: {output}\n\n"
    full_stops: bool = False
    strip_input: bool = True
    strip_answer: bool = True
    needs_definition: bool = True

    def closed(self, text: str) -> str:
        """The text, with a full stop added if the style requires one."""
        return f"{text}." if self.full_stops and text[-1:] not in (*string.punctuation,) else text


NOW = "Now complete the following example -\nInput: "
STYLES = {
    "plain": Style("{}\n\n", "", "", needs_definition=False),
    "sapt": Style("Definition: {}\n\n", NOW, "\nOutput: ", strip_input=False, strip_answer=False),
    "sapt_long": Style("{}\n", "", "\nOutput: ", strip_input=False, strip_answer=False, needs_definition=False),
    "tk_instruct": Style(
        "Definition: {}\n\n",
        NOW,
        "\nOutput: ",
        example=" Positive Example {number} -\nInput: {input}\n Output: {output}\n\n",
        full_stops=True,
        strip_answer=False,
    ),
}
SPLITS = ("hash", "first")


class NaturalInstructionsReader:
    """Reads ``<task>/{train,test}.json``, or splits the one file ``tasks/<task>.json`` or ``<task>.json``.

    A task that is only tested needs no ``train.json``. Each file is an object with ``Definition``, ``Instances`` and
    ``Positive Examples``. Definition and output are a string or a list. The first definition is used. The first output is
    trained on, and all count as right, as in CITB; SAPT draws one at random for training and for scores, so its references
    differ between runs. A row with an empty input or output is read, with a notice, as SAPT and CITB read it. A row without
    ``id`` gets ``<task>-<half>-<row>``. ``dev.json`` is the validation split, as far as its rows
    are no test rows; in SAPT's data it equals ``test.json``.

    If a prompt is too long for the model, its last positive examples may be removed, as by Tk-Instruct's collator, and then
    its input may be cut at the end.

    A task in one file is split by ``split``. With ``hash``, inputs are sorted by a hash of task and input, and the rows of
    the first inputs are the test half: the split depends on the texts alone, and no input is in both halves. With ``first``,
    as in CITB, the first rows are the test half, as many next rows (for choosing a checkpoint) are not used, and of the
    others those with the lowest hashes are trained on; CITB draws these by the run's seed. Rows with the input of a test row
    are left out. If no row would be left for training, a fifth of the rows is the test half.

    Args:
        folder: contains the tasks' folders or files.
        published_at: where the files are published, for messages.
        prompt: ``plain`` (definition, blank line, input), ``sapt`` or ``sapt_long`` (SAPT's for SuperNI and for its long
            sequence of classification tasks), ``tk_instruct`` (that of Tk-Instruct's collator, which CITB uses).
            Whitespace around inputs and answers is kept or stripped as there.
        positive_examples: most positive examples of the file in a prompt, before the input.
        split: ``hash`` or ``first``: how a task in one file is split.
        test_rows: for a task in one file: number of different inputs of the test half, at most a fifth of all; with
            ``first``, number of rows.
        train_rows: for a task in one file: most rows of the training half; None takes all that are left.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        published_at: str,
        prompt: str = "plain",
        positive_examples: int = 0,
        split: str = "hash",
        test_rows: int = 100,
        train_rows: int | None = None,
    ) -> None:
        one_of("benchmark.reader.prompt", prompt, STYLES)
        one_of("benchmark.reader.split", split, SPLITS)
        within("benchmark.reader.positive_examples", positive_examples, 0)
        within("benchmark.reader.test_rows", test_rows, 1)
        within("benchmark.reader.train_rows", train_rows, 1)
        self.folder, self.published_at = Path(folder), published_at
        self.style, self.positive_examples = STYLES[prompt], positive_examples
        self.split, self.test_rows, self.train_rows = split, test_rows, train_rows

    def tasks(self) -> list[str]:
        """Names of the tasks in the folder.

        Raises:
            DataError: no such folder, or no task in it.
        """
        folders = {path.parent.name for half in ("train", "test") for path in self.folder.glob(f"*/{half}.json")}
        files = {path.stem for place in (self.folder, self.folder / "tasks") for path in place.glob("*.json")}
        if not folders | files:
            raise DataError(
                f"task files of natural-instructions were looked for in {self.folder}, where there is neither "
                f"<task>/train.json nor tasks/<task>.json. "
                f"{where_to_put(self.folder, self.published_at)}"
            )
        return sorted(folders | files)

    def parts(self, task: str) -> dict[str, Part]:
        """The rows of the task's files, or of the halves of its one file.

        Raises:
            DataError: no such folder or task, or a file that is malformed as a whole.
        """
        require_task(task, self.tasks(), where_to_put(self.folder, self.published_at))
        folder = self.folder / task
        if any((folder / f"{half}.json").is_file() for half in ("train", "test")):
            files = {half: folder / f"{half}.json" for half in ("train", "dev", "test")}
            return {
                half: Part(self._rows(path, task, half), (path,))
                for half, path in files.items()
                if half != "dev" or path.is_file()
            }
        whole = next(path for place in ("tasks", "") if (path := self.folder / place / f"{task}.json").is_file())
        halves = self._first_rows(task, whole) if self.split == "first" else self._by_hash(task, whole)
        return {half: Part(rows, (whole,)) for half, rows in halves.items()}

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task, with notices about the split of one file, missing definitions and positive examples.

        Raises:
            DataError: no such folder, task or file, or a row that ``checks`` refuses.
        """
        parts = self.parts(task)
        if not checks.trained_on and not all(path.is_file() for path in parts["train"].files):
            parts["train"] = Part(())
        split = read_published(task, parts, checks)
        files = {*parts["train"].files, *parts["test"].files}
        notices = []
        if parts["train"].files == parts["test"].files:
            rule = "by a hash of its inputs" if self.split == "hash" else "as CITB does, by the order of its rows,"
            notices.append(
                f"{task}: {parts['train'].files[0]} was split {rule} into {len(split.train)} training and "
                f"{len(split.test)} test rows"
            )
        for path in sorted(files):
            content = _content(path, task)
            if not content.get("Definition"):
                notices.append(f"{task}: {path} has no definition, so its prompts begin without one")
            if len(_examples(content, self.positive_examples)) < self.positive_examples:
                shown = len(_examples(content, self.positive_examples))
                notices.append(f"{task}: {path} has {shown} positive examples, of {self.positive_examples} to be shown")
        return replace(split, notices=(*notices, *split.notices))

    def _by_hash(self, task: str, whole: Path) -> dict[str, list[Example | BadRow]]:
        rows = list(self._rows(whole, task, "row"))
        bad = [row for row in rows if isinstance(row, BadRow)]
        groups = _groups(task, [row for row in rows if isinstance(row, Example)])
        tested = min(self.test_rows, len(groups) // 5)
        train = list(chain.from_iterable(groups[tested:]))
        return {"train": [*bad, *train[: self.train_rows]], "test": list(chain.from_iterable(groups[:tested]))}

    def _first_rows(self, task: str, whole: Path) -> dict[str, list[Example | BadRow]]:
        rows = list(self._rows(whole, task, "row"))
        tested = self.test_rows if 2 * self.test_rows < len(rows) else max(1, len(rows) // 5)
        test, dev, rest = rows[:tested], rows[tested : 2 * tested], rows[2 * tested :]
        tested_inputs = {_input(row) for row in test if isinstance(row, Example)}
        free = [row for row in rest if isinstance(row, Example) and _input(row) not in tested_inputs]
        train = list(chain.from_iterable(_groups(task, free)))
        return {
            "train": [*(row for row in rest if isinstance(row, BadRow)), *train[: self.train_rows]],
            "dev": dev,
            "test": test,
        }

    def _rows(self, path: Path, task: str, half: str) -> Iterator[Example | BadRow]:
        content, style = _content(path, task), self.style
        try:
            head = self._definition(content)
            shown = [
                style.example.format(
                    number=number,
                    input=style.closed(_first(one, "input").strip()),
                    output=style.closed(_first(one, "output").strip()),
                )
                for number, one in enumerate(_examples(content, self.positive_examples), start=1)
            ]
        except RowError as reason:
            raise DataError(f"{path}: {reason}") from reason
        starts = [len(head) + sum(map(len, shown[:n])) for n in range(len(shown) + 1)]
        before = "".join((head, *shown, style.before))

        def example(row: dict[str, object], number: int, source: str) -> Example:
            row = {"id": f"{task}-{half}-{number}", **row}
            id_, text = texts(row, keys=("id", "input"))
            text = text.strip() if style.strip_input else text
            answers = references(row, "output")
            target, *others = dict.fromkeys(map(str.strip, answers) if style.strip_answer else answers)
            remarks = [] if text.strip() else ["the input is empty"]
            if not all(answer.strip() for answer in answers):
                remarks.append(EMPTY_ANSWER)
            return Example(
                id=id_,
                prompt=f"{before}{style.closed(text)}{style.behind}",
                target=target,
                task=task,
                source=source,
                body=Body(len(before), len(before) + len(text), extras=tuple(pairwise(starts))),
                alternatives=tuple(others),
                remark=", and ".join(remarks),
            )

        yield from array_rows(content["Instances"], f"{path}, Instances", example)

    def _definition(self, content: dict[str, object]) -> str:
        """The beginning of every prompt of a file; empty if the file has no definition."""
        if content.get("Definition") in ("", []) and not self.style.needs_definition:
            return ""
        return self.style.definition.format(self.style.closed(_first(content, "Definition").strip()))


def _input(row: Example) -> str:
    assert row.body is not None
    return row.prompt[row.body.start : row.body.stop].strip()


def _groups(task: str, rows: list[Example]) -> list[list[Example]]:
    """Rows grouped by their input, the group with the lowest hash of task and input first."""
    by_input: dict[str, list[Example]] = {}
    for row in rows:
        by_input.setdefault(_input(row), []).append(row)
    return [by_input[text] for text in sorted(by_input, key=lambda text: (seed(0, task, text), text))]


def _examples(content: dict[str, object], most: int) -> list[dict[str, object]]:
    """The first ``most`` positive examples of a file.

    Raises:
        RowError: an example is no object, or they are no list.
    """
    examples = content.get("Positive Examples", []) if most else []
    if not isinstance(examples, list):
        raise RowError(f"'Positive Examples' is a JSON {type(examples).__name__}, a list is needed")
    for number, example in enumerate(examples[:most], start=1):
        if not isinstance(example, dict):
            raise RowError(f"positive example {number} is a JSON {type(example).__name__}, an object is needed")
    return examples[:most]


def _content(path: Path, task: str) -> dict[str, object]:
    content = json_document(path, task)
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON {type(content).__name__} where an object with Instances is needed")
    if "Instances" not in content:
        raise DataError(f"{path}: missing key 'Instances'; found: {listed(content)}")
    return content


def _first(row: dict[str, object], key: str) -> str:
    """The text under ``key``, or the first of a list of texts."""
    return references(row, key)[0]
