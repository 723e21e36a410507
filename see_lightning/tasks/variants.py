"""Rows without or with a paraphrased definition: do experts and routers recognise more than the definition?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from see_lightning.config.schema import PARAPHRASED
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.tasks.lengths import fitted
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task

BLANK_LINE, LINE_BREAK = "\n\n", "\n"
AS_IS, INPUT_ONLY = "as_is", "input_only"
WORDINGS = (AS_IS, INPUT_ONLY)  # of rows that routers learn


def definition(examples: Sequence[Example]) -> str:
    r"""The longest common prefix of prompts, up to its last blank line, or without one its last line break; else empty.

    >>> definition([Example("1", "Add.\n\n12 and 3", "15", "sums"), Example("2", "Add.\n\n14 and 1", "15", "sums")])
    'Add.'
    """
    prompts = [example.prompt for example in examples]
    low, high = min(prompts), max(prompts)  # the others lie between these two in lexicographic order
    common = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:common].rpartition(BLANK_LINE)[0] or low[:common].rpartition(LINE_BREAK)[0]


def separator(examples: Sequence[Example], definition: str) -> str:
    """The text between definition and input: a blank line or a line break.

    Args:
        examples: their prompts all begin with the definition.
        definition: common to all prompts, from ``definition``.
    """
    return BLANK_LINE if all(one.prompt.startswith(definition + BLANK_LINE) for one in examples) else LINE_BREAK


def input_only(examples: Sequence[Example], definition: str) -> tuple[Example, ...]:
    r"""The examples without the definition and the blank line or line break after it.

    Args:
        examples: their prompts all begin with the definition and one separator.
        definition: common to all prompts, from ``definition``.

    >>> input_only([Example("1", "Add.\n\n12 and 3", "15", "sums")], "Add.")[0].prompt
    '12 and 3'
    """
    left_out = len(definition) + len(separator(examples, definition))
    return tuple(_begun(example, left_out, "") for example in examples)


def paraphrased(examples: Sequence[Example], definition: str, paraphrase: str) -> tuple[Example, ...]:
    r"""The examples with a paraphrase in place of their definition.

    Args:
        examples: their prompts all begin with the definition.
        definition: common to all prompts, from ``definition``.
        paraphrase: the definition in other words.

    >>> paraphrased([Example("1", "Add.\n\n12 and 3", "15", "sums")], "Add.", "What is the sum?")[0].prompt
    'What is the sum?\n\n12 and 3'
    """
    return tuple(_begun(example, len(definition), paraphrase) for example in examples)


def in_wordings(examples: Sequence[Example], definition: str, wordings: Sequence[str]) -> list[Example]:
    r"""The examples in several wordings, those of one example adjacent.

    Args:
        examples: their prompts all begin with the definition and one separator, if there is a definition.
        definition: common to all prompts, from ``definition``; without one the examples stay as they are.
        wordings: of ``WORDINGS``; ``input_only`` leaves out an example that has no input behind its definition.

    >>> rows = [Example("1", "Add.\n\n12 and 3", "15", "sums"), Example("2", "Add.\n\n14 and 1", "15", "sums")]
    >>> [row.prompt for row in in_wordings(rows, "Add.", ["as_is", "input_only"])]
    ['Add.\n\n12 and 3', '12 and 3', 'Add.\n\n14 and 1', '14 and 1']
    """
    if not definition.strip():
        return list(examples)
    without = input_only(examples, definition) if INPUT_ONLY in wordings else examples
    pairs = zip(examples, without, strict=True)
    worded = [{AS_IS: whole, INPUT_ONLY: short} for whole, short in pairs]
    return [row[wording] for row in worded for wording in wordings if row[wording].prompt.strip()]


def _begun(example: Example, left_out: int, beginning: str) -> Example:
    """The example with its prompt's first ``left_out`` characters replaced by ``beginning``."""
    body, more = example.body, len(beginning) - left_out
    if body is not None:  # moved with the text; without the characters that were removed
        body = replace(
            body,
            start=max(body.start, left_out) + more,
            stop=max(body.stop, left_out) + more,
            extras=tuple((start + more, stop + more) for start, stop in body.extras if start >= left_out),
        )
    return replace(example, prompt=beginning + example.prompt[left_out:], body=body)


