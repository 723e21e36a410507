"""Task files of Super-NaturalInstructions, split into folders as SAPT does, or one file a task as first published."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from see_lightning.config import one_of, within
from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import DataError, Example
from see_lightning.data.reader import (
    Part,
    RowError,
    array_rows,
    json_document,
    read_halves,
    require_task,
    texts,
    where_to_put,
)
from see_lightning.data.split import Split
from see_lightning.seeds import seed

PROMPTS = {
    "plain": "{definition}\n\n{examples}{input}",
    "sapt": "Definition: {definition}\n\n{examples}Now complete the following example -\nInput: {input}\nOutput: ",
    "sapt_long": "{definition}\n{examples}{input}\nOutput: ",
}
EXAMPLE = "Positive Example {number} -\nInput: {input}\nOutput: {output}\n\n"


class NaturalInstructionsReader:
    """Reads ``<task>/{train,test}.json``, or ``tasks/<task>.json`` or ``<task>.json`` and splits it.

    Each file is an object with ``Definition``, ``Instances`` and ``Positive Examples``. Definition and output are a string
    or a list, of which the first counts: SAPT draws one at random, so its references are not the same in every run. Blanks
    around texts are stripped. A row without ``id`` gets ``<task>-<half>-<row>``; ``dev.json`` is not used, as it is the same
    as ``test.json`` where SAPT has it.

    A task in one file is split by its inputs: sorted by a hash of task and input, the rows of the first inputs are the
    test half. So the split depends on nothing but the texts, and no input is in both halves.

    Args:
        folder: where the tasks lie.
        published_at: where to get them, for messages.
        prompt: ``plain`` (definition, blank line, input), ``sapt`` or ``sapt_long`` (SAPT's for SuperNI and for its long
            sequence of classification tasks).
        positive_examples: how many of the file's own stand in the prompt before the input.
        test_rows: of a task in one file, different inputs for the test half; at most a fifth of them.
        train_rows: of a task in one file, most rows of the training half; None takes all that are left.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        published_at: str,
        prompt: str = "plain",
        positive_examples: int = 0,
        test_rows: int = 100,
        train_rows: int | None = None,
    ) -> None:
        one_of("benchmark.reader.prompt", prompt, PROMPTS)
        within("benchmark.reader.positive_examples", positive_examples, 0)
        within("benchmark.reader.test_rows", test_rows, 1)
        within("benchmark.reader.train_rows", train_rows, 1)
        self.folder, self.published_at = Path(folder), published_at
        self.prompt, self.positive_examples = PROMPTS[prompt], positive_examples
        self.test_rows, self.train_rows = test_rows, train_rows

    def tasks(self) -> list[str]:
        """Names of the tasks whose files are there.

        Raises:
            DataError: no such folder, or no task in it.
        """
        folders = {path.parent.name for path in self.folder.glob("*/train.json")}
        files = {path.stem for place in (self.folder, self.folder / "tasks") for path in place.glob("*.json")}
        if not folders | files:
            raise DataError(
                f"task files of natural-instructions were looked for in {self.folder}, where there is neither "
                f"<task>/train.json nor tasks/<task>.json. {where_to_put(self.folder, self.published_at)}"
            )
        return sorted(folders | files)

    def parts(self, task: str) -> dict[str, Part]:
        """The rows of the task's files, or of the halves of its one file.

        Raises:
            DataError: no such folder or task, or one file that is malformed as a whole.
        """
        require_task(task, self.tasks(), where_to_put(self.folder, self.published_at))
        folder = self.folder / task
        if (folder / "train.json").is_file():
            files = {half: folder / f"{half}.json" for half in ("train", "dev", "test")}
            return {
                half: Part(self._rows(path, task, half), (path,))
                for half, path in files.items()
                if half != "dev" or path.is_file()
            }
        whole = next(path for place in ("tasks", "") if (path := self.folder / place / f"{task}.json").is_file())
        train, test = self._halves(task, whole)
        return {"train": Part(train, (whole,)), "test": Part(test, (whole,))}

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task, with a notice where its one file was split.

        Raises:
            DataError: no such folder, task or file, or a row that ``checks`` refuses.
        """
        parts = self.parts(task)
        split = read_halves(task, parts, checks)
        if parts["train"].files != parts["test"].files:
            return split
        notice = (
            f"{task}: {parts['train'].files[0]} was split by a hash of its inputs into {len(split.train)} training and "
            f"{len(split.test)} test rows"
        )
        return Split(train=split.train, test=split.test, notices=(notice, *split.notices))

    def _halves(self, task: str, whole: Path) -> tuple[list[Example | BadRow], list[Example | BadRow]]:
        head, tail = self._frame(whole, task)
        rows = list(self._rows(whole, task, "row"))
        bad = [row for row in rows if isinstance(row, BadRow)]
        by_input: dict[str, list[Example]] = {}
        for row in rows:
            if isinstance(row, Example):
                by_input.setdefault(row.prompt[len(head) : len(row.prompt) - len(tail)], []).append(row)
        groups = [by_input[text] for text in sorted(by_input, key=lambda text: (seed(0, task, text), text))]
        tested = min(self.test_rows, len(groups) // 5)
        train = list(chain.from_iterable(groups[tested:]))
        return [*bad, *train[: self.train_rows]], list(chain.from_iterable(groups[:tested]))

    def _frame(self, path: Path, task: str) -> tuple[str, str]:
        """What stands before and behind the input in every prompt of a file."""
        content = _content(path, task)
        try:
            head, tail = self.prompt.split("{input}")
            return head.format(definition=_first(content, "Definition"), examples=self._examples(content)), tail
        except RowError as reason:
            raise DataError(f"{path}: {reason}") from reason

    def _rows(self, path: Path, task: str, half: str) -> Iterator[Example | BadRow]:
        head, tail = self._frame(path, task)

        def example(row: dict[str, object], number: int, source: str) -> Example:
            row = {"id": f"{task}-{half}-{number}", **row}
            (id_, text), output = texts(row, keys=("id", "input")), _first(row, "output")
            if not text.strip():
                raise RowError("empty input")
            return Example(id_, f"{head}{text.strip()}{tail}", output, task, source=source)

        yield from array_rows(_content(path, task)["Instances"], f"{path}, Instances", example)

    def _examples(self, content: dict[str, object]) -> str:
        if not self.positive_examples:
            return ""
        examples = content.get("Positive Examples")
        if not isinstance(examples, list) or len(examples) < self.positive_examples:
            there = len(examples) if isinstance(examples, list) else "no"
            raise RowError(
                f"{there} positive examples, {self.positive_examples} are asked for; set "
                f"benchmark.reader.positive_examples to what every task has"
            )
        shown = ""
        for number, example in enumerate(examples[: self.positive_examples], start=1):
            if not isinstance(example, dict):
                raise RowError(f"positive example {number} is a JSON {type(example).__name__}, an object is needed")
            shown += EXAMPLE.format(number=number, input=_first(example, "input"), output=_first(example, "output"))
        return shown


def _content(path: Path, task: str) -> dict[str, object]:
    content = json_document(path, task)
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON {type(content).__name__} where an object with Instances is needed")
    if "Instances" not in content:
        raise DataError(f"{path}: missing key 'Instances'; found: {', '.join(content) or 'none'}")
    return content


def _first(row: dict[str, object], key: str) -> str:
    """The text under ``key``, or the first of several, without blanks around it."""
    value = row.get(key)
    if isinstance(value, list) and value:
        row = {**row, key: value[0]}
    return texts(row, keys=(key,))[0].strip()
