"""Prompt styles letter by letter, and the check that prompt and answer fit."""

import re
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from see_lightning.config.search_path import CONF
from see_lightning.data.checks import RowChecks
from see_lightning.data.example import Body, Example
from see_lightning.data.split import Split
from see_lightning.errors import ConfigError, DataError
from see_lightning.models.tiny import tiny_tokenizer
from see_lightning.tasks.datamodule import query_loader
from see_lightning.tasks.lengths import checked_lengths, fitted, length_notices
from see_lightning.tasks.prompts import PromptTemplate, checked_header
from see_lightning.tasks.task import Benchmark, Task

QUERY = "Où? {query} ✓"


def template(
    style: str, *, system_prompt: str | None = None, max_length: int = 64, **tokenizer: object
) -> PromptTemplate:
    made = tiny_tokenizer()
    for name, value in tokenizer.items():
        setattr(made, name, value)
    return PromptTemplate(made, style=style, system_prompt=system_prompt, max_length=max_length)


def written(of: PromptTemplate, ids: list[int]) -> str:
    return str(of.tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize(
    ("style", "system_prompt", "expected"),
    [
        ("chat", None, "[user]Où? {query} ✓</s>[assistant]"),
        ("chat", "Be brief.", "[system]Be brief.</s>[user]Où? {query} ✓</s>[assistant]"),
        ("chat", "", "[system]</s>[user]Où? {query} ✓</s>[assistant]"),
        ("plain", None, "<s>Où? {query} ✓"),
        (
            "alpaca",
            None,
            "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nOù? {query} ✓\n\n### Response:\n",
        ),
        ("llama2", None, "<s>[INST] Où? {query} ✓ [/INST] "),
        ("llama2", "Be brief.", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOù? {query} ✓ [/INST] "),
    ],
)
def test_a_query_is_put_letter_by_letter_so(style, system_prompt, expected):
    made = template(style, system_prompt=system_prompt)
    assert written(made, made.prompt_ids(QUERY)) == expected


def test_ssrs_second_model_is_asked_with_the_blanks_of_ssrs_template():
    model = OmegaConf.load(CONF / "model" / "llama2_7b_chat.yaml")
    made = template(model.prompt, system_prompt=model.system_prompt)
    text = written(made, made.prompt_ids("Hi"))
    assert text.startswith("<s>[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as ")
    assert "while being safe.  Your answers should not" in text
    assert text.endswith("please don't share false information.\n<</SYS>>\n\nHi [/INST] ")


def test_a_tokenizer_without_a_beginning_token_gets_none():
    made = template("plain", bos_token=None)
    assert written(made, made.prompt_ids("Hi")) == "Hi"


def test_an_answer_ends_with_the_end_token_and_its_text_comes_back():
    made = template("chat")
    for answer in ("Lima", " two  spaces ", "naïve — 日本語 🙂", ""):
        ids = made.target_ids(answer)
        assert ids[-1] == made.tokenizer.eos_token_id
        assert ids.count(made.tokenizer.eos_token_id) == 1
        assert made.text(ids) == made.text(ids[:-1]) == answer


def test_a_tokenizer_without_a_chat_template_is_refused_for_chat_alone():
    with pytest.raises(ConfigError, match="has no chat template; use model.prompt=plain or model.prompt=alpaca"):
        template("chat", chat_template=None)
    assert template("plain", chat_template=None).prompt_ids("Hi")


@pytest.mark.parametrize("style", ["plain", "alpaca"])
def test_a_system_prompt_is_refused_where_it_would_be_dropped(style):
    with pytest.raises(
        ConfigError, match=f"model.system_prompt is for model.prompt=chat and llama2; the style is {style}"
    ):
        template(style, system_prompt="Be brief.")


def test_a_style_that_there_is_not_is_refused():
    with pytest.raises(
        ConfigError, match=r"must be one of chat, plain, alpaca, llama2; got 'chatt'\. Did you mean 'chat'"
    ):
        template("chatt")


def test_templates_have_one_digest_if_and_only_if_they_put_queries_alike():
    made = [template("chat"), template("chat", system_prompt="Be brief."), template("plain"), template("alpaca"),
            template("chat", chat_template="{{ messages[-1]['content'] }}"), template("chat", eos_token="<pad>")]  # fmt: skip
    assert len({one.digest() for one in made}) == len(made)
    assert template("chat", max_length=99).digest() == made[0].digest()


# Plain prompts of the tiny tokenizer: one token to begin, one a letter; an answer has one a letter and one to end.
def row(number: int, *, prompt: int, answer: int) -> Example:
    return Example(f"id-{number}", "p" * (prompt - 1), "a" * (answer - 1), "qa", source=f"f:{number}")


def of(train: list[Example], test: list[Example], *, max_new_tokens: int = 10, notices: tuple[str, ...] = ()) -> Task:
    return Task("qa", tuple(train), tuple(test), "rouge_l", max_new_tokens, notices)


def test_rows_that_exactly_fit_are_kept():
    task = of([row(1, prompt=40, answer=20)], [row(2, prompt=50, answer=60)])
    assert checked_lengths(task, template("plain"), RowChecks(), 4) == task


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (
            row(1, prompt=40, answer=21),
            row(2, prompt=50, answer=2),
            "f:1: the prompt has 40 tokens and leaves no room for 25",
        ),
        (
            row(1, prompt=41, answer=20),
            row(2, prompt=50, answer=2),
            "f:1: the prompt has 41 tokens and leaves no room for 24",
        ),
        (
            row(1, prompt=40, answer=20),
            row(2, prompt=51, answer=2),
            "f:2: the prompt has 51 tokens and leaves no room for 14",
        ),
    ],
)
def test_one_token_more_stops_with_the_place_and_the_numbers(train, test, told):
    with pytest.raises(DataError, match=re.escape(told) + r" of its answer within model\.max_length=64\."):
        checked_lengths(of([train], [test]), template("plain"), RowChecks(), 4)