def variant_of(
    task: Task,
    variant: str,
    paraphrases: Mapping[str, Sequence[str]],
    template: PromptTemplate,
    indicator_tokens: int,
    setting: str = "variants",
) -> Task:
    """The task with a variant of its test queries, under the same name and without training rows.

    Args:
        task: of the run, or a foreign one; its definition is that of its training rows, or of its test rows if it has no
            training rows.
        variant: ``input_only``, or one of ``PARAPHRASED``, whose place among these is that of the paraphrase.
        paraphrases: of definitions, by task.
        template: counts tokens.
        indicator_tokens: tokens of an indicator before the answer.
        setting: that asks for the variant, for messages.

    Raises:
        ConfigError: the task has no definition or no such paraphrase, or a query of the variant is empty or too long.
    """
    place, rows = f"{setting}=[{variant}]", task.train or task.test
    common = definition(rows)
    if not common.strip():
        raise ConfigError(
            f"{place}: the {len(rows)} {'training' if task.train else 'test'} prompts of {task.name} have no definition in"
            f" common, a beginning that a blank line or a line break ends. Leave {variant} out, or write them as definition,"
            f" blank line, input."
        )
    beginning = common + separator(rows, common)
    for example in task.test:
        if not example.prompt.startswith(beginning):
            raise ConfigError(
                f"{place}: {example.source or example.id} does not begin as the training prompts of {task.name} do, with"
                f" {common[:60]!r}. Leave {variant} out, or fix the row."
            )
    if variant == "input_only":
        reworded = input_only(task.test, common)
    else:
        reworded = paraphrased(task.test, common, _paraphrase(task.name, variant, paraphrases, common))
    kept = _checked(task, reworded, template, indicator_tokens, place)
    cut = sum(fit is not row for fit, row in zip(kept, reworded, strict=True))
    notice = (
        f"{task.name}, {variant}: {cut} of {len(kept)} prompts were cut to fit model.max_length={template.max_length}"
    )
    return replace(task, train=(), held_out=(), valid=(), test=kept, notices=(notice,) if cut else ())


def _paraphrase(task: str, variant: str, paraphrases: Mapping[str, Sequence[str]], definition: str) -> str:
    """The paraphrase of a task's definition that a variant uses."""
    texts, number = paraphrases.get(task, ()), PARAPHRASED.index(variant)
    if number < len(texts):
        return texts[number]
    setting = f"benchmark.paraphrases.{task}"
    if not texts and number == 0:
        fault, typed = f"{setting} is not set; give a paraphrase", f"+{setting}='...'"
    else:
        fault = f"{setting} holds {len(texts)} of the {number + 1} texts that it takes; give so many paraphrases"
        typed = f"{'' if texts else '+'}{setting}={['...'] * (number + 1)}".replace(" ", "")
    raise ConfigError(f"variants=[{variant}]: {fault} of {definition[:60]!r} ({typed}), or leave {variant} out.")


def _checked(
    task: Task, rows: Sequence[Example], template: PromptTemplate, indicator_tokens: int, place: str
) -> tuple[Example, ...]:
    """The rows, cut such that indicator and answer fit behind each prompt; refused if one is empty or too long."""
    room, kept = template.max_length - indicator_tokens - (task.reserved or task.max_new_tokens), []
    for row in rows:
        fit, tokens = fitted(row, template, room)
        if tokens > room or not fit.prompt.strip():
            fault = f"{tokens} tokens, of at most {room}" if fit.prompt.strip() else "no input behind its definition"
            raise ConfigError(f"{place}: {row.source or row.id} of {task.name} has {fault}; leave the variant out.")
        kept.append(fit)
    return tuple(kept)
