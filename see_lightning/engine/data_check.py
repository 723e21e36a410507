"""What a run would make of a task's rows: their lengths in tokens, and the rows that it cannot use."""

from collections.abc import Iterator

from omegaconf import DictConfig

from see_lightning.config.instantiate import instantiate
from see_lightning.config.schema import RunConfig
from see_lightning.data.checks import MOST_SKIPPED, BadRow, RowChecks
from see_lightning.data.example import Example
from see_lightning.engine.build import indicator_tokens
from see_lightning.errors import Refusal
from see_lightning.tasks.lengths import Lengths, lengths_of
from see_lightning.tasks.prompts import PromptTemplate, checked_texts
from see_lightning.tasks.task import Benchmark, longest_answer

SHOWN = 5  # rows that cannot be used


def row_facts(
    cfg: DictConfig, config: RunConfig, template: PromptTemplate, task: str, *, unusable: bool
) -> Iterator[str]:
    """Lines about a task's rows: lengths against ``model.max_length``, and the rows that stop a run or would be left out.

    Args:
        cfg: composed.
        config: its typed form.
        template: counts tokens.
        task: name of the task; without lines if its files cannot be read.
        unusable: whether rows that a run cannot use are searched; there are none if a run refuses no row.
    """
    benchmark: Benchmark = instantiate(cfg.benchmark)
    try:
        parts = {name: list(part.rows) for name, part in benchmark.reader.parts(task).items()}
        lengths = _lengths(benchmark, config, template, parts, task)
    except Refusal:
        return
    for name, found in lengths.items():
        if found.rows:
            yield f"{name}: {_in_words(found, template.max_length)}"
    bad = [*_unusable(benchmark, config, template, task)] if unusable else []
    bad += [
        row for found in lengths.values() for row in found.too_long if row.source not in {one.source for one in bad}
    ]
    if bad:
        number = sum(map(len, parts.values()))
        yield (
            f"{len(bad)} of {number} rows cannot be used: a run stops at the first of them; data.on_bad_row=skip leaves out"
            f" up to {MOST_SKIPPED} %:"
        )
        yield from (f"  {row.source}: {row.reason}" for row in bad[:SHOWN])
        if len(bad) > SHOWN:
            yield f"  and {len(bad) - SHOWN} more"


def _lengths(
    benchmark: Benchmark,
    config: RunConfig,
    template: PromptTemplate,
    parts: dict[str, list[Example | BadRow]],
    task: str,
) -> dict[str, Lengths]:
    """The lengths of the rows of the training and the test part."""
    rows = {name: [row for row in parts[name] if isinstance(row, Example)] for name in ("train", "test")}
    _, _, limit = benchmark.settings(task)
    usual = longest_answer([len(template.target_ids(row.target)) for row in rows["train"] or rows["test"]] or [0])
    answers = {"train": None, "test": min(limit or usual, usual)}
    room = indicator_tokens(config, template)
    return {name: lengths_of(some, template, room, answers[name]) for name, some in rows.items()}


def _in_words(found: Lengths, most: int) -> str:
    words = f"{found.median} tokens in the median, {found.longest} at most, of model.max_length={most}"
    cut = f"; {found.cut} prompts are cut" if found.cut else ""
    return words + cut + (f"; {len(found.too_long)} rows are too long" if found.too_long else "")


def _unusable(benchmark: Benchmark, config: RunConfig, template: PromptTemplate, task: str) -> tuple[BadRow, ...]:
    """The rows that the checks of a run refuse, all of them instead of the first one."""
    words = (config.indicators.pos, config.indicators.neg)
    checks = RowChecks("skip", words, most_skipped=100)
    try:
        read = benchmark.task(
            task,
            checks=checks,
            tokens=lambda answer: len(template.target_ids(answer)),
            train_size=None,
            test_size=None,
        )
        checked_texts(read, template, checks)
    except Refusal:  # no row is left, or the style has no form for the rows; the run's own refusal follows
        pass
    return checks.skipped(task)