def test_a_skipped_row_is_left_out_and_told_once_together_with_those_skipped_on_reading():
    checks = RowChecks("skip")
    rows = [row(i, prompt=20, answer=10) for i in range(1, 400)]
    blank = Example("blank", " ", "a", "qa", source="f:400")
    long = [row(401, prompt=70, answer=2), row(402, prompt=20, answer=60)]
    test = [Example("t", "q" * 19, "a", "qa", source="g:1")]
    split = checks.split("qa", [*rows[:7], blank, long[0], *rows[7:], long[1]], test)
    assert split.notices == ("qa: 1 of 403 rows skipped: first f:400: empty prompt",)
    read = of(list(split.train), list(split.test), notices=("qa: something else", *split.notices))
    task = checked_lengths(read, template("plain"), checks, 4)
    assert task.train == tuple(rows)
    assert task.test == tuple(test)
    assert task.notices == ("qa: something else", "qa: 3 of 403 rows skipped: first f:400: empty prompt")


def test_nothing_skipped_is_nothing_told():
    checks = RowChecks("skip")
    split = checks.split("qa", [row(1, prompt=20, answer=10)], [row(2, prompt=21, answer=10)])
    task = of(list(split.train), list(split.test))
    assert checked_lengths(task, template("plain"), checks, 4).notices == ()


def test_more_than_one_in_a_hundred_skipped_for_length_is_an_error():
    checks = RowChecks("skip")
    rows = [row(i, prompt=20, answer=10) for i in range(150)] + [row(i, prompt=70, answer=2) for i in (150, 151)]
    split = checks.split("qa", rows, [Example("t", "q", "a", "qa", source="g:1")])
    with pytest.raises(DataError, match=r"qa: 2 of the 152 training rows do not fit.*more than 1 %"):
        checked_lengths(of(list(split.train), list(split.test)), template("plain"), checks, 4)


@pytest.mark.parametrize("keep", ["head", "tail"])
def test_a_body_is_cut_to_what_fits_and_what_stands_around_it_is_kept(keep):
    text = "Sum up: " + "0123456789" * 4 + "!" * 60 + " Summary:"
    long = Example("1", text, "a" * 9, "qa", source="f:1", body=Body(8, 108, keep))
    short = row(2, prompt=20, answer=10)
    task = checked_lengths(of([long, short], [replace(long, id="3")]), template("plain"), RowChecks(), 4)
    cut, untouched = task.train
    assert untouched is short
    assert (cut.id, cut.target, cut.source) == ("1", "a" * 9, "f:1")
    assert cut.prompt.startswith("Sum up: ")
    assert cut.prompt.endswith(" Summary:")
    body = cut.prompt.removeprefix("Sum up: ").removesuffix(" Summary:")
    assert len(body) == 64 - 4 - 10 - 1 - len("Sum up:  Summary:")  # one token to begin, one a letter
    assert body == (text[8:108][: len(body)] if keep == "head" else text[8:108][-len(body) :])
    assert task.notices == (
        "qa: 1 of 2 training and 1 of 1 test prompts were cut to fit into model.max_length=64; their instructions are whole",
    )


