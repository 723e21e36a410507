"""Prompt styles, and checks that prompts and answers can be tokenised and fit into the model's context."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from see_lightning.config.checks import one_of
from see_lightning.config.schema import PROMPT_STYLES
from see_lightning.data.checks import MOST_SKIPPED, RowChecks
from see_lightning.data.example import Example
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
        if style not in ("chat", "llama2") and system_prompt is not None:
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

    def prompt_ids(self, query: str) -> list[int]:
        """The token ids of a prompt, up to the beginning of the answer.

        Raises:
            ConfigError: the chat template fails or changes the query, or the tokenizer turns a part of it into a special
                token.
        """
        if self.chat:
            return self.pieces.ids(self.chat.pieces(query))  # the template writes the special tokens itself
        before, behind = AROUND[self.style]
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        system = []
        if self.system_prompt is not None:
            system = [Piece("<<SYS>>\n", False), Piece(self.system_prompt, True), Piece("\n<</SYS>>\n\n", False)]
        return [*bos, *self.pieces.ids([Piece(before, False), *system, Piece(query, True), Piece(behind, False)])]

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
    for row in (*task.train, *task.held_out, *task.test):
        if template.prompt_ids(row.prompt)[-len(header) :] != header:
            raise DataError(
                f"{row.source or row.id}: the prompt's last tokens are not {header}, from which on activated experts act:"
                f" the tokenizer joined them with the query's end. Mend the row, or use adapter=lora."
            )
        if _holds(template.target_ids(row.target), header):
            raise DataError(
                f"{row.source or row.id}: the answer repeats the prompt's last tokens {header}, from which on activated"
                f" experts act. Mend the row, or use adapter=lora."
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
        DataError: a bad row that ``checks`` refuses, or too many of them.
    """
    altered: dict[str, list[str]] = {"prompts": [], "answers": []}

    def writable(rows: Iterable[Example]) -> Iterator[Example]:
        for row in rows:
            place = row.source or row.id
            try:
                template.prompt_ids(row.prompt)
                (prompt, _), (answer, lost) = template.loss(row.prompt), template.loss(row.target)
                if lost:
                    raise ConfigError(f"the tokenizer cannot write the answer: {answer}")
            except ConfigError as error:
                checks.bad(task.name, place, str(error).rstrip("."))
                continue
            for part, difference in (("prompts", prompt), ("answers", answer)):
                altered[part] += [f"{place}: {difference}"] if difference else []
            yield row

    outdated = checks.notices(task.name)  # the new notice also counts the rows skipped in reading
    train, test, held_out = (tuple(writable(rows)) for rows in (task.train, task.test, task.held_out))
    number = len(train) + len(test) + len(held_out)
    new = [
        f"{task.name}: the tokenizer changes {len(rows)} of {number} {part} when it decodes them; first {rows[0]}"
        for part, rows in altered.items()
        if rows
    ]
    notices = (*(notice for notice in task.notices if notice not in outdated), *checks.notices(task.name), *new)
    return replace(task, train=train, test=test, held_out=held_out, notices=notices)


