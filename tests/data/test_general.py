"""Instructions that no expert should take for its own, and their two parts that share none."""

import hashlib
import json
from collections import Counter

import pytest

from see_lightning.config.identity import GENERAL_VERSION
from see_lightning.data.example import Example
from see_lightning.data.general import (
    BUILT_IN,
    FILE,
    GENERAL,
    draw_evenly,
    general_rows,
    instruction_of,
    split_by_instruction,
)
from see_lightning.errors import DataError

KIND = {row["prompt"]: row["kind"] for row in map(json.loads, FILE.read_text(encoding="utf-8").splitlines())}
NEAR = {"question answering", "dialogue", "translation", "sentiment and classification", "summary and title"}


def test_the_package_has_hundreds_of_instructions_of_all_kinds_and_says_under_which_licence():
    rows = general_rows(BUILT_IN)
    assert len(rows) == len(KIND) >= 300
    assert len({instruction_of(row.prompt) for row in rows}) == len({row.id for row in rows}) == len(rows)
    assert len({row.prompt.partition("\n\n")[2] for row in rows} - {""}) == sum("\n\n" in row.prompt for row in rows)
    assert min(Counter(KIND.values()).values()) >= 10
    assert set(KIND.values()) > NEAR
    assert all(row.prompt == row.prompt.strip() for row in rows)
    assert "SPDX-License-Identifier: CC0-1.0" in FILE.with_name("general.jsonl.license").read_text()


def test_other_instructions_have_another_version_which_the_run_key_holds():
    known = {2: "836113c3cfc246a9"}
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()[:16]
    assert known == {GENERAL_VERSION: digest}, "raise GENERAL_VERSION and note the new digest here"


@pytest.mark.parametrize("refused", [0, 1, 48, 150, 206, 207, 250, 350, 412, 413])
def test_what_is_refused_and_what_thresholds_look_at_share_no_instruction(refused):
    rows = general_rows(BUILT_IN)
    learned, left = split_by_instruction(rows, refused)
    assert len(learned) == max(refused, len(rows) // 2)
    assert sorted(map(rows.index, [*learned, *left])) == list(range(len(rows)))
    assert not {instruction_of(row.prompt) for row in learned} & {instruction_of(row.prompt) for row in left}
    for part in (learned, left):
        if len(part) >= 60:
            assert {KIND[row.prompt] for row in part} >= NEAR
            assert len({KIND[row.prompt] for row in part} - NEAR) >= 8


@pytest.mark.parametrize("draw", range(20))
def test_a_draw_has_near_and_far_ones_and_hangs_on_nothing_else(draw):
    for part in split_by_instruction(general_rows(BUILT_IN), 48):
        drawn = draw_evenly(part, 24, draw)
        assert drawn == draw_evenly(part, 24, draw)
        assert len({row.id for row in drawn}) == 24
        kinds = {KIND[row.prompt] for row in drawn}
        assert len(kinds & NEAR) >= 4
        assert len(kinds - NEAR) >= 6
    assert draw_evenly(part, 24, draw) != draw_evenly(part, 24, draw + 1)
    assert sorted(row.id for row in draw_evenly(part, len(part), draw)) == sorted(row.id for row in part)
    assert draw_evenly(part, 0, draw) == []


def rows_of(*prompts):
    return [Example(str(place), prompt, "none", GENERAL) for place, prompt in enumerate(prompts)]


@pytest.mark.parametrize("refused", range(13))
def test_rows_with_one_instruction_stay_together_whatever_their_inputs_and_case(refused):
    rows = rows_of(*(f"{'Do' if n % 2 else 'do '} {n % 4}.\n\ninput {n}" for n in range(12)))
    learned, left = split_by_instruction(rows, refused)
    assert sorted(row.id for row in (*learned, *left)) == sorted(row.id for row in rows)
    assert not {row.prompt[3:5].strip(" .") for row in learned} & {row.prompt[3:5].strip(" .") for row in left}
    assert len(learned) == max(6, -(-refused // 3) * 3)


def test_one_instruction_is_for_one_part_alone():
    rows = rows_of(*(f"Translate.\n\n{n}" for n in range(5)))
    assert split_by_instruction(rows, 0) == ([], rows)
    assert split_by_instruction(rows, 1) == (rows, [])


def test_a_file_that_is_missing_or_damaged_is_named_and_an_answer_is_not_needed(tmp_path):
    file = tmp_path / "general.jsonl"
    with pytest.raises(DataError, match=r"general.jsonl"):
        general_rows(str(file))
    file.write_text('{"prompt": "do"}\n{"prompt": "rest", "answer": "no"}\n')
    assert [row.prompt for row in general_rows(str(file))] == ["do", "rest"]
    file.write_text('{"prompt": "do"}\n{"answer": "do"}\n')
    with pytest.raises(DataError, match=r"general.jsonl:2.*prompt"):
        general_rows(str(file))
