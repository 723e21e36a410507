"""Lengths of prompts and answers: checks that they fit into the model's context, and notices of those that do not."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

from see_lightning.data.checks import MOST_SKIPPED, BadRow, RowChecks
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError, DataError
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task


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
    (held_out, held_out_cut), (valid, valid_cut) = fitting(task.held_out, None), fitting(task.valid, None)
    halves = (("training", task.train, train), ("held-out", task.held_out, held_out), ("test", task.test, test))
    for half, drawn, kept in (*halves, ("validation", task.valid, valid)):
        if 100 * (len(drawn) - len(kept)) > MOST_SKIPPED * len(drawn):
            raise DataError(
                f"{task.name}: {len(drawn) - len(kept)} of the {len(drawn)} {half} rows do not fit into"
                f" model.max_length={template.max_length}. That is more than {MOST_SKIPPED} %: raise it, or fix the rows."
            )
    notices = [notice for notice in task.notices if notice not in outdated]
    if train_cut or held_out_cut or valid_cut or test_cut:
        aside = f", {held_out_cut} of {len(held_out)} held-out" if held_out else ""
        aside += f", {valid_cut} of {len(valid)} validation" if valid else ""
        notices.append(
            f"{task.name}: {train_cut} of {len(train)} training{aside} and {test_cut} of {len(test)} test prompts were cut to"
            f" fit into model.max_length={template.max_length}; their instructions are whole"
        )
    context = template.max_length - indicator_tokens
    notices += checks.notices(task.name)
    return replace(
        task, train=train, held_out=held_out, valid=valid, test=test, context=context, notices=tuple(notices)
    )


def longer_references(task: Task, template: PromptTemplate) -> int:
    """Number of a task's test rows whose references are all longer than the longest answer, so that no answer equals them."""
    return sum(shortest_reference(row, template) > task.limit(len(template.prompt_ids(row))) for row in task.test)


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
    short = sum(task.limit(len(template.prompt_ids(row))) < limit for row in task.test)
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
    short, tokens = row, len(template.prompt_ids(row))
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
        tokens = len(template.prompt_ids(short))
    return short, tokens


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of rows in tokens: of prompt, indicator and answer together.

    Args:
        rows: number of rows that were counted.
        median: of their lengths; 0 without rows.
        longest: of their lengths; 0 without rows.
        cut: rows whose prompts a run cuts such that they fit.
        too_long: rows that do not fit.
    """

    rows: int
    median: int
    longest: int
    cut: int
    too_long: tuple[BadRow, ...]


def lengths_of(
    rows: Iterable[Example], template: PromptTemplate, indicator_tokens: int, answer_tokens: int | None
) -> Lengths:
    """The lengths of rows against the model's context, see ``checked_lengths``.

    Args:
        rows: a row that the template cannot write is left out.
        template: counts tokens, and has the context's length.
        indicator_tokens: tokens of an indicator before the answer.
        answer_tokens: of a test row, for which so many must be left; None counts those of each row's own answer.
    """
    lengths, cut, too_long = [], 0, []
    for row in rows:
        more = indicator_tokens + (len(template.target_ids(row.target)) if answer_tokens is None else answer_tokens)
        try:
            tokens = len(template.prompt_ids(row)) + more
            lengths.append(tokens)
            if tokens <= template.max_length:
                continue
            _, fit = fitted(row, template, template.max_length - more)
        except ConfigError:
            continue
        if fit + more <= template.max_length:
            cut += 1
        else:
            too_long.append(BadRow(row.source or row.id, f"{tokens} tokens, of at most {template.max_length}"))
    middle = int(median(lengths)) if lengths else 0
    return Lengths(len(lengths), middle, max(lengths, default=0), cut, tuple(too_long))
