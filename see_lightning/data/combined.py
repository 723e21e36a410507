"""Tasks of several benchmarks, each read by the reader of its own benchmark."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from see_lightning.data.checks import RowChecks
from see_lightning.data.reader import Part, Reader, require_task
from see_lightning.data.split import Split
from see_lightning.errors import DataError

T = TypeVar("T")


class CombinedReader:
    """Reads the tasks of several readers. Rows, ids and prompts are those of the task's own reader.

    Args:
        readers: by the name of their source, which errors name.
    """

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.readers = dict(readers)

    def tasks(self) -> list[str]:
        """Names of the tasks of all sources that have files, source by source.

        Raises:
            DataError: no source has files.
        """
        found, missing = self._found()
        if not found:
            raise DataError("; ".join(missing) or "no source of tasks is named")
        return list(dict.fromkeys(task for tasks in found.values() for task in tasks))

    def parts(self, task: str) -> dict[str, Part]:
        """The published parts of one task, see its source's reader.

        Raises:
            DataError: no source has the task, two have it, or a file is missing or malformed.
        """
        return self._by_owner(task, lambda reader: reader.parts(task))

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task, see its source's reader.

        Raises:
            DataError: no source has the task, two have it, a file is missing, or ``checks`` refuses a row.
        """
        return self._by_owner(task, lambda reader: reader.read(task, checks))

    def _by_owner(self, task: str, use: Callable[[Reader], T]) -> T:
        """What the reader of the task's source returns; its errors begin with the name of the source."""
        found, missing = self._found()
        owners = [source for source, tasks in found.items() if task in tasks]
        if len(owners) > 1:
            raise DataError(f"{task}: {' and '.join(owners)} have a task of this name; leave one of these sources out")
        if not owners:
            require_task(task, [one for tasks in found.values() for one in tasks], "; ".join(missing))
        try:
            return use(self.readers[owners[0]])
        except DataError as error:
            raise DataError(f"{owners[0]}: {error}") from error

    def _found(self) -> tuple[dict[str, list[str]], list[str]]:
        """The tasks of each source that has files, and one reason for each source without."""
        found: dict[str, list[str]] = {}
        missing = []
        for source, reader in self.readers.items():
            try:
                found[source] = reader.tasks()
            except DataError as error:
                missing.append(f"{source}: {error}")
        return found, missing
