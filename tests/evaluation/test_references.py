"""What no answer can reach and what a score cannot tell apart is found on the references, with what to type instead."""

import pytest

from see_lightning.data.example import Example
from see_lightning.evaluation.labels import LABELS
from see_lightning.evaluation.references import MOST, confused, score_notices, unreached
from see_lightning.evaluation.scores import SCORES, score_fn

SETTING = "++benchmark.tasks.t.score={}"


def rows(*targets: str) -> list[Example]:
    return [Example(str(n), f"Query {n}?", target, "t") for n, target in enumerate(targets)]


def told(score: str, test: list[Example], train: list[Example] | None = None) -> list[str]:
    return score_notices("t", score, test, train or [], SETTING)


@pytest.mark.parametrize(
    ("score", "targets", "share", "instead"),
    [
        ("rouge_l_google", ("पानी", "घर", "a house"), "2 of 3 (67%)", "rouge_l"),
        ("rouge_l_google", ("水", "房子。"), "2 of 2 (100%)", "rouge_l"),
        ("rouge_l_google", ("вода", "?!"), "2 of 2 (100%)", "rouge_l"),
        ("rouge_l_sapt", ("Input: 1 Output: 2", "b"), "1 of 2 (50%)", "rouge_l"),
        ("rouge_l_trace", ("...", "a b."), "1 of 2 (50%)", "rouge_l"),
        ("edit_similarity", ("<STR_LIT>", "x = 1", "<CHAR_LIT><STR_LIT>"), "2 of 3 (67%)", "rouge_l"),
        ("exact_match_olora", ("Answer: yes", "no"), "1 of 2 (50%)", "accuracy"),
        ("exact_match_sapt", ("Output: yes", "no"), "1 of 2 (50%)", "accuracy"),
    ],
)
def test_a_reference_that_scores_less_than_100_against_itself_is_told_with_its_share(score, targets, share, instead):
    (first, *_) = told(score, rows(*targets))
    assert first.startswith(f"t: {share} test references score less than 100 against themselves by {score}, such as '")
    assert first.endswith(f"; ++benchmark.tasks.t.score={instead} reaches all")
    assert not told(instead, rows(*targets))


@pytest.mark.parametrize(
    ("score", "targets", "pair", "instead"),
    [
        ("accuracy", ("C", "C#", "Java"), "'C' and 'C#'", "exact_match"),
        ("accuracy", ("-5", "5", "6"), "'-5' and '5'", "exact_match"),
        ("accuracy", ("US", "us", "them"), "'US' and 'us'", "exact_match"),
        ("exact_match_olora", ("3.5", "35", "7"), "'3.5' and '35'", "accuracy"),
        ("exact_match_olora", ("C++", "C", "D"), "'C++' and 'C'", "accuracy"),
        ("exact_match_sapt", ("-1", "1", "2"), "'-1' and '1'", "exact_match"),
        ("first_char_trace", ("neutral\nas", "negative\nas", "positive"), "'neutral' and 'negative'", "accuracy"),
        ("rouge_l_google", ("universe", "university", "x"), "'universe' and 'university'", "rouge_l"),
        ("rouge_l_google", ("C", "C#", "D"), "'C' and 'C#'", "rouge_l"),
        ("rouge_l_trace", ("3.5", "3 5", "6"), "'3.5' and '3 5'", "rouge_l"),
    ],
)
def test_labels_that_are_one_to_a_score_are_told_with_one_that_tells_them_apart(score, targets, pair, instead):
    (line,) = told(score, rows(*targets, targets[2]))
    assert line.startswith(f"t: 2 of 4 (50%) test references are the same as others to {score}, such as {pair}: ")
    assert line.endswith(f"++benchmark.tasks.t.score={instead} tells them apart")
    assert not told(instead, rows(*targets))


def test_a_reference_that_an_empty_answer_meets_is_told():
    (line,) = told("exact_match_olora", rows("?!", "yes"))
    assert "1 of 2 (50%) test references" in line
    assert "'?!' and an empty answer" in line


def test_a_label_that_only_training_rows_have_is_one_that_may_be_answered():
    assert told("exact_match_olora", rows("C", "Java")) == []
    (line,) = told("exact_match_olora", rows("C", "Java"), rows("C#", "Java"))
    assert "1 of 2 (50%)" in line


def test_of_several_references_one_that_is_reached_is_enough_and_they_may_look_alike():
    several = Example("a", "?", "पानी", "t", alternatives=("water",))
    assert unreached("rouge_l_google", [several, *rows("घर")]) == rows("घर")
    alike = Example("b", "?", "C#", "t", alternatives=("c#", "C"))
    assert confused("accuracy", [alike]) == {}
    assert confused("accuracy", [alike, *rows("c", "d")]) == {"C#": "c", "c#": "c", "C": "c", "c": "C#"}


def test_where_no_score_does_better_the_notice_says_so():
    (line,) = told("accuracy", rows("a  b.", "a b"))
    assert line.endswith("++benchmark.tasks.t.score=exact_match tells them apart")
    (line,) = told("exact_match_olora", rows("a-b", "a b", "a.b", "A.B!", "a.b?"), rows("a b "))
    assert line.endswith("++benchmark.tasks.t.score=exact_match tells them apart")


def test_the_work_is_bounded_and_the_share_is_of_the_rows_that_were_looked_at():
    many = rows(*(f"word{n}" for n in range(MOST)), *["पानी"] * 50)
    assert told("rouge_l_google", many) == []
    (line,) = told("rouge_l_google", many[::-1])
    assert f"50 of {MOST} (10%)" in line


@pytest.mark.parametrize("score", sorted(SCORES))
def test_of_plain_words_there_is_nothing_to_tell_whatever_the_score(score):
    assert told(score, rows("apple", "beach", "cloud and sky"), rows("desert", "apple")) == []


@pytest.mark.parametrize("score", LABELS)
def test_what_is_told_of_labels_is_all_that_is_the_same_to_their_score(score):
    labels = ["C", "C#", "c", "3.5", "35", "-5", "5", "yes", "Yes.", "...", "1", "नहीं", "हाँ"]
    same = score_fn(score)
    expected = {a for a in labels if any(same(b, a) == 100 for b in (*labels, "") if b != a)}
    assert set(confused(score, rows(*labels))) == expected
    assert [row.target for row in unreached(score, rows(*labels))] == [a for a in labels if same(a, a) < 100]