def test_held_out_rows_are_cut_and_refused_like_all_others():
    long = Example("1", "p" * 80, "a" * 9, "qa", source="f:1", body=Body(0, 80))
    short, bad = row(2, prompt=20, answer=10), row(3, prompt=70, answer=2)
    task = checked_lengths(replace(of([short], [short]), held_out=(short, long)), template("plain"), RowChecks(), 4)
    assert task.held_out[0] is short
    assert task.held_out[1].prompt == "p" * 49
    assert task.notices == (
        "qa: 0 of 1 training, 1 of 2 held-out and 0 of 1 test prompts were cut to fit into model.max_length=64; their"
        " instructions are whole",
    )
    with pytest.raises(DataError, match=r"f:3: the prompt has 70 tokens"):
        checked_lengths(replace(of([short], [short]), held_out=(short, bad)), template("plain"), RowChecks(), 4)
    skipping = RowChecks("skip")
    rows = [row(n, prompt=20, answer=10) for n in range(300)]
    skipping.split("qa", rows, [Example("t", "q", "a", "qa", source="g:1")])
    with pytest.raises(DataError, match=r"qa: 1 of the 2 held-out rows do not fit"):
        checked_lengths(replace(of([short], [short]), held_out=(short, bad)), template("plain"), skipping, 4)


def test_extras_are_left_out_whole_from_the_last_before_a_body_is_cut():
    text = "Sum up: (one)(two)(three)0123456789:"
    long = Example("1", text, "a", "qa", body=Body(25, 35, extras=((8, 13), (13, 18), (18, 25))))
    tokens = len(template("plain").prompt_ids(text))
    for room, prompt in (
        (tokens, text),
        (tokens - 1, "Sum up: (one)(two)0123456789:"),
        (tokens - 8, "Sum up: (one)0123456789:"),
        (tokens - 17, "Sum up: 0123456789:"),
    ):
        assert fitted(long, template("plain"), room)[0].prompt == prompt
    short, left = fitted(long, template("plain"), tokens - 22)
    assert short.prompt == "Sum up: 01234:"
    assert left == tokens - 22
    assert fitted(long, template("plain"), 5) == (long, tokens)


def test_a_row_that_does_not_fit_without_its_body_either_is_refused_whole():
    long = Example("1", "p" * 80 + "body", "a", "qa", source="f:1", body=Body(80, 84))
    with pytest.raises(DataError, match=r"f:1: the prompt has 85 tokens and leaves no room for 6 of its answer"):
        checked_lengths(of([long], [row(2, prompt=9, answer=2)]), template("plain"), RowChecks(), 4)


def test_a_cut_prompt_is_told_by_the_digest():
    long = Example("1", "p" * 80, "a", "qa", body=Body(0, 80))
    whole = of([long], [])
    assert checked_lengths(whole, template("plain"), RowChecks(), 4).digest() != whole.digest()


def test_a_long_prompt_leaves_room_for_a_shorter_answer_instead_of_being_refused():
    rows = [row(1, prompt=20, answer=20), row(2, prompt=50, answer=9)]
    task = replace(of([row(3, prompt=9, answer=9)], rows, max_new_tokens=40), reserved=10)
    checked = checked_lengths(task, template("plain"), RowChecks(), 4)
    assert checked.test == tuple(rows)
    assert [checked.limit(prompt) for prompt in (20, 50)] == [40, 10]
    with pytest.raises(DataError, match="f:9: the prompt has 51 tokens and leaves no room for 14"):
        checked_lengths(replace(task, test=(row(9, prompt=51, answer=2),)), template("plain"), RowChecks(), 4)
    batch = next(iter(query_loader([checked], template("plain"), batch_size=4, tell_task=False)))
    assert dict(zip(map(len, batch.prompts), batch.limits, strict=True)) == {20: 40, 50: 10}


def test_a_body_is_cut_for_the_usual_answer_whatever_the_longest_may_be():
    long = Example("1", "p" * 80, "a", "qa", body=Body(0, 80))
    cut = [
        checked_lengths(replace(of([], [long], max_new_tokens=most), reserved=10), template("plain"), RowChecks(), 4)
        for most in (10, 40, 4000)
    ]
    assert cut[0].test == cut[1].test == cut[2].test
    assert len(template("plain").prompt_ids(cut[0].test[0].prompt)) == 50


def test_references_that_no_answer_can_equal_are_told_and_how_to_allow_for_them():
    made = template("plain")
    task = replace(
        of([], [row(1, prompt=20, answer=31), row(2, prompt=20, answer=11), row(3, prompt=9, answer=12)]), reserved=10
    )
    checked = checked_lengths(task, made, RowChecks(), 4)
    assert length_notices(checked, made, "benchmark.max_new_tokens") == (
        "qa: 2 of 3 test references are longer than the 10 tokens that an answer may have, the longest has 30, so no answer"
        " can equal them; benchmark.max_new_tokens=31 leaves room for all",
    )
    enough = replace(checked, max_new_tokens=31)
    assert length_notices(enough, made, "benchmark.max_new_tokens") == ()
    (told,) = length_notices(replace(enough, max_new_tokens=50), made, "benchmark.max_new_tokens")
    assert told.startswith("qa: 2 of 3 test prompts leave room for fewer than the 50 tokens that an answer may have")
    assert told.endswith("model.max_length=64")


