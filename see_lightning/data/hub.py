"""Data sets of the Hugging Face Hub, or a folder of parquet, JSON or CSV files, read by the ``datasets`` library."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from string import Formatter
from typing import Any

from see_lightning.config import ConfigError, nearest
from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import DataError, Example
from see_lightning.data.reader import Part, read_halves, require_task
from see_lightning.data.split import Split
from see_lightning.refusals import with_cause


@dataclass(frozen=True, slots=True)
class Source:
    """One task: a data set and how its columns become prompt and answer.

    Args:
        path: id on the Hub (``fancyzhx/ag_news``), or a folder of files or of ``save_to_disk``.
        prompt: the query, with columns in braces: ``"{question} {passage}"``.
        answer: column of the answer.
        labels: words by the answer column's values; by default the names that the data set itself has for them.
        name: the data set's configuration, where it has several.
        revision: commit, tag or branch; without one, the numbers depend on the day.
        train: name of the training rows' split.
        test: name of the test rows' split.
    """

    path: str
    prompt: str
    answer: str
    labels: Mapping[Any, str] | None = None
    name: str | None = None
    revision: str | None = None
    train: str = "train"
    test: str = "test"


class HubReader:
    """Reads data sets by id, a task each. A row's id is ``<task>-<split>-<row>``, from 1.

    Args:
        datasets: by task name, the arguments of ``Source``.

    Raises:
        ConfigError: a task has an argument too many or too few.
    """

    def __init__(self, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        self.sources = {task: _source(task, node) for task, node in datasets.items()}

    def tasks(self) -> list[str]:
        """Names of the tasks that are configured."""
        return list(self.sources)

    def parts(self, task: str) -> dict[str, Part]:
        """The rows of the two splits.

        Raises:
            DataError: no such task.
        """
        require_task(task, self.tasks())
        source = self.sources[task]
        return {
            half: Part(_rows(task, source, split)) for half, split in (("train", source.train), ("test", source.test))
        }

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task.

        Raises:
            DataError: no such task, data set, split or column, or a row that ``checks`` refuses.
        """
        return read_halves(task, self.parts(task), checks)


def _source(task: str, node: Mapping[str, Any]) -> Source:
    known = [field.name for field in fields(Source)]
    where = f"benchmark.reader.datasets.{task}"
    for key in node:
        if key not in known:
            raise ConfigError(f"{where} takes no {key!r}.{nearest(str(key), known)} It takes: {', '.join(known)}.")
    missing = [key for key in ("path", "prompt", "answer") if key not in node]
    if missing:
        raise ConfigError(f"{where}.{missing[0]} is not set; every data set needs path, prompt and answer.")
    return Source(**node)


def _rows(task: str, source: Source, split: str) -> Iterator[Example | BadRow]:
    data = _load(task, source, split)
    columns = [column for _, column, _, _ in Formatter().parse(source.prompt) if column is not None]
    absent = [column for column in (*columns, source.answer) if column not in data.column_names]
    if absent:
        raise DataError(
            f"{task}: {source.path} has no column {absent[0]!r}.{nearest(absent[0], data.column_names)} There are: "
            f"{', '.join(data.column_names)}"
        )
    if source.labels is None:
        names = getattr(data.features[source.answer], "names", None)
        words = None if names is None else {str(number): name for number, name in enumerate(names)}
    else:
        words = {str(value): word for value, word in source.labels.items()}
    for number, row in enumerate(data, start=1):
        place = f"{source.path} {split}, row {number}"
        empty = [column for column in (*columns, source.answer) if row[column] is None]
        answer = str(row[source.answer])
        if empty:
            yield BadRow(place, f"column {empty[0]!r} is empty")
        elif words is not None and answer not in words:
            # -1 stands for answers that are kept secret.
            yield BadRow(place, f"the answer {answer} has no word in labels, which has: {', '.join(words)}")
        else:
            yield Example(
                id=f"{task}-{split}-{number}",
                prompt=source.prompt.format(**{column: row[column] for column in columns}),
                target=answer if words is None else words[answer],
                task=task,
                source=place,
            )


def _load(task: str, source: Source, split: str) -> Any:
    try:
        # Late: it takes seconds, and only this reader needs it.
        from datasets import load_dataset, load_from_disk
    except ImportError as error:
        raise DataError(
            f"{task}: data sets of the Hub are read by a library; pip install 'see-lightning[hub]'"
        ) from error
    folder = Path(source.path)
    try:
        if (folder / "dataset_dict.json").is_file():
            return load_from_disk(source.path)[split]
        return load_dataset(source.path, source.name, split=split, revision=source.revision)
    except Exception as error:  # of whatever reads files or the network, such as a proxy's library that is missing
        reason = with_cause(error).rstrip(".")
        raise DataError(
            f"{task}: the split {split!r} of {source.path} cannot be read: {reason}. See benchmark.reader.datasets.{task}: "
            f"path, name, revision, train, test; a machine without network needs the data in its cache (HF_HOME), or a folder"
        ) from error
