"""TRACE's eight tasks (Wang et al., arXiv 2310.06762), in the layout of its archive."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Body, Example
from see_lightning.data.reader import (
    EMPTY_ANSWER,
    Part,
    array_rows,
    json_document,
    read_published,
    require_task,
    texts,
    where_to_put,
)
from see_lightning.data.split import Split
from see_lightning.errors import DataError

PUBLISHED_AT = (
    "https://github.com/zjwang21/TRACE, folder TRACE-Benchmark/LLM-CL-Benchmark_500 (or _1000, _5000), or of the archive "
    "that https://github.com/BeyonderXX/TRACE links to"
)

# The texts before and after the part of a prompt that may be cut. A question's choices or object come after it.
_AROUND_BODY = {
    "C-STANCE": ("\n文本：\n", "\n对象：\n"),
    "FOMC": ("\nText:\n", "\nStance:"),
    "MeetingBank": ("\nMeeting transcripts:\n", "\nSummary:"),
    "ScienceQA": ("\n\nQuestion:\n", "\n\nChoices:\n"),
    "NumGLUE-cm": ("\nQuestion:\n", "\nAnswer:"),
    "NumGLUE-ds": ("\nQuestion:\n", "\nAnswer:"),
    "20Minuten": ("\n\nParagraph:\n", "\n\nSimplification:"),
}


class TraceReader:
    """Reads ``<Task>/train.json`` and ``<Task>/test.json``, arrays of ``{"prompt", "answer"}``.

    ``eval.json`` is the validation split. Texts are not changed; ids are ``<Task>-<half>-<row>``. If a prompt is too long for
    the model, its body may be cut at the end. Prompts of Py150 are all body and are cut at the beginning, since the line to
    be continued is the last.

    Args:
        folder: contains the tasks' folders; each size of TRACE has its own.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def tasks(self) -> list[str]:
        """Names of the tasks that have a training file.

        Raises:
            DataError: no such folder, or no training file in it.
        """
        names = sorted(path.parent.name for path in self.folder.glob("*/train.json"))
        if not names:
            raise DataError(
                f"TRACE was looked for in {self.folder}, where there is no <Task>/train.json. "
                f"{where_to_put(self.folder, PUBLISHED_AT)}"
            )
        return names

    def parts(self, task: str) -> dict[str, Part]:
        """The rows of the training and the test file, and of ``eval.json`` if it exists.

        Raises:
            DataError: no such folder or task.
        """
        require_task(task, self.tasks(), where_to_put(self.folder, PUBLISHED_AT))
        files = {half: self.folder / task / f"{half}.json" for half in ("train", "eval", "test")}
        return {
            half: Part(_rows(path, task), (path,)) for half, path in files.items() if half != "eval" or path.is_file()
        }

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task, without test rows whose prompt is in the training rows, which a notice counts.

        Raises:
            DataError: no such folder, task or file, or a row that ``checks`` refuses.
        """
        return read_published(task, self.parts(task), checks)


def _rows(path: Path, task: str) -> Iterator[Example | BadRow]:
    yield from array_rows(json_document(path, task), path, partial(_example, task, path.stem))


def _example(task: str, half: str, row: dict[str, object], number: int, source: str) -> Example:
    prompt, answer = texts(row, keys=("prompt", "answer"))
    id_, remark = f"{task}-{half}-{number}", "" if answer.strip() else EMPTY_ANSWER
    return Example(id_, prompt, answer, task, source=source, body=_body(task, prompt), remark=remark)


def _body(task: str, prompt: str) -> Body | None:
    """The body of a prompt; None if the prompt does not have the published form."""
    if task == "Py150":
        return Body(0, len(prompt), keep="tail")
    before, behind = _AROUND_BODY.get(task, ("", ""))
    start, stop = prompt.find(before) + len(before), prompt.rfind(behind)
    return Body(start, stop) if before in prompt and before and start <= stop else None
