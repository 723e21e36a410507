"""Scores against the packages that SSR, Tk-Instruct, TRACE and O-LoRA use, or against their formulas written as loops."""

import itertools
import random
import re
import string
import subprocess
import sys

import jieba
import pytest
import rapidfuzz
import rouge
import sacrebleu
from rouge_chinese import Rouge
from rouge_score.rouge_scorer import RougeScorer

from see_lightning.evaluation.labels import LABELS, exact_match_olora, strict_and_normalised
from see_lightning.evaluation.rouge import lcs_length, rouge_l, rouge_l_google, rouge_l_trace
from see_lightning.evaluation.sari import sari, sari_of, sari_trace
from see_lightning.evaluation.scores import READS_PROMPT, SCORES, SEEN, best_score, score_fn
from see_lightning.evaluation.similarity import bleu, chrf, edit_similarity

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
        ("accuracy_trace", "B", "B", 100.0),
        ("accuracy_trace", "B\n", "B", 0.0),
        ("accuracy_trace", "", "", 0.0),
        ("first_char_trace", "B", "B\nGravity pulls.", 100.0),
        ("first_char_trace", " B", "B", 0.0),
        ("first_char_trace", "b", "B", 0.0),
        ("first_char_trace", "", "", 0.0),
        ("exact_match_olora", "Science or Technology.", "science  or technology", 100.0),
        ("exact_match_olora", "the world", "world", 0.0),
        ("exact_match_olora", "3.5", "35", 100.0),
        ("exact_match_olora", "“World”", "world", 0.0),
    ],
)
def test_labels_are_compared_as_documented(name, text, target, expected):
    assert score_fn(name)(text, target) == expected


def trace_rouge(text: str, target: str) -> float:
    """TRACE's call: the target stands where that package has the hypothesis."""
    return 100 * rouge.Rouge(metrics=["rouge-l"]).get_scores(target, text, avg=True)["rouge-l"]["f"]


def test_rouge_l_trace_is_what_the_package_rouge_computes():
    draw = random.Random(2)
    alphabet = ["a", "b", "c", "d", "The", "cat", ".", ". ", "..", "\n", "  "]
    for text, target in [
        *HAND_MADE,
        *random_pairs(300),
        *(
            (" ".join(draw.choices(alphabet, k=draw.randint(1, 30))), " ".join(draw.choices(alphabet, k=12)))
            for _ in range(700)
        ),
    ]:
        if text.strip(".") and target.strip("."):
            assert rouge_l_trace(text, target) == pytest.approx(trace_rouge(text, target), abs=1e-9), (text, target)


@pytest.mark.parametrize(("text", "target"), [("", "a"), ("a", ""), ("...", "a"), ("a", ".")])
def test_rouge_l_trace_is_0_where_that_package_stops_with_an_error(text, target):
    with pytest.raises(ValueError):
        trace_rouge(text, target)
    assert rouge_l_trace(text, target) == 0.0


def test_a_long_answer_is_no_deeper_than_a_short_one():
    text = " ".join(f"word{number}" for number in range(1200))
    assert rouge_l_trace(text, f"never {text}") > 99


def clean_code(code: str) -> str:
    """What TRACE replaces in code, literal by literal."""
    for word, literal in (("<NUM_LIT>", "0"), ("<STR_LIT>", ""), ("<CHAR_LIT>", "")):
        code = code.replace(word, literal)
    for kind, literal in re.findall("<(STR|NUM|CHAR)_LIT:(.*?)>", code, re.DOTALL):
        code = code.replace(f"<{kind}_LIT:{literal}>", literal)
    return code


CODE = ["<NUM_LIT>", "<STR_LIT>", "<CHAR_LIT>", "<STR_LIT:utf-8>", "<NUM_LIT:1>", "<CHAR_LIT:x\n>", "<STR_LIT:", ">"]
CODE += ["def f ( x ) :", "return", "self", "=", " ", "é"]


def test_edit_similarity_is_the_ratio_of_rapidfuzz_after_trace_s_clean_up():
    draw = random.Random(3)
    for _ in range(2000):
        text, target = ("".join(draw.choices(CODE, k=draw.randint(0, 9))) for _ in range(2))
        ours, theirs = clean_code(text), clean_code(target)
        expected = round(rapidfuzz.fuzz.ratio(ours, theirs)) if ours and theirs else 0
        assert edit_similarity(text, target) == expected, (text, target)


@pytest.mark.parametrize(
    ("code", "cleaned"),
    [
        ("x = <NUM_LIT> <EOL>", "x = 0 <EOL>"),
        ("f ( <STR_LIT> , <CHAR_LIT> )", "f (  ,  )"),
        ("open ( <STR_LIT:utf-8> , <NUM_LIT:3> )", "open ( utf-8 , 3 )"),
        ("<FLOAT_LIT:1> <STR_LIT:", "<FLOAT_LIT:1> <STR_LIT:"),
    ],
)
def test_literals_of_code_become_what_they_stand_for(code, cleaned):
    assert edit_similarity(code, cleaned) == 100.0
    assert edit_similarity(cleaned, code) == 100.0


