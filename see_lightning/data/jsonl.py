"""The user's own tasks: two files for each task, or a data set saved to disk."""

from dataclasses import replace
from pathlib import Path

from see_lightning.config.checks import one_of
from see_lightning.data.checks import RowChecks
from see_lightning.data.files import (
    VALIDATION,
    files_at,
    formats,
    places_of,
    raw_rows,
    tasks_in,
    validation_places,
    validation_rows,
)
from see_lightning.data.forms import TRAIN_ON, RowReader
from see_lightning.data.reader import Part, read_halves, require_task
from see_lightning.data.split import Split
from see_lightning.errors import DataError


class JsonlReader:
    """Reads ``<task>.train.jsonl`` and ``<task>.test.jsonl``, or files of other formats.

    Each row has a form, which its columns tell; all rows of a file have the same. Texts are not changed.

    - ``prompt`` and ``answer`` or ``completion``;
    - ``instruction``, ``input`` and ``output``; the prompt is the instruction, a blank line and the input;
    - ``messages``: a conversation, see ``messages.read_messages``. The assistant's last message is the answer.

    A column of an answer may have a list: the first is trained on, and a generated answer gets its best score over all of
    them. The list may also be called ``answers``; behind ``messages`` these end with the user's. ``system`` is a system
    prompt of the row's own. ``id`` is unique within its task; the default is ``<task>-train-<row>`` or ``<task>-test-<row>``,
    in JSON lines with the number of the line.

    The formats of a file are those of ``files.FORMATS``. A data set of ``save_to_disk`` is a folder ``<task>`` with the
    splits ``train`` and ``test``. Validation rows may be added: ``<task>.validation.jsonl`` or a split ``validation``, also
    spelled ``valid`` or ``dev``.

    Args:
        folder: contains the files.
        train_on: of a training row with ``messages``, the answers that become examples: ``last``, or ``all``, each with the
            conversation before it as its prompt. Answers of weight 0 do not; a test row is its last answer.

    Raises:
        ConfigError: ``train_on`` is neither of the two.
    """

    def __init__(self, folder: str | Path, train_on: str = "last") -> None:
        one_of("benchmark.reader.train_on", train_on, TRAIN_ON)
        self.folder, self.train_on = Path(folder), train_on

    def tasks(self) -> list[str]:
        """Names of the tasks that have training rows.

        Raises:
            DataError: no such folder, or no training rows in it.
        """
        names = tasks_in(self.folder)
        if not names:
            raise DataError(
                f"{self.folder} holds no <task>.train.jsonl. Write <task>.train.jsonl and <task>.test.jsonl, with "
                f'lines like {{"prompt": "...", "answer": "..."}}, and set benchmark.reader.folder=DIR. Files may also be'
                f" {formats()}, or a folder <task> of save_to_disk with the splits train and test"
            )
        return names

    def parts(self, task: str) -> dict[str, Part]:
        """The rows of the two halves, and the validation rows if there are some.

        Raises:
            DataError: no such folder, task or file.
        """
        return self._parts(task)[0]

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task.

        Raises:
            DataError: no such folder, task or file, or a row that ``checks`` refuses.
        """
        parts, readers = self._parts(task)
        split = read_halves(task, parts, checks)
        return replace(split, notices=(*split.notices, *(line for reader in readers for line in reader.notices())))

    def _parts(self, task: str) -> tuple[dict[str, Part], list[RowReader]]:
        """The rows of the parts, and their readers, which have the notices once the rows are read."""
        require_task(task, self.tasks())
        places = places_of(self.folder, task)
        readers = {half: RowReader(task, half, self.train_on) for half in places}
        parts = {
            half: Part(readers[half].examples(raw_rows(place, task)), files_at(place)) for half, place in places.items()
        }
        if valid := validation_places(self.folder, task):
            reader = readers[VALIDATION[0]] = RowReader(task, VALIDATION[0], self.train_on)
            files = tuple(file for place in valid for file in files_at(place))
            parts[VALIDATION[0]] = Part(reader.examples(validation_rows(valid, task)), files)
        return parts, list(readers.values())
