"""Scores against the packages that SSR and Tk-Instruct use."""

import random
import subprocess
import sys

import jieba
import pytest
from rouge_chinese import Rouge
from rouge_score.rouge_scorer import RougeScorer

from see_lightning.evaluation.scores import SCORES, MeanScore, lcs_length, rouge_l, rouge_l_google, score_fn

PIECES = [
    *["the", "cat", "sat", "on", "a", "mat", "Mat", "running", "ran", "don't", "C++", "3.14", "50%", "e-mail", "naïve"],
    *[".", ",", "?", "!", "...", "......", "........more", "“", "”", "’", "……", ":", "<<pos>>", "$", "_", "-"],
    *["你好", "世界", "。", "！", "？”", "，", "我来到北京清华大学"],
    *["\n", "\n\n", "\r\n", "  ", "\t", " \n ", "\u3000", "\x0b"],
]
HAND_MADE = [
    ("", "yes"),
    ("  \n", "yes"),
    ("yes", " "),
    ("Positive", "positive"),
    ("a b c d", "a b c d."),
    ("['x', 'y', 'z']", "['x', 'y', 'w']"),
    ("the the the", "the"),
    ("\n\nyes", "yes"),
    ("yes\n\n", "yes"),
    ("one\n \n \ntwo", "one two"),
    ("why?\nbecause", "why? because"),
    ("wait..............now", "wait now"),
    ("Someone was running from the cops and got into a wreck.", "Someone was in a wreck."),
    ("我来到北京清华大学。你好？“是的”！", "我来到了清华大学。你好！"),
]


def random_pairs(count: int) -> list[tuple[str, str]]:
    draw = random.Random(0)
    glue = ["", " ", " "]

    def text() -> str:
        return "".join(draw.choice(PIECES) + draw.choice(glue) for _ in range(draw.randint(0, 25)))

    return [(text(), text()) for _ in range(count)]


def ssr_metric(text: str, target: str) -> float:
    """SSR's metric.py, with the packages that it calls."""
    hypothesis, reference = " ".join(jieba.cut(text)), " ".join(jieba.cut(target))
    if not hypothesis.split() or not reference.split():
        return 0.0
    return float(round(Rouge(metrics=["rouge-l"]).get_scores(hypothesis, reference)[0]["rouge-l"]["f"] * 100, 4))


@pytest.mark.parametrize(("text", "target"), HAND_MADE)
def test_rouge_l_is_what_ssr_computes_on_hand_made_cases(text, target):
    assert rouge_l(text, target) == ssr_metric(text, target)


def test_rouge_l_is_what_ssr_computes_on_random_texts():
    for text, target in random_pairs(1000):
        assert rouge_l(text, target) == ssr_metric(text, target), (text, target)


def test_rouge_l_google_is_what_rouge_score_computes():
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for text, target in HAND_MADE + random_pairs(500):
        expected = 100 * scorer.score(target, text)["rougeL"].fmeasure
        assert rouge_l_google(text, target) == pytest.approx(expected, abs=1e-4), (text, target)


def test_the_longest_common_subsequence_is_that_of_the_textbook_table():
    draw = random.Random(1)
    for _ in range(300):
        first = draw.choices("abc", k=draw.randint(0, 80))
        second = draw.choices("abcd", k=draw.randint(0, 80))
        table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, x in enumerate(first):
            for j, y in enumerate(second):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert lcs_length(first, second) == table[-1][-1]


@pytest.mark.parametrize(
    ("name", "text", "target", "expected"),
    [
        ("exact_match", " True\n", "True", 100.0),
        ("exact_match", "true", "True", 0.0),
        ("exact_match", "True.", "True", 0.0),
        ("accuracy", " “true.” ", "True", 100.0),
        ("accuracy", "是。", "是", 100.0),
        ("accuracy", "untrue", "True", 0.0),
        ("accuracy", "?", "!", 0.0),
        ("accuracy", "", "True", 0.0),
        ("accuracy", "$5", "5", 0.0),
    ],
)
def test_labels_are_compared_as_documented(name, text, target, expected):
    assert score_fn(name)(text, target) == expected


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_gives_100_to_the_reference_itself_and_0_to_nothing(name):
    assert score_fn(name)("The cat sat, twice.", "The cat sat, twice.") == pytest.approx(100.0)
    assert score_fn(name)("", "The cat sat, twice.") == 0.0


def test_an_unknown_score_is_refused_with_the_nearest_name_and_the_list():
    with pytest.raises(ValueError, match=r"'rougel'.*Did you mean 'rouge_l'\?.*exact_match"):
        score_fn("rougel")


@pytest.mark.parametrize("name", sorted(SCORES))
def test_the_mean_score_is_the_mean_of_the_scores_however_they_arrive(name):
    pairs = [(text, target) for text, target in random_pairs(60) if target]
    whole, parts, other = MeanScore(name), MeanScore(name), MeanScore(name)
    whole.update([text for text, _ in pairs], [target for _, target in pairs])
    for text, target in pairs:
        parts.update([text], [target])
    other.update(["yes"], ["yes"])
    expected = sum(score_fn(name)(*pair) for pair in pairs) / len(pairs)
    assert parts.compute().item() == pytest.approx(expected, abs=1e-9)
    whole.merge_state(other)
    assert whole.compute().item() == pytest.approx((expected * len(pairs) + 100) / (len(pairs) + 1))


def test_a_mean_score_wants_a_target_for_every_text():
    with pytest.raises(ValueError, match="2 texts and 1 targets"):
        MeanScore("exact_match").update(["a", "b"], ["a"])


def test_scoring_prints_nothing():
    code = "from see_lightning.evaluation.scores import rouge_l; rouge_l('a', 'a')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
