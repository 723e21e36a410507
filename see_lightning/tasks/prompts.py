"""How a query is put to the model: the prompt style, and the check that prompt and answer fit."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from see_lightning.config import ConfigError, one_of
from see_lightning.data.checks import MOST_SKIPPED, RowChecks
from see_lightning.data.example import DataError, Example
from see_lightning.tasks.task import Task

# The template of Stanford Alpaca without an input field, as SSR uses it.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{query}\n\n### Response:\n"
)


class PromptTemplate:
    """Queries and answers to token ids.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token.
        style: ``chat`` (the tokenizer's own template), ``plain`` (the query alone), ``alpaca``.
        system_prompt: for ``chat``; None leaves it to the template.
        max_length: most tokens of a prompt together with its answer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, style: str, system_prompt: str | None = None, max_length: int
    ) -> None:
        one_of("model.prompt", style, ("chat", "plain", "alpaca"))
        if style == "chat" and tokenizer.chat_template is None:
            raise ConfigError("this tokenizer has no chat template; use model.prompt=plain or model.prompt=alpaca.")
        if style != "chat" and system_prompt is not None:
            raise ConfigError(f"model.system_prompt is for model.prompt=chat; the style is {style}.")
        self.tokenizer, self.style, self.system_prompt, self.max_length = tokenizer, style, system_prompt, max_length

    def prompt_ids(self, query: str) -> list[int]:
        """The ids up to where the answer begins."""
        if self.style == "chat":
            system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
            text = self.tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": query}], add_generation_prompt=True, tokenize=False
            )
            # The template writes the special tokens itself.
            return list(self.tokenizer(text, add_special_tokens=False).input_ids)
        text = query if self.style == "plain" else ALPACA.format(query=query)
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return [*bos, *self.tokenizer(text, add_special_tokens=False).input_ids]

    def header_ids(self) -> list[int]:
        """The ids that end every prompt, such as a chat's assistant header; empty if prompts end with the query."""
        if self.style == "chat":
            query = [{"role": "user", "content": "A query."}]
            bare, whole = (
                str(self.tokenizer.apply_chat_template(query, add_generation_prompt=add, tokenize=False))
                for add in (False, True)
            )
            if whole.startswith(bare) and whole != bare:
                return list(self.tokenizer(whole.removeprefix(bare), add_special_tokens=False).input_ids)
        first, second = (self.prompt_ids(query)[::-1] for query in ("A query.", "Another one?"))
        alike = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        return first[:alike][::-1]

    def target_ids(self, target: str) -> list[int]:
        """The ids of an answer with the end-of-sequence token that closes it."""
        return [*self.tokenizer(target, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]

    def text(self, ids: list[int]) -> str:
        """The text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def digest(self) -> str:
        """sha256 of the ids of a fixed query: two templates with one digest put queries alike."""
        ids = (*self.prompt_ids("A query."), *self.target_ids("An answer."))
        return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


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

    A row without a body, or that does not fit without it either, is returned as it is.
    """
    short, tokens = row, len(template.prompt_ids(row.prompt))
    whole = tokens
    while tokens > room:
        size = 0 if short.body is None else short.body.stop - short.body.start
        if size == 0:
            return row, whole
        # By the characters that a token of the whole prompt has: too few rather than too many, and then again.
        short = short.shortened(size - max(1, (tokens - room) * size // tokens))
        tokens = len(template.prompt_ids(short.prompt))
    return short, tokens
