"""The user's own tasks: two files for each task, with one JSON object per line."""

from pathlib import Path

from see_lightning.data.checks import RowChecks
from see_lightning.data.reader import Part, json_lines, read_halves, require_task
from see_lightning.data.split import Split
from see_lightning.errors import DataError


class JsonlReader:
    """Reads ``<task>.train.jsonl`` and ``<task>.test.jsonl``.

    Each line is an object with the strings ``prompt`` and ``answer``, which are not changed, and optionally an ``id`` that is
    unique within its task; the default is ``<task>-train-<line>`` or ``<task>-test-<line>``. ``answer`` may be a list: the
    first is trained on, and a generated answer gets its best score over all of them.

    Args:
        folder: contains the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def tasks(self) -> list[str]:
        """Names of the tasks that have a training file.

        Raises:
            DataError: no such folder, or no training file in it.
        """
        names = sorted(path.name.removesuffix(".train.jsonl") for path in self.folder.glob("*.train.jsonl"))
        if not names:
            raise DataError(
                f"{self.folder} holds no <task>.train.jsonl. Write <task>.train.jsonl and <task>.test.jsonl, with "
                f'lines like {{"prompt": "...", "answer": "..."}}, and set benchmark.reader.folder=DIR'
            )
        return names

    def parts(self, task: str) -> dict[str, Part]:
        """The rows of the two files.

        Raises:
            DataError: no such folder, task or file.
        """
        require_task(task, self.tasks())
        files = {half: self.folder / f"{task}.{half}.jsonl" for half in ("train", "test")}
        return {
            half: Part(
                json_lines(path, task=task, prompt_key="prompt", answer_key="answer", id_prefix=f"{task}-{half}-"),
                (path,),
            )
            for half, path in files.items()
        }

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task.

        Raises:
            DataError: no such folder, task or file, or a row that ``checks`` refuses.
        """
        return read_halves(task, self.parts(task), checks)
