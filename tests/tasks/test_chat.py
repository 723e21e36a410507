"""Chat templates of all kinds: what they drop, refuse or change is told; the date and arguments that they are given."""

from datetime import datetime

import pytest

from see_lightning.errors import ConfigError
from see_lightning.models.tiny import tiny_tokenizer
from see_lightning.tasks.chat import ChatTemplate, Piece, with_date

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
LAST = "{{ messages[-1]['content'] }}"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages here') }}{% endif %}" + TURNS
ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
THINKS = TURNS + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{{ date_string }} "
    + LAST
)


def chat(template: str | dict[str, str], system_prompt: str | None = None, **settings: object) -> ChatTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer, system_prompt, **settings)


def written(of: ChatTemplate, query: str = "Hi") -> str:
    return "".join(piece.text for piece in of.pieces(query))


def test_a_prompt_is_in_pieces_of_which_some_were_given():
    assert chat(TURNS, "Be brief").pieces("Hi") == [
        Piece("[system]", False), Piece("Be brief", True), Piece("</s>[user]", False), Piece("Hi", True),
        Piece("</s>[a]", False),
    ]  # fmt: skip
    assert chat(TURNS).header() == "[a]"


def test_words_of_the_template_in_a_query_are_given_where_they_were_given():
    assert chat(TURNS).pieces("user") == [Piece("[user]", False), Piece("user", True), Piece("</s>[a]", False)]


def test_blanks_around_a_query_may_be_left_out():
    assert chat("{{ messages[-1]['content'] | trim }}!").pieces(" Hi\n") == [
        Piece("", False), Piece("Hi", True), Piece("!", False)
    ]  # fmt: skip


def test_what_is_written_around_may_depend_on_the_query():
    made = chat("{% if '?' in messages[-1]['content'] %}Answer: {% endif %}" + LAST)
    assert made.pieces("Why?") == [Piece("Answer: ", False), Piece("Why?", True), Piece("", False)]
    assert written(made) == "Hi"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (REFUSES, "the chat template fails: no system messages here"),
        (ALTERNATES, "the chat template fails: roles must alternate user/assistant"),
        (LAST, "the chat template drops it"),
        ("{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | upper }}{% endif %}" + LAST, "drops it"),
        ("{{ messages[0]['content'].replace('/no_think', '') }}" + LAST, "the chat template changes it"),
    ],
)
def test_a_system_prompt_that_would_not_stand_in_the_prompt_is_refused_in_one_line(template, reason):
    assert "Hi" in written(chat(template))
    with pytest.raises(ConfigError) as refused:
        chat(template, "Be brief /no_think")
    assert str(refused.value).startswith("model.system_prompt='Be brief /no_think' cannot be used: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_system_prompt_that_makes_no_difference_is_refused():
    with pytest.raises(ConfigError, match="system_prompt='' cannot be used"):
        chat(
            "{% if messages[0]['role'] == 'system' and messages[0]['content'] %}[{{ messages[0]['content'] }}]{% endif %}"
            + LAST,
            "",
        )
    assert written(chat(TURNS, "")) == "[system]</s>[user]Hi</s>[a]"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ nobody() }}" + LAST, "the chat template fails: 'nobody' is undefined."),
        ("{{ raise_exception('only with tools\nand more') }}", "the chat template fails: only with tools."),
        ("{{ messages[0]['content'", "the chat template fails: unexpected end of template"),
        ("{{ messages[1]['content'].strip() }}", "the chat template fails: "),
        ("{{ 1 // 0 }}", "the chat template fails: "),
        ("{{ messages[0]['content'] | upper }}", "the chat template drops or changes the query"),
        ("Hello", "the chat template drops or changes the query"),
        ({"tools": LAST, "rag": LAST}, "the chat template fails: This model has multiple chat templates"),
        ("", "this tokenizer has no chat template; use model.prompt=plain or model.prompt=alpaca"),
    ],
)
@pytest.mark.parametrize("system_prompt", [None, "Be brief"])
def test_a_template_that_cannot_be_used_is_told_in_one_line(template, reason, system_prompt):
    with pytest.raises(ConfigError) as refused:
        chat(template, system_prompt)
    assert reason.removesuffix(".") in str(refused.value) or (system_prompt and "drops it" in str(refused.value))
    assert "\n" not in str(refused.value)


