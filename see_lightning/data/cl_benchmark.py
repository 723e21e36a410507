"""O-LoRA's fifteen classification tasks (Wang et al., Findings of EMNLP 2023), in the layout of its repository."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Body, Example
from see_lightning.data.reader import (
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

PUBLISHED_AT = "https://github.com/cmnfriend/O-LoRA, folder CL_Benchmark"

_QUESTIONS = {
    "TC": "What is the topic of the following paragraph?",
    "SC": "What is the sentiment of the following paragraph?",
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"?',
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning?',
    "BoolQA": "According to the following passage, is the question true or false?",
    "MultiRC": "According to the following passage and question, is the candidate answer true or false?",
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence?",
    "COPA": "",  # its sentences hold the question and the options
}


class ClBenchmarkReader:
    """Reads ``<type>/<task>/{train,test,labels}.json``: arrays of ``{"label", "sentence"}``, and an array of the labels.

    The prompt is O-LoRA's: the question of the task's type, the options, the sentence, ``Answer:``. Texts are not changed;
    ids are ``<task>-<half>-<row>``. ``dev.json``, if it has rows that are no test rows, is the
    validation split; as published it equals ``test.json``. A row whose label is not in
    ``labels.json`` is read as O-LoRA reads it, with a notice: for MNLI's test rows without a label every listed answer is
    wrong. If a prompt is too long for the model, its sentence may be cut at the end; O-LoRA cuts the end of the prompt.

    Args:
        folder: contains the folders of the types.
        task_name: begin every prompt with the names of type and task, as O-LoRA does. This gives the task away to the model,
            so that routing and forgetting are no longer measured.
    """

    def __init__(self, folder: str | Path, *, task_name: bool = False) -> None:
        self.folder, self.task_name = Path(folder), task_name

    def tasks(self) -> list[str]:
        """Names of the tasks that have a training file.

        Raises:
            DataError: no such folder, or no training file in it.
        """
        return sorted(self._folders())

    def parts(self, task: str) -> dict[str, Part]:
        """The rows of the training and the test file, and of ``dev.json`` if it exists.

        Raises:
            DataError: no such folder or task, a type without a prompt, or no list of labels.
        """
        folders = self._folders()
        require_task(task, sorted(folders), where_to_put(self.folder, PUBLISHED_AT))
        folder = folders[task]
        labels = json_document(folder / "labels.json", task)
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
            raise DataError(f"{folder / 'labels.json'}: an array of at least one string is needed")
        before = _before_sentence(folder, labels, task_name=self.task_name)
        files = {half: folder / f"{half}.json" for half in ("train", "dev", "test")}
        return {
            half: Part(_rows(path, task, before, labels), (path,))
            for half, path in files.items()
            if half != "dev" or path.is_file()
        }

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task.

        Raises:
            DataError: no such folder, task or file, or a row that ``checks`` refuses.
        """
        return read_published(task, self.parts(task), checks)

    def _folders(self) -> dict[str, Path]:
        """The folder of each task by name."""
        folders = {path.parent.name: path.parent for path in sorted(self.folder.glob("*/*/train.json"))}
        if not folders:
            raise DataError(
                f"O-LoRA's tasks were looked for in {self.folder}, where there is no <type>/<task>/train.json. "
                f"{where_to_put(self.folder, PUBLISHED_AT)}"
            )
        return folders


def _before_sentence(folder: Path, labels: list[str], *, task_name: bool) -> str:
    kind = folder.parent.name
    if kind not in _QUESTIONS:
        raise DataError(f"{folder}: no prompt for tasks of type {kind!r}; there are: {', '.join(_QUESTIONS)}")
    names = f"Task:{kind}\nDataset:{folder.name}\n" if task_name else ""
    question = _QUESTIONS[kind]
    return names + (f"{question} Choose one from the option.\nOption: {', '.join(labels)} \n" if question else "")


def _rows(path: Path, task: str, before: str, labels: list[str]) -> Iterator[Example | BadRow]:
    yield from array_rows(json_document(path, task), path, partial(_example, task, path.stem, before, labels))


def _example(
    task: str, half: str, before: str, labels: list[str], row: dict[str, object], number: int, source: str
) -> Example:
    sentence, label = texts(row, keys=("sentence", "label"))
    remarks = [] if sentence.strip() else ["the sentence is empty"]
    if label not in labels:
        remarks.append(f"the label {label!r:.100} is none of labels.json, so none of the options is right")
    return Example(
        id=f"{task}-{half}-{number}",
        prompt=f"{before}{sentence}\nAnswer:",
        target=label,
        task=task,
        source=source,
        body=Body(len(before), len(before) + len(sentence)),
        remark=", and ".join(remarks),
    )
