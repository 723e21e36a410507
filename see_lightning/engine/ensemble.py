"""Using a finished run: its experts answer new queries."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from see_lightning.config import ConfigError, load_config, nearest, validate
from see_lightning.engine.build import build_method, build_tasks, build_template, expert_facts, recall_of
from see_lightning.engine.find import check_model
from see_lightning.engine.ledger import REMEMBERED, Ledger, LedgerError
from see_lightning.engine.made_from import check_prompts
from see_lightning.evaluation.evaluate import put_back, remembered
from see_lightning.methods.method import ExpertMethod, Method
from see_lightning.tasks.datamodule import query_batch, query_loader
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and where it came from.

    Args:
        text: the answer, without indicator.
        expert: who answered: a task's name, ``base``, or None for a method without experts.
        verdicts: of the experts asked, newest first: ``pos``, ``neg`` or ``neither``.
    """

    text: str
    expert: str | None
    verdicts: tuple[str, ...]


class Ensemble:
    """A trained method, ready to answer.

    Args:
        method: with everything it learned.
        max_new_tokens: longest answer.
        batch_size: queries decoded together.
    """

    def __init__(self, method: Method, *, max_new_tokens: int, batch_size: int) -> None:
        self.method = method.eval()
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def answer(self, queries: Sequence[str], task: str | None = None) -> list[Reply]:
        """Answer queries, in their order.

        Args:
            queries: as a user would type them, the instruction included.
            task: for a method that must be told (``stl``); others refuse it.
        """
        if isinstance(queries, str):
            raise TypeError("answer takes a list of queries; for one, write answer([query]).")
        if self.method.needs_task_id != (task is not None):
            raise ConfigError(
                "this method must be told the task: answer(queries, task=...), --task on the command line. There are:"
                f" {', '.join(self.method.pool.names)}."
                if task is None
                else "this method finds the task by itself; leave task out."
            )
        if task is not None and task not in (names := self.method.pool.names):
            raise ConfigError(f"there is no expert {task!r}.{nearest(task, names)} There are: {', '.join(names)}.")
        longest = self.method.template.max_length
        for query in queries:
            tokens = len(self.method.template.prompt_ids(query))
            if tokens + self.max_new_tokens > longest:
                room = max(0, longest - tokens)
                raise ConfigError(
                    f"a query has {tokens} tokens, so model.max_length={longest} leaves {room} for an answer;"
                    f" {self.max_new_tokens} are asked for (--max-new-tokens, max_new_tokens=): {query[:60]!r}"
                )
        batch = query_batch(
            queries,
            self.method.template,
            tasks=[task] * len(queries) if task else [],
            max_new_tokens=self.max_new_tokens,
            rows=self.batch_size,
        )
        with torch.inference_mode():
            return [Reply(a.text, a.expert, a.verdicts) for a in self.method.answer(batch)] if queries else []


def load_ensemble(run_dir: str | Path, *, max_new_tokens: int = 128) -> Ensemble:
    """The experts of a run, on the CPU, each checked against the hash it was saved with.

    Args:
        run_dir: a run's directory, ``runs/<order>/<method>/<key>/seed=<n>``; an unfinished one gives the experts it has.
        max_new_tokens: longest answer.

    Raises:
        ConfigError: there is no run in that folder.
        LedgerError: an expert's file is damaged, or the tokenizer or template is another than at training.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").exists() or not (run_dir / "ledger.json").exists():
        raise ConfigError(f"{run_dir} holds no run; give the folder that has ledger.json in it.")
    cfg = load_config(run_dir / "config.yaml")
    method = load_method(cfg, Ledger(run_dir).read())
    if method.schedule != "frozen" and not method.pool.names:
        raise ConfigError(f"{run_dir} has finished no task yet, so there is nothing to ask.")
    return Ensemble(method, max_new_tokens=max_new_tokens, batch_size=cfg.data.eval_batch)


def load_method(cfg: DictConfig, ledger: Ledger) -> Method:
    """A run's method with all that it has learned, on the CPU.

    Args:
        cfg: of the run.
        ledger: of the run.

    Raises:
        LedgerError: an expert's file is damaged, or the tokenizer or template is another than at training.
    """
    config = validate(cfg)
    check_model(ledger, config)
    about = ledger.content["about"]
    template = build_template(config, about.get("date"))
    check_prompts(ledger, template)
    method = build_method(cfg, config, template, about["dtype"])
    method.pool.choose_reading()
    for name, stage in ledger.content["stages"].items():
        if stage["trained"] and stage["trained"].get("ended", True):
            folder = ledger.verified(name) / "expert"
            record = json.loads((folder / "expert.json").read_text(encoding="utf-8"))
            if record["template_sha256"] != template.digest():
                raise LedgerError(f"{folder} was trained with another tokenizer or prompt template than is there now.")
            method.restore(record["task"], folder)
    return method


def read_tasks(cfg: DictConfig, ledger: Ledger, template: PromptTemplate) -> list[Task]:
    """The tasks of a finished run, with the very rows that it was run on.

    Args:
        cfg: of the run.
        ledger: of the run.
        template: of the run.

    Raises:
        LedgerError: the data are not those of the run.
        DataError: the data cannot be read.
    """
    tasks = build_tasks(cfg, validate(cfg), template)
    changed = [task.name for task in tasks if task.digest() != ledger.content["about"]["data"][task.name]]
    if changed:
        raise LedgerError(
            f"{ledger.directory} was run on other data: {', '.join(changed)} changed since. Restore them."
        )
    return tasks


def answer_everything(ledger: Ledger) -> int:
    """Let each expert of a finished run answer every test query it accepts, and the base model every one.

    What is remembered is not computed again, and what is new is remembered with the run's last stage.

    Args:
        ledger: of the run, held.

    Returns:
        How many answers were written.

    Raises:
        LedgerError: the data are not those of the run, or as in ``load_method``.
        DataError: the data cannot be read.
    """
    cfg = load_config(ledger.directory / "config.yaml")
    method = load_remembering(cfg, ledger)
    for task in read_tasks(cfg, ledger, method.template):
        loader = query_loader([task], method.template, batch_size=validate(cfg).data.eval_batch, tell_task=False)
        with torch.inference_mode():
            for queries in loader:
                method.decide(queries)
        keep_said(method, task, ledger)
    return method.counts["generations"]


def load_remembering(cfg: DictConfig, ledger: Ledger, *kinds: str) -> ExpertMethod:
    """As ``load_method``, with all that its voices are remembered to have said.

    Args:
        cfg: of the run.
        ledger: of the run.
        kinds: what else of the ledger is remembered, see ``Ledger.remembered``.
    """
    method = load_method(cfg, ledger).eval()
    assert isinstance(method, ExpertMethod)
    method.recall = recall_of(expert_facts(validate(cfg), method.template, ledger.content["about"]["dtype"]))
    for stage in ledger.content["stages"]:
        for kind in (REMEMBERED, *kinds):
            put_back(method.recall, ledger.remembered(stage, kind))
    return method


def keep_said(method: ExpertMethod, task: Task, ledger: Ledger, kind: str = REMEMBERED) -> None:
    """Remember with the run's last stage what was said for the first time, all of it to one task's test queries.

    Args:
        method: from ``load_remembering``.
        task: as it was asked.
        ledger: of the run, held.
        kind: under which it is remembered, see ``Ledger.remembered``.
    """
    assert method.recall is not None
    entries, method.recall.new = method.recall.new, []
    if entries:
        *_, last = ledger.content["stages"]
        ledger.note_answers(last, task.name, {kind: remembered(entries, [task])[task.name]}, {})
        ledger.commit()