def test_a_template_fails_for_one_query_when_it_is_put():
    made = chat("{% if 'bad' in messages[-1]['content'] %}{{ raise_exception('not that') }}{% endif %}" + LAST)
    assert written(made) == "Hi"
    with pytest.raises(ConfigError, match="fails: not that"):
        made.pieces("bad")


def test_a_mark_of_the_byte_order_is_no_part_of_a_template():
    assert written(chat("\ufeff" + TURNS)) == "[user]Hi</s>[a]"


@pytest.mark.parametrize(("value", "ends"), [(True, "[a]"), (False, "<think></think>")])
def test_arguments_reach_the_template(value, ends):
    assert written(chat(THINKS, arguments={"enable_thinking": value})).endswith(ends)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"enable_thinkin": False}, "enable_thinkin=False has no effect.*Did you mean 'enable_thinking'"),
        ({"enable_thinking": False, "other": 1}, "other=1 has no effect: the chat template does not use 'other'"),
        ({"tokenize": True}, "tokenize is given by the run itself"),
        ({"messages": []}, "messages is given by the run itself"),
        ({"add_generation_prompt": False}, "add_generation_prompt is given by the run itself"),
    ],
)
def test_an_argument_without_effect_is_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        chat(THINKS, arguments=arguments)


def test_an_argument_that_is_only_named_is_without_effect():
    with pytest.raises(ConfigError, match="effort='high' has no effect"):
        chat("{% if tools and effort %}{{ effort }}{% endif %}" + LAST, arguments={"effort": "high"})


FORMS = ("%Y-%m-%d", "%d %b %Y", "%H:%M:%S", "%A")


@pytest.mark.parametrize("form", FORMS)
def test_the_date_is_the_given_one(form):
    day, template = datetime(2024, 2, 29, 13, 5, 9), "On {{ strftime_now('" + form + "') }}: " + LAST
    made = chat(template, date=day)
    assert written(made) == f"On {day.strftime(form)}: Hi"
    assert made.dated


def test_a_template_that_is_given_the_date_asks_for_none():
    assert chat(DATED).dated
    given = chat(DATED, arguments={"date_string": "26 Jul 2024"})
    assert (written(given), given.dated) == ("26 Jul 2024 Hi", False)
    assert not chat(TURNS).dated


@pytest.mark.parametrize(
    "template",
    [
        "\n  {% if true %}\n  {{ strftime_now('%Y') }}\n{% endif %}\n " + LAST,
        "{% macro head() %}{{ 'Year ' + strftime_now(\"%Y\") }}{% endmacro %}\n{{ head() }}" + LAST,
        "{%- if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}none{% endif %}" + LAST,
        "{# the year #}{% set form = '%Y' %}{{ strftime_now(form) }}" + LAST,
        "{{ \"Today's year: \" + strftime_now('%Y') + '.' }}" + LAST,
        "{{ '<s>' }}{% set d = strftime_now(\"%Y\") %}{{ d }}" + LAST,
        "{{ strftime_now(format='%Y') }}" + LAST,
    ],
)
def test_nothing_but_the_date_is_changed(template):
    tokenizer, messages = tiny_tokenizer(), [{"role": "user", "content": "Hi"}]
    now = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    year = str(datetime.now().year)
    assert year in now
    fixed = with_date(template, datetime(1999, 1, 1))
    assert tokenizer.apply_chat_template(messages, chat_template=fixed, tokenize=False) == now.replace(year, "1999")


def test_a_date_in_a_form_that_is_put_together_is_refused():
    with pytest.raises(
        ConfigError, match="the chat template fails: it asks for the date in a form that it puts together"
    ):
        chat("{{ strftime_now('%' + 'Y') }}" + LAST)