def checked_lengths(task: Task, template: PromptTemplate, checks: RowChecks, indicator_tokens: int) -> Task:
    """The task with every row cut to the model's context, as far as its prompt has a body that may be cut.

    A training row must fit with its answer, a test row with the tokens that the task reserves for an answer. Where the task
    allows longer answers than it reserves, fewer tokens are generated after a long prompt. A notice counts the cut prompts.

    Args:
        task: as read.
        template: counts tokens, and has the context's length.
        checks: refuses or counts a row that is still too long.
        indicator_tokens: tokens of an indicator before the answer.

    Raises:
        DataError: a row that ``checks`` refuses, or too many that do not fit.
    """

    def fitting(rows: Iterable[Example], answer_tokens: int | None) -> tuple[tuple[Example, ...], int]:
        """The rows that fit, and how many of them were cut for that."""
        kept, cut = [], 0
        for row in rows:
            answer = len(template.target_ids(row.target)) if answer_tokens is None else answer_tokens
            short, prompt = fitted(row, template, template.max_length - indicator_tokens - answer)
            if prompt + indicator_tokens + answer > template.max_length:
                checks.bad(
                    task.name,
                    row.source or row.id,
                    f"the prompt has {prompt} tokens and leaves no room for {indicator_tokens + answer} of its answer"
                    f" within model.max_length={template.max_length}",
                )
            else:
                kept.append(short)
                cut += short is not row
        return tuple(kept), cut

    outdated = checks.notices(task.name)  # the new notice also counts the rows skipped in reading
    reserved = task.max_new_tokens if task.reserved is None else task.reserved
    (train, train_cut), (test, test_cut) = fitting(task.train, None), fitting(task.test, reserved)
    held_out, held_out_cut = fitting(task.held_out, None)
    halves = (("training", task.train, train), ("held-out", task.held_out, held_out), ("test", task.test, test))
    for half, drawn, kept in halves:
        if 100 * (len(drawn) - len(kept)) > MOST_SKIPPED * len(drawn):
            raise DataError(
                f"{task.name}: {len(drawn) - len(kept)} of the {len(drawn)} {half} rows do not fit into"
                f" model.max_length={template.max_length}. That is more than {MOST_SKIPPED} %: raise it, or mend the rows."
            )
    notices = [notice for notice in task.notices if notice not in outdated]
    if train_cut or held_out_cut or test_cut:
        aside = f", {held_out_cut} of {len(held_out)} held-out" if held_out else ""
        notices.append(
            f"{task.name}: {train_cut} of {len(train)} training{aside} and {test_cut} of {len(test)} test prompts were cut to"
            f" fit into model.max_length={template.max_length}; their instructions are whole"
        )
    context = template.max_length - indicator_tokens
    notices += checks.notices(task.name)
    return replace(task, train=train, held_out=held_out, test=test, context=context, notices=tuple(notices))


def longer_references(task: Task, template: PromptTemplate) -> int:
    """Number of a task's test rows whose references are all longer than the longest answer, so that no answer equals them."""
    return sum(
        shortest_reference(row, template) > task.limit(len(template.prompt_ids(row.prompt))) for row in task.test
    )


def shortest_reference(row: Example, template: PromptTemplate) -> int:
    """Tokens of a row's shortest reference."""
    return min(len(template.target_ids(reference)) - 1 for reference in row.references)


def length_notices(task: Task, template: PromptTemplate, setting: str) -> tuple[str, ...]:
    """Notices about test queries whose references do not fit into the longest answer; empty if all fit.

    Args:
        task: as it is tested.
        template: counts tokens.
        setting: name of the setting of the longest answer, for the advice.
    """
    limit, rows = task.max_new_tokens, len(task.test)
    short = sum(task.limit(len(template.prompt_ids(row.prompt))) < limit for row in task.test)
    longest = max(shortest_reference(row, template) for row in task.test)
    notices = []
    if short:
        notices.append(
            f"{task.name}: {short} of {rows} test prompts leave room for fewer than the {limit} tokens that an answer may"
            f" have: it is cut where prompt and answer reach model.max_length={template.max_length}"
        )
    if longer := longer_references(task, template):
        notices.append(
            f"{task.name}: {longer} of {rows} test references are longer than the {limit} tokens that an answer may have, the"
            f" longest has {longest}, so no answer can equal them; {setting}={longest + 1} leaves room for all"
        )
    return tuple(notices)


def fitted(row: Example, template: PromptTemplate, room: int) -> tuple[Example, int]:
    """The row with its body cut such that the prompt fits into ``room`` tokens, and the prompt's number of tokens.

    The body's extras are removed first. A row that has no body, or does not fit without it either, is returned unchanged.

    Args:
        row: the example.
        template: counts tokens.
        room: most tokens of the prompt.
    """
    short, tokens = row, len(template.prompt_ids(row.prompt))
    whole = tokens
    while tokens > room:
        size = 0 if short.body is None else short.body.stop - short.body.start
        if short.body is not None and short.body.extras:
            short = short.without_last_extra()
        elif size == 0:
            return row, whole
        else:
            # Characters per token estimated from the whole prompt: cut too little rather than too much, and repeat.
            short = short.shortened(size - max(1, (tokens - room) * size // tokens))
        tokens = len(template.prompt_ids(short.prompt))
    return short, tokens
