"""The page of a finished run's test queries and answers, from its ledger."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from see_lightning.config.trust import Trust, load_config
from see_lightning.config.validation import validate
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import Refusal
from see_lightning.files.run_files import well_shaped
from see_lightning.files.writing import refuse_link, write_texts
from see_lightning.reporting.answers.files import INDEX, answers_files, kept_prompts
from see_lightning.reporting.answers.queries import StageAnswers, TestQueries

if TYPE_CHECKING:
    from see_lightning.tasks.task import Task

ANSWERS = "answers"  # folder of the page in the run's directory


def prompts_of(tasks: Iterable["Task"]) -> dict[str, str]:
    """The prompts of some tasks' test queries, by the digest under which records name them."""
    from see_lightning.evaluation.evaluate import prompt_sha  # late: it imports torch

    return {prompt_sha(example): example.prompt for task in tasks for example in task.test}


def queries_of(
    ledger: Ledger,
    results: Mapping[str, Any],
    prompts: Mapping[str, str],
    answers: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> TestQueries:
    """The test queries of a finished run with their answers.

    Args:
        ledger: of the run, read.
        results: content of ``results.json``.
        prompts: by digest, see ``prompts_of``.
        answers: by stage, if they were read before.

    Raises:
        LedgerError: a file of the run is damaged.
    """
    stages = [
        StageAnswers(name, experts, ledger.answers(name) if answers is None else answers[name])
        for name, experts in _experts_by_stage(ledger)
    ]
    responses = (record for stage in stages for record in ledger.remembered(stage.name))
    with well_shaped(ledger.directory / "ledger.json"):
        return TestQueries(results, stages, responses, prompts)


def find_prompts(ledger: Ledger, results: Mapping[str, Any], trust: Trust) -> tuple[TestQueries, str]:
    """The test queries of a finished run, with prompts from its page of answers or else from its data.

    A run itself keeps of most prompts only a digest, by which those of another source are recognised.

    Args:
        ledger: of the run, read.
        results: content of ``results.json``.
        trust: the code that the run's settings may run when the data are read.

    Returns:
        The queries, and the reason why prompts are missing; empty if none is.

    Raises:
        LedgerError: a file of the run is damaged.
    """
    answers = {name: ledger.answers(name) for name in ledger.content["stages"]}
    prompts = kept_prompts(ledger.directory / ANSWERS)
    queries = queries_of(ledger, results, prompts, answers)
    if not queries.without_prompt:
        return queries, ""
    try:
        prompts |= _prompts_of_data(ledger, trust)
    except (Refusal, OSError) as error:
        return queries, str(error)
    queries = queries_of(ledger, results, prompts, answers)
    return queries, "the data have other rows now." if queries.without_prompt else ""


def _prompts_of_data(ledger: Ledger, trust: Trust) -> dict[str, str]:
    """The prompts of the test queries, read from the run's data.

    Raises:
        Refusal: settings, tokenizer or data cannot be read.
    """
    from see_lightning.engine.build import build_tasks, build_template  # late: it imports torch

    cfg = load_config(ledger.directory / "config.yaml", trust)
    config = validate(cfg)
    return prompts_of(build_tasks(cfg, config, build_template(config, ledger.facts().get("date"))))


def _experts_by_stage(ledger: Ledger) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every stage, and the experts that the run had after it, in the order of learning."""
    experts: dict[str, None] = {}
    for name, stage in ledger.content["stages"].items():
        if trained := stage["trained"]:
            assigned = trained.get("assigned") or {"expert": name.partition("-")[2]}
            experts[assigned["expert"]] = None
        yield name, tuple(experts)


def write_answers(ledger: Ledger, queries: TestQueries, out: Path | None = None) -> None:
    """Write the page, in place of an earlier one.

    Args:
        ledger: of the run; held, unless ``out`` is given.
        queries: of the run.
        out: folder in which the page's folder is made; by default the run's directory.

    Raises:
        LedgerError: the directory is no longer held, or a file of the run is damaged.
        Refusal: there is a link or a folder of other files in the page's place.
    """
    ledger.check_held()
    folder = (out or ledger.directory) / ANSWERS
    refuse_link(folder)
    if folder.exists() and not (folder / INDEX).exists() and any(folder.iterdir()):
        raise Refusal(f"{folder} has no {INDEX}, so it is no page of answers, which would replace it; move it away.")
    with well_shaped(ledger.directory / "ledger.json"):
        write_texts(folder, answers_files(queries))