class LongRows:
    """A reader whose training rows are all too long for the template here."""

    def tasks(self) -> list[str]:
        return ["qa"]

    def read(self, task: str, checks: RowChecks) -> Split:
        train = [row(i, prompt=70, answer=2) for i in range(300)]
        return checks.split(task, train, [Example("t", "q", "a", "qa", source="g:1")])


def test_a_task_of_which_no_training_row_fits_is_refused_even_if_few_of_the_file_were_drawn():
    checks = RowChecks("skip")
    settings = {"qa": {"score": "rouge_l", "max_new_tokens": 10}}
    of = Benchmark(name="b", version="1", licence="", citation="", reader=LongRows(), tasks=settings)
    task = of.task("qa", checks=checks, tokens=len, train_size=2, test_size=1)
    with pytest.raises(DataError):
        checked_lengths(task, template("plain"), checks, 4)


@pytest.mark.parametrize(
    ("style", "header"), [("chat", "</s>[assistant]"), ("alpaca", "\n\n### Response:\n"), ("plain", "")]
)
def test_the_header_is_what_ends_every_prompt(style, header):
    made = template(style, max_length=400)
    assert written(made, made.header_ids()) == header
    for query in ("Hi", QUERY, "A.", "B?", "[assistant]", "</s>[assistant]"):
        ids = made.prompt_ids(query)
        assert ids[len(ids) - len(made.header_ids()) :] == made.header_ids()


def test_a_chat_template_that_knows_the_assistants_header_says_which_it_is():
    known = "{% for m in messages %}[u]{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    made = template("chat", chat_template=known)
    assert written(made, made.header_ids()) == "[a]"
    assert written(made, made.prompt_ids("Hi")) == "[u]Hi</s>[a]"


def test_a_chat_template_whose_prompts_say_nothing_of_the_answer_still_ends_them_alike():
    made = template("chat", chat_template="{{ messages[-1]['content'] }}</s>")
    assert written(made, made.header_ids()) == "</s>"


def test_prompts_that_end_in_the_header_pass_as_they_are():
    task = of([row(1, prompt=10, answer=5)], [row(2, prompt=12, answer=5)])
    assert checked_header(task, template("chat")) is task


@pytest.mark.parametrize("half", ["train", "held_out", "test"])
def test_an_answer_that_holds_the_header_is_refused_by_its_place(half):
    bad = Example("id", "Who?", "say\n\n### Response:\n and", "qa", source="f:7")
    task = replace(of([row(1, prompt=10, answer=5)], [row(2, prompt=10, answer=5)]), **{half: (bad,)})
    with pytest.raises(DataError, match=r"^f:7: the answer repeats the prompt's last tokens \["):
        checked_header(task, template("alpaca", max_length=400))


def test_an_answer_that_spells_a_header_of_special_tokens_is_text_and_passes():
    task = of([Example("id", "Who?", "say </s>[assistant] and", "qa")], [row(2, prompt=10, answer=5)])
    assert checked_header(task, template("chat")) is task


def test_a_prompt_whose_end_the_tokenizer_joined_with_its_query_is_refused_by_its_place():
    made = template("chat")
    plain = made.prompt_ids

    def joined(query: str | Example) -> list[int]:
        ids = plain(query)
        return [*ids[:-3], 258, ids[-1]] if isinstance(query, Example) and query.prompt == "joins" else ids

    made.prompt_ids = joined
    bad = Example("id", "joins", "a", "qa", source="f:7")
    with pytest.raises(DataError, match=r"^f:7: the prompt's last tokens are not \[.*adapter=lora"):
        checked_header(of([bad], [row(2, prompt=10, answer=5)]), made)


def test_what_prompts_are_made_from_tells_template_and_tokenizer_apart():
    made = template("chat").made_from()
    edited = template(
        "chat", chat_template="{% for m in messages %}({{ m['role'] }}){{ m['content'] }}{% endfor %}"
    ).made_from()
    ended = template("chat", eos_token="<pad>").made_from()
    assert template("chat", max_length=99).made_from() == made
    assert [name for name in made if edited[name] != made[name]] == ["prompt template", "tokenizer"]
    assert [name for name in made if ended[name] != made[name]] == ["tokenizer"]


def test_what_a_template_does_not_write_is_no_reason_not_to_note_what_it_does():
    picky = "{{ messages[-1]['content'].replace('<', '(') }}"
    assert template("chat", chat_template=picky).made_from() == template("chat", chat_template=picky).made_from()
