"""Five tasks with choices for ``see-lightning harness --include-path benchmarks/general_ability``, read from local data.

    SEE_DATA=DIR see-lightning harness RUN_DIR --include-path benchmarks/general_ability --tasks general

General ability is what a run did not learn: choose a run whose tasks are none of these. Each function reads the test rows
of one benchmark in ``$SEE_DATA`` and returns them as ``question``, ``choices`` and ``label``, the index of the right
choice; of the metadata that the harness passes they need none. The harness scores the text of each choice after the
question; letters would tell little of a small model.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

Row = dict[str, Any]  # question: str, choices: list[str], label: int
LETTERED = re.compile(r"\(([A-E])\)(.*?)(?=\([A-E]\)|$)", re.DOTALL)
LINES = re.compile(r"^([A-E])[.:] (.*)$", re.MULTILINE)


def copa(**_: object) -> DatasetDict:
    """COPA: the cause or effect of a sentence, of two sentences."""
    return _rows("cl_benchmark/COPA/COPA/test.json", copa_row)


def commonsenseqa(**_: object) -> DatasetDict:
    """CommonsenseQA, from Natural Instructions: one of five words."""
    return _rows("natural_instructions/task073_commonsenseqa_answer_generation/test.json", commonsenseqa_row)


def scienceqa(**_: object) -> DatasetDict:
    """ScienceQA, from TRACE, without pictures: one of two to five texts."""
    return _rows("trace_500/ScienceQA/test.json", scienceqa_row)


def sst2(**_: object) -> DatasetDict:
    """SST-2, from Natural Instructions: whether a sentence on a film is positive."""
    return _rows("natural_instructions/task363_sst2_polarity_classification/test.json", sst2_row)


def agnews(**_: object) -> DatasetDict:
    """AG News, from CL_Benchmark: one of four topics; the first 100 rows."""
    return _rows("cl_benchmark/TC/agnews/test.json", agnews_row, first=100)


def copa_row(row: Row) -> Row:
    """The two sentences, A and B, become the choices."""
    question, _, choices = row["sentence"].partition(" Choose one between A and B.\n")
    return _lettered(question, LINES.findall(choices), row["label"])


def commonsenseqa_row(row: Row) -> Row:
    """The words behind (A) to (E) become the choices."""
    question, _, choices = row["input"].partition("\n(A)")
    (letter,) = row["output"]
    return _lettered(question, LETTERED.findall(f"(A){choices}"), letter)


def scienceqa_row(row: Row) -> Row:
    """The lines below "Choices:" become the choices."""
    question, _, choices = row["prompt"].partition("\n\nChoices:\n")
    return _lettered(question.partition("Question:\n")[2], LINES.findall(choices), row["answer"][0])


def sst2_row(row: Row) -> Row:
    """POS and NEG become words."""
    output = row["output"] if isinstance(row["output"], str) else row["output"][0]
    question = f"{row['input']}\nIs this sentence on a film negative or positive?"
    return {"question": question, "choices": ["negative", "positive"], "label": ["NEG", "POS"].index(output)}


def agnews_row(row: Row) -> Row:
    """Four topics are the choices."""
    topics = ["World", "Sports", "Business", "Science or Technology"]
    return {"question": f"{row['sentence'].strip()}\nTopic:", "choices": topics, "label": topics.index(row["label"])}


def _lettered(question: str, choices: Sequence[tuple[str, str]], letter: str) -> Row:
    """A row whose choices have letters; the letters are dropped."""
    letters = [name for name, _ in choices]
    return {"question": question, "choices": [text.strip() for _, text in choices], "label": letters.index(letter)}


def _rows(file: str, row: Callable[[Row], Row], *, first: int | None = None) -> DatasetDict:
    """The test rows of a file in ``$SEE_DATA``.

    Args:
        file: its path there.
        row: makes a row of ours from one of the file's.
        first: number of rows to take; None takes all.

    Raises:
        FileNotFoundError: ``SEE_DATA`` is not set, or the file is not there.
    """
    if "SEE_DATA" not in os.environ:
        raise FileNotFoundError("SEE_DATA is not set; give the folder of the benchmarks' data: SEE_DATA=DIR")
    content = json.loads(Path(os.environ["SEE_DATA"], file).read_text(encoding="utf-8"))
    found = content["Instances"] if isinstance(content, dict) else content
    return DatasetDict(test=Dataset.from_list([row(one) for one in found[:first]]))
