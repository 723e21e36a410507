"""A tokenizer's chat template: the text around a query, with the user's template arguments and the date of the run."""

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from jinja2 import Environment, TemplateError
from transformers import PreTrainedTokenizerBase

from see_lightning.data.example import Turn
from see_lightning.errors import ConfigError, nearest

Message = dict[str, str]  # of a role and a content

SYSTEM, QUERY = "Xq7systemz7qX", "Xq7queryz7qX"  # placeholders that show where a template puts its inputs
MARK = "Xq7message{}z7qX"  # placeholder of a message in a conversation, with its place
NOW = "strftime_now"  # the function that templates call for the date
TWO_DATES = (datetime(1999, 1, 2, 3, 4, 5), datetime(2012, 11, 30, 17, 38, 49))  # they differ in every part
# A template does not use an argument if all of these values give the same prompt.
OTHER_VALUES: tuple[object, ...] = (True, False, "", "x", 0, 1, [], {})


class Piece(NamedTuple):
    """A part of a prompt.

    Args:
        text: of the part.
        given: True for a query or system prompt of the user, False for text of the template.
    """

    text: str
    given: bool


class ChatTemplate:
    """Renders a query with a tokenizer's chat template.

    Args:
        tokenizer: a tokenizer with a chat template.
        system_prompt: the system message; None sends none, so a template may write its default.
        arguments: variables of the template, such as ``enable_thinking``.
        date: the date that the template gets as the current one; None is the clock's.

    Raises:
        ConfigError: there is no template, it fails, drops or changes a query or system prompt, or does not use an argument.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str | None = None,
        arguments: Mapping[str, object] | None = None,
        date: datetime | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise ConfigError("this tokenizer has no chat template; use model.prompt=plain or model.prompt=alpaca.")
        self.tokenizer, self.system_prompt, self.arguments = tokenizer, system_prompt, dict(arguments or {})
        try:
            source = tokenizer.get_chat_template().removeprefix("\ufeff")
        except ValueError as error:  # several templates and no default
            raise _failure(error) from error
        self._source = with_date(source, date or datetime.now())
        self._check_arguments()
        frame = self._checked_frame()
        #: The rendered parts of a prompt with placeholders for the user's texts, and the system prompt as rendered.
        self._frame = re.split(f"({SYSTEM}|{QUERY})", frame)
        self._system = self._checked_system_prompt(frame)
        #: By the roles of a conversation, its rendered parts with placeholders for the messages.
        self._frames: dict[tuple[str, ...], list[str]] = {}
        #: Whether prompts contain the date.
        self.dated = (
            NOW in source and len({self._render(QUERY, source=with_date(source, day)) for day in TWO_DATES}) > 1
        )

    def pieces(self, query: str, system: str | None = None, turns: Sequence[Turn] = ()) -> list[Piece]:
        """A rendered prompt, split into the user's texts and the template's.

        Args:
            query: the user's last message.
            system: a system prompt in place of the configured one; None keeps that one.
            turns: of the conversation before the query, the oldest first.

        Raises:
            ConfigError: the template fails, or changes more of a text than the whitespace around it.
        """
        if system is not None or turns:
            return self._conversation(conversation(query, self.system_prompt if system is None else system, turns))
        text = self._render(query)
        for form in _forms(query):
            filled = [{SYSTEM: self._system, QUERY: form}.get(part, part) for part in self._frame]
            if "".join(filled) == text:
                given = [part in (SYSTEM, QUERY) for part in self._frame]
                return [Piece(*piece) for piece in zip(filled, given, strict=True)]
        # The text around a query may depend on the query.
        before, stripped, behind = text.rpartition(query.strip())
        if not stripped:
            raise ConfigError(f"the chat template changes this query: {query[:60]!r}")
        return [Piece(before, False), Piece(stripped, True), Piece(behind, False)]

    def _conversation(self, messages: Sequence[Message]) -> list[Piece]:
        """The pieces of a conversation; each message is one of the user's texts."""
        roles, texts = tuple(one["role"] for one in messages), [one["content"] for one in messages]
        marks = [MARK.format(place) for place in range(len(roles))]
        if roles not in self._frames:
            frame = self._render_messages(
                [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
            )
            if dropped := next((role for role, mark in zip(roles, marks, strict=True) if mark not in frame), None):
                raise ConfigError(
                    f"the chat template drops a message of the role {dropped} in a conversation of the roles"
                    f" {', '.join(roles)}; leave such messages out, or use a model whose template writes them."
                )
            self._frames[roles] = re.split(f"({'|'.join(marks)})", frame)
        rendered = self._render_messages(messages)
        return _filled(self._frames[roles], dict(zip(marks, texts, strict=True)), rendered) or _found(texts, rendered)

    def text(self, query: str) -> str:
        """A rendered prompt as one text.

        Raises:
            ConfigError: the template fails.
        """
        return self._render(query)

    def header(self) -> str:
        """The generation prompt: the text that the template adds for the answer to begin; empty if it adds none."""
        bare, whole = self._render(QUERY, header=False), self._render(QUERY)
        return whole.removeprefix(bare) if whole.startswith(bare) else ""

    def _render(
        self,
        query: str,
        system_prompt: str | None = "",
        *,
        header: bool = True,
        source: str | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> str:
        """The rendered prompt.

        Args:
            query: of the user.
            system_prompt: None sends none; the empty string sends the configured one.
            header: whether the generation prompt is added.
            source: another template.
            arguments: other template arguments than the configured ones.
        """
        system_prompt = self.system_prompt if system_prompt == "" else system_prompt
        return self._render_messages(
            conversation(query, system_prompt), header=header, source=source, arguments=arguments
        )

    def _render_messages(
        self,
        messages: Sequence[Message],
        *,
        header: bool = True,
        source: str | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=source or self._source,
                    add_generation_prompt=header,
                    tokenize=False,
                    **(self.arguments if arguments is None else arguments),  # type: ignore[arg-type]
                )
            )
        except Exception as error:  # a template may raise anything
            raise _failure(error) from error

    def _checked_frame(self) -> str:
        """The rendered prompt for placeholders; refuses a template that drops or changes the query or the system prompt."""
        if self.system_prompt is None:
            frame = self._render(QUERY)
        else:
            try:
                frame = self._render(QUERY, SYSTEM)
            except ConfigError as error:
                self._render(QUERY, None)  # raises the template's own error if the system prompt is not the cause
                raise self._unfit_system_prompt(str(error).rstrip(".")) from error
            if SYSTEM not in frame:
                raise self._unfit_system_prompt("the chat template drops it")
        if QUERY not in frame:
            raise ConfigError(
                "the chat template drops or changes the query; use model.prompt=plain or model.prompt=alpaca."
            )
        return frame

    def _checked_system_prompt(self, frame: str) -> str:
        """The system prompt as the template renders it, which may be without whitespace around it."""
        if self.system_prompt is None:
            return ""
        whole = self._render(QUERY)
        for form in _forms(self.system_prompt):
            if frame.replace(SYSTEM, form) == whole:
                return form
        raise self._unfit_system_prompt("the chat template changes it")

    def _unfit_system_prompt(self, reason: str) -> ConfigError:
        return ConfigError(
            f"model.system_prompt={self.system_prompt!r} cannot be used: {reason}. Leave it out, or write it into"
            " the queries."
        )

    def _check_arguments(self) -> None:
        """Refuse a template argument that has no effect on the prompt with any value."""
        parameters = set(inspect.signature(self.tokenizer.apply_chat_template).parameters) - {"tools", "documents"}
        for name, value in self.arguments.items():
            if name in {*parameters, "messages", NOW}:
                raise ConfigError(f"model.template_args.{name} is given by the run itself; leave it out.")
            written = set(self._with_other_values(name, value))
            if len(written) == 1:
                words = set(re.findall(r"[A-Za-z_]\w+", self._source)) - {name}
                raise ConfigError(
                    f"model.template_args.{name}={value!r} has no effect: the chat template does not use {name!r}."
                    f"{nearest(name, words)}"
                )

    def _with_other_values(self, name: str, value: object) -> Iterator[str]:
        others = {other: given for other, given in self.arguments.items() if other != name}
        yield self._render(QUERY, arguments=self.arguments)
        for arguments in (others, *({**others, name: other} for other in OTHER_VALUES)):
            try:
                yield self._render(QUERY, arguments=arguments)
            except ConfigError as error:  # the template rejects the value, so it uses the argument
                yield str(error)


def with_date(source: str, date: datetime) -> str:
    """A chat template in which ``strftime_now`` returns a fixed date.

    transformers renders templates with a ``strftime_now`` that reads the clock. A macro of the same name is put before the
    template; it knows the date in every format that the template contains.

    Args:
        source: the template.
        date: the fixed date.

    >>> print(with_date('{{ strftime_now("%d %b %Y") }}', datetime(2024, 7, 26)).splitlines()[-1])
    {{ strftime_now("%d %b %Y") }}
    """
    if NOW not in source:
        return source
    try:
        words = [ast.literal_eval(word) for _, kind, word in Environment().lex(source) if kind == "string"]
    except (TemplateError, SyntaxError, ValueError):
        return source  # rendering it will report the fault
    forms = {word for word in words if "%" in word}
    dates = json.dumps({form: date.strftime(form) for form in sorted(forms)})
    refused = "it asks for the date in a form that it puts together"
    # The line break after the macro is not part of the prompt: templates drop one after a block.
    return (
        f"{{% macro {NOW}(format) %}}{{% set dates = {dates} %}}{{% if format in dates %}}{{{{ dates[format] }}}}"
        f"{{% else %}}{{{{ raise_exception({refused!r}) }}}}{{% endif %}}{{% endmacro %}}\n{source}"
    )


def conversation(query: str, system: str | None = None, turns: Sequence[Turn] = ()) -> list[Message]:
    """A conversation as messages, which chat templates take.

    Args:
        query: the user's last message.
        system: the system prompt; None sends none.
        turns: of the conversation before the query, the oldest first.

    >>> [message["role"] for message in conversation("And 2?", "Be brief", [Turn("1 + 1?", "2")])]
    ['system', 'user', 'assistant', 'user']
    """
    first = [] if system is None else [("system", system)]
    earlier = [one for turn in turns for one in (("user", turn.query), ("assistant", turn.answer))]
    return [{"role": role, "content": content} for role, content in (*first, *earlier, ("user", query))]


def _filled(frame: Sequence[str], given: Mapping[str, str], text: str) -> list[Piece]:
    """The pieces of a rendered text that is its frame with the given texts filled in; empty if it is something else.

    Args:
        frame: the template's texts and placeholders in turn, a template's text first and last.
        given: the user's texts by placeholder.
        text: as rendered.
    """
    pieces, place = [], 0
    for part, behind in zip(frame, (*frame[1:], ""), strict=True):
        forms = _forms(given[part]) if part in given else (part,)
        ahead = behind if part in given else ""
        form = next((one for one in forms if text.startswith(one + ahead, place)), None)
        if form is None:
            return []
        pieces.append(Piece(form, part in given))
        place += len(form)
    return pieces if place == len(text) else []


def _found(texts: Sequence[str], rendered: str) -> list[Piece]:
    """The pieces of a rendered conversation, in which the text around a message may depend on its content.

    Raises:
        ConfigError: a message is not in the rendered text.
    """
    pieces: list[Piece] = []
    for text in filter(None, (text.strip() for text in reversed(texts))):
        rendered, found, behind = rendered.rpartition(text)
        if not found:
            raise ConfigError(f"the chat template changes this message: {text[:60]!r}")
        pieces = [Piece(found, True), Piece(behind, False), *pieces]
    return [Piece(rendered, False), *pieces]


def _forms(text: str) -> tuple[str, ...]:
    """The forms in which templates write a text: unchanged, or stripped at both ends, the right, or the left."""
    return text, text.strip(), text.rstrip(), text.lstrip()


def _failure(error: Exception) -> ConfigError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return ConfigError(f"the chat template fails: {reason}.")
