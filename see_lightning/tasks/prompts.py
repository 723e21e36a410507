"""Prompt styles, and checks that prompts and answers can be tokenised and fit into the model's context."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from see_lightning.config.checks import one_of
from see_lightning.config.schema import PROMPT_STYLES
from see_lightning.data.checks import RowChecks
from see_lightning.data.example import Example, Turn
from see_lightning.errors import ConfigError, DataError
from see_lightning.tasks.chat import ChatTemplate, Piece
from see_lightning.tasks.pieces import Pieces
from see_lightning.tasks.task import Task

# The texts before and after a query. Alpaca's is Stanford's without an input field, as SSR uses it. Llama 2's is SSR's, with
# a space at the end that the model's own template does not have.
AROUND = {
    "plain": ("", ""),
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n",
        "\n\n### Response:\n",
    ),
    "llama2": ("[INST] ", " [/INST] "),
}

WITH_SYSTEM_PROMPT = ("chat", "llama2")  # styles

# Texts whose prompts and token ids show whether a template or a tokenizer has changed.
PROBES = (
    "A query.", "Sum up:\n\nTom had 1,234.50 coins -- \"so he said\" -- on 5/7/1999.", "  blanks\tand\n\nlines  ",
    "def f(x):\n    return x ** 2  # naïve", "Où? Żółć, Ελλάδα, Москва, 日本語, हिन्दी, עברית, 🙂",
    "</s> <|im_end|> <eos> [/INST] <think>", "pneumonoultramicroscopicsilicovolcanoconiosis",
)  # fmt: skip


class PromptTemplate:
    """Converts queries and answers into token ids.

    Their text is only text: the spelling of a special token in it does not become that token.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token.
        style: ``chat`` (the tokenizer's chat template), ``plain`` (the query alone), ``alpaca``, or ``llama2`` (SSR's).
        system_prompt: for ``chat`` and ``llama2``. None sends none; a chat template may then write its default.
        max_length: most tokens of a prompt together with its answer.
        arguments: for ``chat``: variables of the template.
        date: for ``chat``: the date that the template gets as the current one; None is the clock's.

    Raises:
        ConfigError: the style has no system prompt, or the chat template cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        style: str,
        system_prompt: str | None = None,
        max_length: int,
        arguments: Mapping[str, object] | None = None,
        date: datetime | None = None,
    ) -> None:
        one_of("model.prompt", style, PROMPT_STYLES)
        if style not in WITH_SYSTEM_PROMPT and system_prompt is not None:
            raise ConfigError(f"model.system_prompt is for model.prompt=chat and llama2; the style is {style}.")
        self.system_prompt = system_prompt
        self.tokenizer, self.style, self.max_length = tokenizer, style, max_length
        self.pieces = Pieces(tokenizer)
        date = date or datetime.now()
        self.chat = ChatTemplate(tokenizer, system_prompt, arguments, date) if style == "chat" else None
        #: The date that prompts contain, in ISO format; None if they contain none.
        self.date = date.isoformat(timespec="seconds") if self.chat and self.chat.dated else None

    def with_system_prompt(self, system_prompt: str) -> "PromptTemplate":
        """The same template with another system prompt.

        Raises:
            ConfigError: the template has no place for a system prompt.
        """
        return PromptTemplate(
            self.tokenizer,
            style=self.style,
            system_prompt=system_prompt,
            max_length=self.max_length,
            arguments=self.chat.arguments if self.chat else None,
            date=datetime.fromisoformat(self.date) if self.date else None,
        )

    def prompt_ids(self, query: str | Example) -> list[int]:
        """The token ids of a prompt, up to the beginning of the answer.

        Args:
            query: a text, or an example with its system prompt and earlier turns, if it has them.

        Raises:
            ConfigError: see ``conversation_ids``.
        """
        if isinstance(query, Example):
            return self.conversation_ids(query.prompt, query.system, query.turns)
        return self.conversation_ids(query)

    def conversation_ids(self, query: str, system: str | None = None, turns: Sequence[Turn] = ()) -> list[int]:
        """The token ids of a conversation, up to the beginning of its next answer.

        Args:
            query: the user's last message.
            system: a system prompt in place of the template's own; None keeps that one.
            turns: the earlier turns, the oldest first.

        Raises:
            ConfigError: the style has no form for several turns or no place for a system prompt, the chat template fails,
                drops or changes a text, or the tokenizer turns a part of it into a special token.
        """
        if unfit := self.unfit(system, turns):
            raise ConfigError(unfit)
        if self.chat:  # the template writes the special tokens itself
            return self.pieces.ids(self.chat.pieces(query, system, turns))
        before, behind = AROUND[self.style]
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        system, around = self.system_prompt if system is None else system, []
        if system is not None:
            around = [Piece("<<SYS>>\n", False), Piece(system, True), Piece("\n<</SYS>>\n\n", False)]
        return [*bos, *self.pieces.ids([Piece(before, False), *around, Piece(query, True), Piece(behind, False)])]

    def unfit(self, system: str | None, turns: Sequence[Turn]) -> str:
        """Why the style cannot put a conversation to the model, and what to type; empty if it can.

        Args:
            system: the conversation's own system prompt; None if it has none.
            turns: its earlier turns.
        """
        if turns and not self.chat:
            return (
                f"a conversation of several turns needs model.prompt=chat and a model with a chat template; the style is"
                f" {self.style}, which has a form for single queries alone."
            )
        if system is not None and self.style not in WITH_SYSTEM_PROMPT:
            return (
                f"a system prompt needs model.prompt={' or '.join(WITH_SYSTEM_PROMPT)}; the style is {self.style}, which has"
                f" no place for it. Write it into the query, or choose another style."
            )
        return ""

    def header_ids(self) -> list[int]:
        """The token ids that end every prompt, such as a chat's assistant header; empty if prompts end with the query."""
        header = self.chat.header() if self.chat else ""
        if header:
            return self.pieces.ids([Piece(header, False)])
        first, second = (self.prompt_ids(query)[::-1] for query in ("A query.", "Another one?"))
        common = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        return first[:common][::-1]

    def text_ids(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        return self.pieces.text_ids(text)

    def target_ids(self, target: str) -> list[int]:
        """The token ids of an answer, with the end-of-sequence token."""
        return [*self.text_ids(target), self.tokenizer.eos_token_id]

    def text(self, ids: list[int]) -> str:
        """The text of generated token ids, without special tokens."""
        return self.pieces.text(ids)

    def loss(self, text: str) -> tuple[str, bool]:
        """The first difference between a text and its decoded ids, and whether more than normalisation is lost."""
        return self.pieces.loss(text)

    def digest(self) -> str:
        """sha256 of the token ids of a fixed query and answer: templates with the same digest give the same prompts."""
        ids = (*self.prompt_ids("A query."), *self.target_ids("An answer."))
        return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()

    def made_from(self) -> dict[str, str]:
        """Digests by which a run detects a changed template or tokenizer: sha256 of prompts and token ids of fixed texts."""
        prompts, ids = [], []
        for query in PROBES:
            try:
                prompts.append(self.chat.text(query) if self.chat else query)
                ids.append(self.prompt_ids(query) + self.target_ids(query))
            except ConfigError as error:  # some templates and tokenizers cannot represent every text
                prompts.append(str(error))
        return {
            "prompt template": hashlib.sha256("\x1e".join(prompts).encode()).hexdigest(),
            "tokenizer": hashlib.sha256(repr(ids).encode()).hexdigest(),
        }


def checked_header(task: Task, template: PromptTemplate) -> Task:
    """Check that every prompt of a task ends in the header from which on activated experts act.

    Args:
        task: as read.
        template: of the run.

    Returns:
        The same task.

    Raises:
        DataError: the tokenizer merged the header with the text before it, or an answer contains the header, which PEFT would
            take for the prompt's.
    """
    header = template.header_ids()
    for row in task.every_row:
        if template.prompt_ids(row)[-len(header) :] != header:
            raise DataError(
                f"{row.source or row.id}: the prompt's last tokens are not {header}, from which on activated experts act:"
                f" the tokenizer joined them with the query's end. Fix the row, or use adapter=lora."
            )
        if _holds(template.target_ids(row.target), header):
            raise DataError(
                f"{row.source or row.id}: the answer repeats the prompt's last tokens {header}, from which on activated"
                f" experts act. Fix the row, or use adapter=lora."
            )
    return task


def _holds(ids: Sequence[int], part: Sequence[int]) -> bool:
    return any(ids[start : start + len(part)] == part for start in range(len(ids) - len(part) + 1))


def checked_texts(task: Task, template: PromptTemplate, checks: RowChecks) -> Task:
    """The task with the rows that can be tokenised and decoded.

    A row is bad if the tokenizer loses a part of its answer, or the template changes its prompt. A notice counts the texts
    whose whitespace, case, or Unicode compositions change, and the prompts of which the tokenizer loses a part.

    Args:
        task: as read.
        template: of the run.
        checks: refuses or counts a bad row.

    Raises:
        DataError: a bad row that ``checks`` refuses, or too many of them; or the style has no form for a row's conversation.
    """
    own_system = _checked_conversations(task, template)
    altered: dict[str, list[str]] = {"prompts": [], "answers": []}

    def writable(rows: Iterable[Example]) -> Iterator[Example]:
        for row in rows:
            place = row.source or row.id
            try:
                template.prompt_ids(row)
                prompt = next(filter(None, (template.loss(text)[0] for text in (*row.context, row.prompt))), "")
                answer, lost = template.loss(row.target)
                if lost:
                    raise ConfigError(f"the tokenizer cannot write the answer: {answer}")
            except ConfigError as error:
                checks.bad(task.name, place, str(error).rstrip("."))
                continue
            for part, difference in (("prompts", prompt), ("answers", answer)):
                altered[part] += [f"{place}: {difference}"] if difference else []
            yield row

    outdated = checks.notices(task.name)  # the new notice also counts the rows skipped in reading
    kinds = (task.train, task.test, task.held_out, task.valid)
    train, test, held_out, valid = kept = [tuple(writable(rows)) for rows in kinds]
    number = sum(map(len, kept))
    new = [*own_system] + [
        f"{task.name}: the tokenizer changes {len(rows)} of {number} {part} when it decodes them; first {rows[0]}"
        for part, rows in altered.items()
        if rows
    ]
    notices = (*(notice for notice in task.notices if notice not in outdated), *checks.notices(task.name), *new)
    return replace(task, train=train, test=test, held_out=held_out, valid=valid, notices=notices)


def _checked_conversations(task: Task, template: PromptTemplate) -> list[str]:
    """A notice about rows whose own system prompt replaces the configured one.

    Raises:
        DataError: the style has no form for the conversation of a row.
    """
    rows = task.every_row
    for row in rows:
        if unfit := template.unfit(row.system, row.turns):
            raise DataError(f"{row.source or row.id}: {unfit}")
    own = sum(row.system is not None for row in rows)
    if not own or template.system_prompt is None:
        return []
    return [
        f"{task.name}: {own} of {len(rows)} rows have a system prompt of their own, in place of model.system_prompt"
    ]
