"""CSV files for spreadsheets: no text is computed, and numbers are numbers."""

import csv
import io
import re
from pathlib import Path

import pytest

import see_lightning
from see_lightning.reporting.report.sections import matrix_csv
from see_lightning.reporting.spreadsheets import csv_text


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\n=1", "＝1+1", "- a", "-", "++"])
def test_a_text_that_would_be_computed_has_an_apostrophe(text):
    ((cell,),) = csv.reader(io.StringIO(csv_text([[text]]), newline=""))
    assert cell == f"'{text}"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (-3.5, "-3.5"),
        (-2, "-2"),
        ("-0.25", "-0.25"),
        ("+1e5", "+1e5"),
        (None, ""),
        ("a=b", "a=b"),
        ("x\r=1", "x\\x0d=1"),
        (Path("-x"), "'-x"),
    ],
)
def test_numbers_and_other_texts_stay_as_they_are(value, cell):
    ((_, found),) = csv.reader(io.StringIO(csv_text([["", value]]), newline=""))
    assert found == cell


def test_a_matrix_survives_csv_exactly():
    tasks, rows = ["task, no. 1", "task 2"], [[80.1, None], [1 / 3, 100 / 7]]
    header, *lines = csv.reader(io.StringIO(matrix_csv({"tasks": tasks, "matrix": rows})))
    assert header == ["after", *tasks]
    assert [line[0] for line in lines] == tasks
    assert [[float(cell) if cell else None for cell in line[1:]] for line in lines] == rows


def test_the_matrix_has_no_formulas_and_everything_is_written_this_way():
    text = matrix_csv({"tasks": ["=1+1", "qa"], "matrix": [[80.0, None], [75.5, 60.0]]})
    assert text == "after,'=1+1,qa\n'=1+1,80.0,\nqa,75.5,60.0\n"
    package = Path(see_lightning.__file__).parent
    writers = {path.stem for path in package.rglob("*.py") if re.search(r"\bcsv\.\w*[wW]riter", path.read_text())}
    assert writers == {"spreadsheets"}