def test_exact_match_olora_is_that_of_squad_without_the_step_for_articles():
    def squad(text: str) -> str:
        letters = [letter for letter in text.lower() if letter not in set(string.punctuation)]
        return " ".join("".join(letters).split())

    for text, target in HAND_MADE + random_pairs(300) + [(text, text.upper()) for text, _ in random_pairs(100)]:
        assert exact_match_olora(text, target) == 100.0 * (squad(text) == squad(target)), (text, target)


def test_bleu_and_chrf_are_those_of_a_corpus_of_one_sentence():
    whole = sacrebleu.BLEU(effective_order=True), sacrebleu.CHRF()
    for text, target in [(text, target) for text, target in HAND_MADE + random_pairs(200) if target.strip()]:
        for score, oracle in zip((bleu, chrf), whole, strict=True):
            assert score(text, target) == pytest.approx(oracle.corpus_score([text], [[target]]).score, abs=1e-9)


def test_bleu_of_a_sentence_worked_out_by_hand():
    # 1-grams 3/4, 2-grams 1/3, 3-grams 0/2 smoothed to 1/4, 4-grams 0/1 smoothed to 1/4; no brevity penalty.
    assert bleu("a b x d", "a b c d") == pytest.approx(100 * (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** (1 / 4))


SPECIES = "About 95 species are currently accepted ."
SPECIES_REFERENCES = [
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("About 95 you now get in .", 26.953601953601954),  # stands in the documentation of Hugging Face's sari
    ],
)
def test_sari_is_what_is_published_of_its_authors_example(text, expected):
    assert sari_of(SPECIES, text, SPECIES_REFERENCES) == pytest.approx(expected)


def naive_sari(source: str, text: str, target: str) -> float:
    """SARI of texts without punctuation and with one reference, n-gram by n-gram."""
    sides = [side.lower().split() for side in (source, text, target)]
    total = 0.0
    for n in range(1, 5):
        s, c, r = ([" ".join(side[i : i + n]) for i in range(len(side) - n + 1)] for side in sides)
        grams = {*s, *c, *r}
        kept = {g: min(s.count(g), c.count(g)) for g in grams}
        right = {g: min(kept[g], r.count(g)) for g in grams}
        wanted = sum(min(s.count(g), r.count(g)) for g in grams)
        kept_grams = [g for g in grams if kept[g]]
        p = sum(right[g] / kept[g] for g in kept_grams) / len(kept_grams) if kept_grams else 1
        q = sum(right.values()) / wanted if wanted else 1
        total += 2 * p * q / (p + q) if p + q else 0
        gone = {g: s.count(g) - c.count(g) for g in grams if s.count(g) > c.count(g)}
        total += sum(max(0, left - r.count(g)) / left for g, left in gone.items()) / len(gone) if gone else 1
        new = {g for g in grams if g in c and g not in s}
        asked = {g for g in grams if g in r and g not in s}
        p = len(new & asked) / len(new) if new else 1
        q = len(new & asked) / len(asked) if asked else 1
        total += 2 * p * q / (p + q) if p + q else 0
    return 100 * total / 12


def test_sari_is_its_formula_counted_gram_by_gram():
    draw = random.Random(4)
    for _ in range(500):
        source, text, target = (" ".join(draw.choices("abcDE", k=draw.randint(4, 12))) for _ in range(3))
        assert sari_of(source, text, [target]) == pytest.approx(naive_sari(source, text, target)), (
            source,
            text,
            target,
        )


PROMPT = "Provide a simplified version of the following paragraph in German.\n\nParagraph:\n{}\n\nSimplification:"


def test_the_source_of_sari_is_the_paragraph_and_that_of_trace_the_whole_prompt():
    source, text, target = "Der große Hund schläft", "Große Hund", "Der Hund"
    prompt = PROMPT.format(source)
    assert sari(text, target, prompt) == sari_of(source, text, [target])
    assert sari_trace(text, target, prompt) == sari_of(prompt, text, [target])
    assert sari(text, target, prompt) != sari_trace(text, target, prompt)
    assert sari(text, target, "ohne Rahmen") == sari_of("ohne Rahmen", text, [target])


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_gives_100_to_the_reference_itself_and_most_give_0_to_nothing(name):
    score = score_fn(name, prompt="The cat was sitting, and then it was again.")
    assert score("The cat sat, twice.", "The cat sat, twice.") == pytest.approx(100.0)
    if name not in READS_PROMPT:  # where nothing is left, all that had to go is gone
        assert score("", "The cat sat, twice.") == 0.0


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_lies_in_0_to_100(name):
    for text, target in [(text, target) for text, target in random_pairs(200) if target]:
        assert 0.0 <= score_fn(name, prompt="the cat sat on a mat")(text, target) <= 100.0
        assert 0.0 <= score_fn(name, prompt="the cat sat on a mat")(target, target) <= 100.0


