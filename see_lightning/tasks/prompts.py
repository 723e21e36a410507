"""How a query is put to the model: the prompt style, and the check that prompt and answer fit."""

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

# What stands before and behind a query. Alpaca's is Stanford's without an input field, as SSR uses it; Llama 2's is SSR's,
# with a blank behind it that the model's own template has not.
AROUND = {
    "plain": ("", ""),
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n",
        "\n\n### Response:\n",
    ),
    "llama2": ("[INST] ", " [/INST] "),
}

# Texts by whose prompts and ids it shows whether a template or a tokenizer is another than it was.
PROBES = (
    "A query.", "Sum up:\n\nTom had 1,234.50 coins -- \"so he said\" -- on 5/7/1999.", "  blanks\tand\n\nlines  ",
    "def f(x):\n    return x ** 2  # naïve", "Où? Żółć, Ελλάδα, Москва, 日本語, हिन्दी, עברית, 🙂",
    "</s> <|im_end|> <eos> [/INST] <think>", "pneumonoultramicroscopicsilicovolcanoconiosis",
)  # fmt: skip


class PromptTemplate:
    """Queries and answers to token ids.

    What stands in them is text: where it spells a special token of the tokenizer, it is no such token.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token.
        style: ``chat`` (the tokenizer's own template), ``plain`` (the query alone), ``alpaca``, ``llama2`` (SSR's for it).
        system_prompt: for ``chat``, where None leaves it to the template, and ``llama2``, where None writes none.
        max_length: most tokens of a prompt together with its answer.
        arguments: for ``chat``: variables of the template.
        date: for ``chat``: what the template takes for now; None is now.
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
        #: What prompts tell the date of, in ISO form; None where they tell none.
        self.date = date.isoformat(timespec="seconds") if self.chat and self.chat.dated else None

    def with_system_prompt(self, system_prompt: str) -> "PromptTemplate":
        """The same with another system prompt.

        Raises:
            ConfigError: the template has no place for it.
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
        """The ids up to where the answer begins.

        Raises:
            ConfigError: the chat template fails or changes the query, or the tokenizer takes a part of it for a token of its
                own.
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
        """The ids that end every prompt, such as a chat's assistant header; empty if prompts end with the query."""
        header = self.chat.header() if self.chat else ""
        if header:
            return self.pieces.ids([Piece(header, False)])
        first, second = (self.prompt_ids(query)[::-1] for query in ("A query.", "Another one?"))
        alike = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        return first[:alike][::-1]

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text by itself."""
        return self.pieces.text_ids(text)

    def target_ids(self, target: str) -> list[int]:
        """The ids of an answer with the end-of-sequence token that closes it."""
        return [*self.text_ids(target), self.tokenizer.eos_token_id]

    def text(self, ids: list[int]) -> str:
        """The text of generated ids, without special tokens."""
        return self.pieces.text(ids)

    def loss(self, text: str) -> tuple[str, bool]:
        """How a text comes back from its ids, see ``Pieces.loss``."""
        return self.pieces.loss(text)

    def digest(self) -> str:
        """sha256 of the ids of a fixed query: two templates with one digest put queries alike."""
        ids = (*self.prompt_ids("A query."), *self.target_ids("An answer."))
        return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()

    def made_from(self) -> dict[str, str]:
        """What a run is made from: sha256 of the prompts that some queries become, and of the ids of some texts."""
        prompts, ids = [], []
        for query in PROBES:
            try:
                prompts.append(self.chat.text(query) if self.chat else query)
                ids.append(self.prompt_ids(query) + self.target_ids(query))
            except ConfigError as error:  # some templates and tokenizers cannot write each of them
                prompts.append(str(error))
        return {
            "prompt template": hashlib.sha256("\x1e".join(prompts).encode()).hexdigest(),
            "tokenizer": hashlib.sha256(repr(ids).encode()).hexdigest(),
        }


def checked_header(task: Task, template: PromptTemplate) -> Task:
    """The task, each of whose prompts ends in the header from which on activated experts act.

    Raises:
        DataError: the tokenizer joined a prompt's end with what stands before, or an answer repeats the header, which
            PEFT would take for the prompt's.
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
    """The task with every row that becomes token ids and comes back from them.

    An answer of which the tokenizer loses a part, and a prompt that the template changes, are bad rows. What comes back with
    other blanks, case, or compositions of Unicode is told in a notice, as are prompts of which the tokenizer loses a part.

    Args:
        task: as read.
        template: of the run.
        checks: what to do with a bad row.
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
            for part, told in (("prompts", prompt), ("answers", answer)):
                altered[part] += [f"{place}: {told}"] if told else []
            yield row

    outdated = checks.notices(task.name)  # what was skipped on reading is counted again in the new notice
    train, test, held_out = (tuple(writable(rows)) for rows in (task.train, task.test, task.held_out))
    number = len(train) + len(test) + len(held_out)
    told = [
        f"{task.name}: the tokenizer does not give {len(rows)} of {number} {part} back as they stand; first {rows[0]}"
        for part, rows in altered.items()
        if rows
    ]
    notices = (*(notice for notice in task.notices if notice not in outdated), *checks.notices(task.name), *told)
    return replace(task, train=train, test=test, held_out=held_out, notices=notices)


def checked_lengths(task: Task, template: PromptTemplate, checks: RowChecks, indicator_tokens: int) -> Task:
    """The task with every row short enough: where a prompt has a body, that is cut, and told in a notice.

    A row that is too long all the same ``checks`` refuses or counts. A training row must hold its prompt and its answer, a
    test row its prompt and what the task reserves for an answer. Where more may be generated, a long prompt leaves room for
    less.

    Args:
        task: as read.
        template: tells how many tokens a row has.
        checks: what to do with a bad row.
        indicator_tokens: room that an indicator takes before the answer.
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

    outdated = checks.notices(task.name)  # what was skipped on reading is counted again in the new notice
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
    """How many of a task's test references no answer can equal, for they have more tokens than are generated."""
    return sum(
        shortest_reference(row, template) > task.limit(len(template.prompt_ids(row.prompt))) for row in task.test
    )


def shortest_reference(row: Example, template: PromptTemplate) -> int:
    """Tokens of the shortest answer that counts as right."""
    return min(len(template.target_ids(reference)) - 1 for reference in row.references)


def length_notices(task: Task, template: PromptTemplate, setting: str) -> tuple[str, ...]:
    """What there is to tell of the longest answers to a task's test queries; empty where every reference fits.

    Args:
        task: as it is asked.
        template: counts tokens.
        setting: that sets the longest answer.
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
    """The row with as much of its body as its prompt has ``room`` tokens for, and the prompt's tokens.

    The body's extras are left out first. A row without a body, or that does not fit without it either, is returned as it
    is.
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
            # By the characters that a token of the whole prompt has: too few rather than too many, and then again.
            short = short.shortened(size - max(1, (tokens - room) * size // tokens))
        tokens = len(template.prompt_ids(short.prompt))
    return short, tokens
