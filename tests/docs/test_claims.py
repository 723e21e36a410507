"""Every number of docs/claims.md is one that this repository measured: it stands in its results or follows from them."""

import re
from pathlib import Path

import pytest

from see_lightning.reporting.leaderboard import _difference, boards
from see_lightning.reporting.words import number

ROOT = Path(__file__).parents[2]
ROWS = [
    line for line in (ROOT / "docs" / "claims.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
][2:]
VERDICTS = ("confirmed", "refuted", "undecided")


def test_each_claim_has_numbers_a_verdict_and_an_experiment():
    assert len(ROWS) >= 10
    for row in ROWS:
        claim, measured, verdict, _ = row.strip("|").split(" | ")
        assert re.search(r"\d", measured), claim
        assert any(word in verdict for word in VERDICTS), claim


@pytest.fixture(scope="module")
def lines():
    """The lines of all tables, which begin with the command of their runs."""
    documents = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("RESULTS.md", "LEADERBOARD.md"))
    return documents.splitlines()


@pytest.fixture(scope="module")
def differences():
    """All differences between two rows of ``rivals_superni_5``, as they are written."""
    (board,) = [one for one in boards(ROOT / "results") if one.title.startswith("rivals_superni_5")]
    found = {}
    for one in board.rows:
        for other in board.rows:
            if one is not other and (between := _difference(one.results, other.results)[0]):
                ends = f"({number(between.low, digits=1)} to {number(between.high, digits=1)})"
                found[f"{number(between.mean, digits=2)} {ends}"] = (one.group.first.key, other.group.first.key)
    return found


def of_experiment(name, lines):
    return [line for line in lines if re.search(rf"experiment={name}(?!\w)", line)]


def numbers(line):
    return set(re.findall(r"[−\d][\d,]*\.\d+", line))


def test_each_number_stands_in_a_table_of_the_experiment_named_before_it(lines, differences):
    for row in ROWS:
        measured = row.split(" | ")[1]
        for difference in re.findall(r"−?\d+\.\d+ \(−?\d+\.\d+ to −?\d+\.\d+\)", measured):
            assert difference in differences, (
                f"{difference} is no difference of two settings; see-lightning leaderboard --between"
            )
            measured = measured.replace(difference, "")
        before, *told = re.split(r"`(\w+_\d+\w*)`", measured)
        assert not re.search(r"\d\.\d", before), f"a number before the name of its experiment: {row}"
        for experiment, text in zip(told[::2], told[1::2], strict=True):
            found = set().union(*map(numbers, of_experiment(experiment, lines)))
            for value in re.findall(r"(?<![\d=])−?\d[\d,]*\.\d+", text):
                assert value in found, f"{value} stands in no table of {experiment}: {row}"


def test_a_number_before_the_name_of_a_method_or_a_rule_is_its_own(lines):
    pairs = 0
    for row in ROWS:
        measured = row.split(" | ")[1]
        for experiment, text in re.findall(r"`(\w+_\d+\w*)`([^`]*(?:`(?!\w+_\d+\w*`)[^`]*`[^`]*)*)", measured):
            for value, name in re.findall(r"(\d+\.\d+) (?:of )?`(?:rule=)?(\w+)`", text):
                own = [
                    line for line in of_experiment(experiment, lines) if re.search(rf"(?:method|rule)={name}\b", line)
                ]
                assert any(value in numbers(line) for line in own), f"{value} is not {name}'s: {row}"
                pairs += 1
    assert pairs >= 8
