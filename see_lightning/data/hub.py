"""Data sets of the Hugging Face Hub, or folders of parquet, JSON or CSV files, read with the ``datasets`` library."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Example
from see_lightning.data.reader import Part, RowError, made, read_halves, require_task
from see_lightning.data.split import Split
from see_lightning.data.tables import Row, csv_rows, json_rows
from see_lightning.data.texts import NoText, as_text, at, column_text, columns_of
from see_lightning.errors import ConfigError, DataError, Refusal, listed, nearest, with_cause
from see_lightning.files.text import holds_surrogate


@dataclass(frozen=True, slots=True)
class Source:
    """One task: a data set and how its columns become prompt and answer.

    Args:
        path: id on the Hub (``fancyzhx/ag_news``), or a folder of files or of ``save_to_disk``.
        prompt: the query, with columns in braces: ``"{question} {passage}"``. For a column that is no text, give a path to a
            text in it, ``{answers.text.0}``, or a format, ``{score:.1f}``.
        answer: column of the answer, or a text with columns in braces.
        labels: words by the answer column's values; by default the names of the data set's own features.
        name: the data set's configuration, if it has several.
        revision: commit, tag or branch; without one, results change when the data set does.
        train: name of the training rows' split.
        test: name of the test rows' split.
        validation: name of the validation rows' split; None: there is none.
    """

    path: str
    prompt: str
    answer: str
    labels: Mapping[Any, str] | None = None
    name: str | None = None
    revision: str | None = None
    train: str = "train"
    test: str = "test"
    validation: str | None = None


class HubReader:
    """Reads data sets by id, one for each task. Cells of CSV files and numbers of JSON files are texts, as spelled there.

    A row's id is ``<task>-<split>-<row>``, from 1.

    Args:
        datasets: by task name, the arguments of ``Source``.

    Raises:
        ConfigError: a task has an unknown argument, or lacks one.
    """

    def __init__(self, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        self.sources = {task: _source(task, node) for task, node in datasets.items()}

    def tasks(self) -> list[str]:
        """Names of the configured tasks."""
        return list(self.sources)

    def parts(self, task: str) -> dict[str, Part]:
        """The rows of the splits.

        Raises:
            DataError: no such task.
        """
        require_task(task, self.tasks())
        source = self.sources[task]
        splits = {"train": source.train, "validation": source.validation, "test": source.test}
        return {part: Part(_rows(task, source, split)) for part, split in splits.items() if split is not None}

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
    answer = source.answer if "{" in source.answer else f"{{{source.answer}}}"
    paths = [*columns_of(source.prompt), *columns_of(answer)]
    rows, columns, names = _load(task, source, split, paths)
    for path in paths:
        if columns and path not in columns and path.split(".")[0] not in columns:
            raise DataError(
                f"{task}: {source.path} has no column {path!r}.{nearest(path, columns)} There are: {listed(columns)}"
            )
    words = names if source.labels is None else _words(source.labels)

    def example(row: Row, number: int, place: str) -> Example:
        if isinstance(row, str):
            raise RowError(row)
        try:
            empty = [path for path in paths if at(row, path) is None]
            if empty:
                raise LookupError(f"column {empty[0]!r} is empty")
            prompt = column_text(source.prompt, row)
            target = column_text(answer, row) if words is None else _word(words, row, source.answer)
        except NoText as error:  # true of the whole column, not of this row
            raise DataError(f"{task}: {place}: {error}") from error
        except LookupError as error:
            raise RowError(str(error.args[0])) from error
        if holds_surrogate(prompt + target):
            raise RowError("it holds half a surrogate pair, which cannot be written as UTF-8")
        return Example(id=f"{task}-{split}-{number}", prompt=prompt, target=target, task=task, source=place)

    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            place = f"{source.path} {split}, row {number}"
            yield made(place, partial(example, row, number, place))
    except (Refusal, MemoryError):
        raise
    except Exception as error:  # of any library that reads the rows
        raise DataError(f"{task}: {source.path} {split}, row {number + 1}: {with_cause(error)[:300]}") from error


def _words(labels: Mapping[Any, str]) -> dict[str, str]:
    """Words by the spelling of a value; files spell true and false in lower case."""
    return {spelled: word for value, word in labels.items() for spelled in {str(value), _spelled(value)}}


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _word(words: Mapping[str, str], row: Mapping[str, Any], path: str) -> str:
    value = at(row, path)
    if str(value) in words:
        return words[str(value)]
    if not isinstance(value, str | int | float):
        as_text(value, path)
    # -1 marks hidden answers.
    raise LookupError(f"the answer {value!s:.100} has no word in labels, which has: {listed(words)}")


Loaded = tuple[Iterable[Row], Sequence[str], dict[str, str] | None]


def _load(task: str, source: Source, split: str, paths: Sequence[str]) -> Loaded:
    """The rows of a split, their columns, and the data set's own names of the answer's values."""
    try:
        # Imported here: it takes seconds, and only this reader needs it.
        from datasets import DownloadManager, load_dataset, load_dataset_builder, load_from_disk
    except ImportError as error:
        raise DataError(
            f"{task}: data sets of the Hub are read by a library; pip install 'see-lightning[hub]'"
        ) from error
    try:
        if (Path(source.path) / "dataset_dict.json").is_file():
            data = load_from_disk(source.path)[split]
        else:
            builder = load_dataset_builder(source.path, source.name, revision=source.revision)
            read = {"CsvConfig": csv_rows, "JsonConfig": json_rows}.get(type(builder.config).__name__)
            if source.revision and Path(source.path).is_dir():
                raise DataError(f"{task}: revision={source.revision} has no effect on a folder ({source.path}).")
            if read:
                files = builder.config.data_files
                if split not in files:
                    raise ValueError(f"it has the splits {listed(files)}")
                more = (builder.config.sep,) if read is csv_rows else ()
                places = DownloadManager().download_and_extract(list(files[split]))
                rows = [row for place in places for row in read(Path(place), *more)]
                columns = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
                return rows, columns, _names(builder.info.features or {}, source.answer)
            data = load_dataset(source.path, source.name, split=split, revision=source.revision)
    except (Refusal, MemoryError):
        raise
    except Exception as error:  # of any library that reads files or the network
        reason = with_cause(error).rstrip(".")
        raise DataError(
            f"{task}: the split {split!r} of {source.path} cannot be read: {reason}. See benchmark.reader.datasets.{task}: "
            f"path, name, revision, train, test; a machine without network needs the data in its cache (HF_HOME), or a folder"
        ) from error
    used = {column for path in paths for column in (path, path.split(".")[0]) if column in data.column_names}
    for column in used:
        if hasattr(data.features[column], "decode_example"):
            raise DataError(
                f"{task}: column {column!r} of {source.path} holds no text but {type(data.features[column]).__name__}s"
            )
    return data.select_columns(sorted(used)), data.column_names, _names(data.features, source.answer)


def _names(features: Mapping[str, Any], answer: str) -> dict[str, str] | None:
    names = getattr(features.get(answer), "names", None)
    return None if names is None else {str(number): name for number, name in enumerate(names)}