@pytest.mark.parametrize("name", sorted(SCORES))
def test_of_several_references_the_one_that_is_matched_best_counts(name):
    prompt, text, others = (
        "The cat was sitting.",
        "The cat sat, twice.",
        ["No dog came by.", "The cat sat there, twice."],
    )
    apart = [score_fn(name, prompt)(text, other) for other in others]
    assert best_score(name, text, others, prompt) == best_score(name, text, others[::-1], prompt) == max(apart)
    assert best_score(name, text, [*others, text], prompt) == pytest.approx(100.0)
    assert best_score(name, text, others[:1], prompt) == apart[0]


def skip_instructions(prompt: str, text: str, marker: str) -> str:
    """O-LoRA's and SAPT's step before they score: what follows the last marker in the prompt and the answer together."""
    whole = prompt + text
    return whole.split(marker)[-1].strip() if marker in whole else ""


@pytest.mark.parametrize(
    ("name", "plain", "marker"),
    [
        ("exact_match_olora", "exact_match_olora", "Answer:"),
        ("exact_match_sapt", "exact_match_olora", "Output:"),
        ("rouge_l_sapt", "rouge_l_google", "Output:"),
    ],
)
def test_behind_the_last_mark_of_their_prompts_begins_what_olora_and_sapt_score(name, plain, marker):
    draw = random.Random(5)
    pieces = ["good", " bad", marker, f"{marker} ", marker.lower(), "\n", " ", ":"]
    for _ in range(300):
        text, target = "".join(draw.choices(pieces, k=draw.randint(0, 6))), draw.choice(["good", "bad", "bad good"])
        behind = skip_instructions(f"Is it good or bad?\n{marker}", text, marker)
        assert score_fn(name)(text, target) == score_fn(plain)(behind, target), text


@pytest.mark.parametrize("name", sorted(SCORES))
def test_of_two_texts_that_look_the_same_to_a_score_one_is_a_full_score_for_the_other(name):
    draw, score = random.Random(6), score_fn(name, prompt="the cat sat on a mat")
    pieces = [
        "C",
        "c",
        "#",
        "++",
        "3",
        ".",
        "5",
        "-",
        "run",
        "running",
        "yes",
        "Yes",
        "पानी",
        "<STR_LIT:x>",
        "x",
        " ",
        "\n",
    ]
    texts = {"".join(draw.choices(pieces, k=draw.randint(1, 3))) for _ in range(400)}
    alike: dict[str, list[str]] = {}
    for text in texts:
        alike.setdefault(repr(SEEN[name](text)), []).append(text)
    pairs = [(a, b) for some in alike.values() for a, b in itertools.pairwise(some)]
    assert pairs or name == "accuracy_trace"
    for a, b in pairs:
        if score(b, b) == pytest.approx(100):
            assert score(a, b) == pytest.approx(100), (a, b)


def test_two_labels_are_the_same_to_a_score_if_and_only_if_they_look_the_same_to_it():
    texts = ["C", "C#", "c", " C", "3.5", "35", "-5", "5", "yes", "Yes.", "B\nas", "B", "?", "!"]
    for name in LABELS:
        for a in texts:
            for b in texts:
                assert (score_fn(name)(a, b) == 100) == (SEEN[name](a) == SEEN[name](b)), (name, a, b)


def test_an_unknown_score_is_refused_with_the_nearest_name_and_the_list():
    with pytest.raises(ValueError, match=r"'rougel'.*Did you mean 'rouge_l'\?.*exact_match"):
        score_fn("rougel")


@pytest.mark.parametrize(
    ("score", "text", "target", "expected"),
    [
        ("accuracy_trace", "B", "B", (100.0, 100.0)),
        ("accuracy_trace", "b.", "B", (0.0, 100.0)),
        ("accuracy_trace", "A", "B", (0.0, 0.0)),
        ("accuracy_trace", "B\n", "B", (0.0, 100.0)),
        ("exact_match", "B\n", "B", (100.0, 100.0)),
        ("first_char_trace", "B as it falls", "B\nGravity", (100.0, 100.0)),
        ("first_char_trace", " (b) as it falls", "B\nGravity", (0.0, 100.0)),
        ("first_char_trace", "", "B\nGravity", (0.0, 0.0)),
    ],
)
def test_labels_are_compared_strictly_and_normalised(score, text, target, expected):
    assert score in LABELS
    assert strict_and_normalised(score, text, target) == expected


def test_scoring_prints_nothing_and_loads_only_what_it_needs():
    code = (
        "import sys; from see_lightning.evaluation.scores import rouge_l, rouge_l_trace; rouge_l_trace('a', 'a');"
        " late = {'jieba', 'sacrebleu'} & set(sys.modules); rouge_l('a', 'a'); print(*late, end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
