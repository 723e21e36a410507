"""A tokenizer's chat template: what it writes around a query, with arguments of one's own and the date of the run."""

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from jinja2 import Environment, TemplateError
from transformers import PreTrainedTokenizerBase

from see_lightning.errors import ConfigError, nearest

SYSTEM, QUERY = "Xq7systemz7qX", "Xq7queryz7qX"  # stand-ins that show where a template writes what it is given
NOW = "strftime_now"  # the function by which a template asks for the date
TWO_DATES = (datetime(1999, 1, 2, 3, 4, 5), datetime(2012, 11, 30, 17, 38, 49))  # they differ in every part
# An argument of a template for which all of these write the same is not used.
OTHER_VALUES: tuple[object, ...] = (True, False, "", "x", 0, 1, [], {})


class Piece(NamedTuple):
    """A part of a prompt: what the user gave, or what is written around it."""

    text: str
    given: bool


class ChatTemplate:
    """What a tokenizer's chat template writes for one query.

    Args:
        tokenizer: has the template.
        system_prompt: None leaves it to the template.
        arguments: variables of the template, such as ``enable_thinking``.
        date: what the template takes for now; None is now.

    Raises:
        ConfigError: there is no template, it fails, it drops or changes what it is given, or it does not use an argument.
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
        except ValueError as error:  # several templates, of which none is the default
            raise _failure(error) from error
        self._source = with_date(source, date or datetime.now())
        self._check_arguments()
        frame = self._checked_frame()
        #: What is written, with stand-ins for what is given; and the system prompt as it is written.
        self._frame = re.split(f"({SYSTEM}|{QUERY})", frame)
        self._system = self._checked_system_prompt(frame)
        #: Whether prompts tell the date.
        self.dated = (
            NOW in source and len({self._render(QUERY, source=with_date(source, day)) for day in TWO_DATES}) > 1
        )

    def pieces(self, query: str) -> list[Piece]:
        """A prompt in pieces.

        Raises:
            ConfigError: the template fails, or changes more of the query than the blanks around it.
        """
        text = self._render(query)
        for form in _forms(query):
            filled = [{SYSTEM: self._system, QUERY: form}.get(part, part) for part in self._frame]
            if "".join(filled) == text:
                given = [part in (SYSTEM, QUERY) for part in self._frame]
                return [Piece(*piece) for piece in zip(filled, given, strict=True)]
        # What is written around a query may depend on it.
        before, found, behind = text.rpartition(query.strip())
        if not found:
            raise ConfigError(f"the chat template does not write this query as it stands: {query[:60]!r}")
        return [Piece(before, False), Piece(found, True), Piece(behind, False)]

    def text(self, query: str) -> str:
        """A prompt as a whole.

        Raises:
            ConfigError: the template fails.
        """
        return self._render(query)

    def header(self) -> str:
        """What the template writes for the answer to begin; empty if it does not say."""
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
        """The text of a prompt; what is left out is as the template has it."""
        system_prompt = self.system_prompt if system_prompt == "" else system_prompt
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [*system, {"role": "user", "content": query}],
                    chat_template=source or self._source,
                    add_generation_prompt=header,
                    tokenize=False,
                    **(self.arguments if arguments is None else arguments),  # type: ignore[arg-type]
                )
            )
        except Exception as error:  # whatever somebody's template may do
            raise _failure(error) from error

    def _checked_frame(self) -> str:
        """What is written for stand-ins."""
        if self.system_prompt is None:
            frame = self._render(QUERY)
        else:
            try:
                frame = self._render(QUERY, SYSTEM)
            except ConfigError as error:
                self._render(QUERY, None)  # fails as well if the system prompt is not the cause
                raise self._unfit_system_prompt(str(error).rstrip(".")) from error
            if SYSTEM not in frame:
                raise self._unfit_system_prompt("the chat template drops it")
        if QUERY not in frame:
            raise ConfigError(
                "the chat template does not write the query as it stands; use model.prompt=plain or model.prompt=alpaca."
            )
        return frame

    def _checked_system_prompt(self, frame: str) -> str:
        """The system prompt as it is written."""
        if self.system_prompt is None:
            return ""
        whole = self._render(QUERY)
        for form in _forms(self.system_prompt):
            if frame.replace(SYSTEM, form) == whole:
                return form
        raise self._unfit_system_prompt("the chat template does not write it as it stands")

    def _unfit_system_prompt(self, reason: str) -> ConfigError:
        return ConfigError(
            f"model.system_prompt={self.system_prompt!r} cannot be used: {reason}. Leave it out, or write it into"
            " the queries."
        )

    def _check_arguments(self) -> None:
        """Refuse an argument that changes nothing, whatever its value."""
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
            except ConfigError as error:  # it does not take such a value, so it looks at it
                yield str(error)


def with_date(source: str, date: datetime) -> str:
    """A chat template that takes ``date`` for now.

    Templates are rendered by transformers, which gives them the clock. A macro of the same name, with every date that the
    template asks for, stands before it.

    >>> print(with_date('{{ strftime_now("%d %b %Y") }}', datetime(2024, 7, 26)).splitlines()[-1])
    {{ strftime_now("%d %b %Y") }}
    """
    if NOW not in source:
        return source
    try:
        words = [ast.literal_eval(word) for _, kind, word in Environment().lex(source) if kind == "string"]
    except (TemplateError, SyntaxError, ValueError):
        return source  # what is wrong with it shows when it is rendered
    forms = {word for word in words if "%" in word}
    dates = json.dumps({form: date.strftime(form) for form in sorted(forms)})
    refused = "it asks for the date in a form that it puts together"
    # The line break is no part of the template: one behind a block is left out.
    return (
        f"{{% macro {NOW}(format) %}}{{% set dates = {dates} %}}{{% if format in dates %}}{{{{ dates[format] }}}}"
        f"{{% else %}}{{{{ raise_exception({refused!r}) }}}}{{% endif %}}{{% endmacro %}}\n{source}"
    )


def _forms(text: str) -> tuple[str, ...]:
    """A text as templates write it: as it stands, or without blanks around it."""
    return text, text.strip(), text.rstrip(), text.lstrip()


def _failure(error: Exception) -> ConfigError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return ConfigError(f"the chat template fails: {reason}.")
