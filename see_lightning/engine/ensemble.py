"""Loads the experts of a run, to answer new queries with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from see_lightning.config.checks import one_of
from see_lightning.config.trust import NOTHING, Trust, load_config
from see_lightning.config.validation import validate
from see_lightning.engine.build import build_method, build_tasks, build_template, expert_facts, response_cache_of
from see_lightning.engine.find import check_model
from see_lightning.engine.latest import find_run
from see_lightning.engine.ledger import REMEMBERED, Ledger, LedgerError
from see_lightning.engine.made_from import check_prompts, taken_up
from see_lightning.engine.router import restore_expert
from see_lightning.errors import ConfigError, listed, nearest
from see_lightning.evaluation.evaluate import put_back, remembered
from see_lightning.methods.method import ExpertMethod, Method
from see_lightning.models.base import DTYPES
from see_lightning.tasks.datamodule import query_batch, query_loader
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task, changed_data

Messages = Sequence[Mapping[str, str]]  # one chat: {"role": ..., "content": ...} each


class Verdicts(tuple[str, ...]):
    """The verdicts on one query, in the order of asking: ``pos``, ``neg`` or ``neither``, by position or by expert.

    Args:
        words: the verdicts.
        experts: the names of their experts.

    >>> verdicts = Verdicts(["neg", "pos"], experts=["french", "news"])
    >>> verdicts[0], verdicts["news"], dict(verdicts.items()), verdicts == ("neg", "pos")
    ('neg', 'pos', {'french': 'neg', 'news': 'pos'}, True)
    """

    experts: tuple[str, ...]

    def __new__(cls, words: Sequence[str] = (), experts: Sequence[str] = ()) -> "Verdicts":
        """Make the tuple; ``tuple`` takes its content here, not in ``__init__``."""
        verdicts = super().__new__(cls, words)
        verdicts.experts = tuple(experts)
        return verdicts

    def __getnewargs__(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(self), self.experts

    def __getitem__(self, which: Any) -> Any:
        """A verdict by its position, or by the name of its expert."""
        return super().__getitem__(self.experts.index(which) if which in self.experts else which)

    def items(self) -> Sequence[tuple[str, str]]:
        """Expert and verdict, in the order of asking."""
        return list(zip(self.experts, self, strict=True))

    def __repr__(self) -> str:
        return f"Verdicts({', '.join(f'{expert}={word!r}' for expert, word in self.items())})"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, the expert that generated it, and the verdicts that led there.

    Args:
        text: the answer, without indicator.
        expert: name of the expert's task; ``base`` for the base model; None for a method without experts.
        verdicts: of the experts that the query went through; of SEE's walk newest first.
    """

    text: str
    expert: str | None
    verdicts: Verdicts


class Ensemble:
    """A trained method that answers queries.

    Args:
        method: trained, with its experts loaded.
        max_new_tokens: longest answer.
        batch_size: queries that are decoded together.
    """

    def __init__(self, method: Method, *, max_new_tokens: int, batch_size: int) -> None:
        self.method = method.eval()
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def answer(self, queries: Sequence[str | Messages], task: str | None = None) -> list[Reply]:
        """Answer queries, in their order.

        Args:
            queries: texts, the instruction included; or messages: one of the role ``user``, optionally with one of the role
                ``system`` before it. Experts are trained on single queries, so a chat of several turns is refused.
            task: name of the task, for methods that need it (``stl``); others refuse it.

        Raises:
            ConfigError: a query is too long or has no valid form, or the task is missing, unknown or not wanted.
        """
        if isinstance(queries, str):
            raise TypeError("answer takes a list of queries; for one, write answer([query]).")
        if queries and isinstance(queries[0], Mapping):
            raise TypeError("answer takes a list of queries; for one in messages, write answer([messages]).")
        read = [_read(query) for query in queries]
        if self.method.needs_task_id != (task is not None):
            raise ConfigError(
                "this method needs the task: answer(queries, task=...), --task on the command line. There are:"
                f" {listed(self.method.pool.names)}."
                if task is None
                else "this method finds the task by itself; leave task out."
            )
        if task is not None and task not in (names := self.method.pool.names):
            raise ConfigError(f"there is no expert {task!r}.{nearest(task, names)} There are: {listed(names)}.")
        longest = self.method.template.max_length
        prompts = []
        for system_prompt, query in read:
            template = self.method.template
            if system_prompt is not None:
                template = template.with_system_prompt(system_prompt)
            prompts.append(template.prompt_ids(query))
            tokens = len(prompts[-1])
            if tokens + self.max_new_tokens > longest:
                room = max(0, longest - tokens)
                raise ConfigError(
                    f"a query has {tokens} tokens, so model.max_length={longest} leaves {room} for an answer;"
                    f" {self.max_new_tokens} are asked for (--max-new-tokens, max_new_tokens=): {query[:60]!r}"
                )
        batch = query_batch(
            [query for _, query in read],
            self.method.template,
            tasks=[task] * len(queries) if task else [],
            max_new_tokens=self.max_new_tokens,
            rows=self.batch_size,
        )
        newest_first = self.method.pool.names[::-1]
        with torch.inference_mode():
            answers = self.method.answer(replace(batch, prompts=prompts)) if queries else []
        return [
            Reply(a.text, a.expert, Verdicts(a.verdicts, a.asked or newest_first[: len(a.verdicts)])) for a in answers
        ]


def _read(query: str | Messages) -> tuple[str | None, str]:
    """The system prompt of a query, None if it has none, and its text."""
    if isinstance(query, str):
        return None, query
    for message in query:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str) or "role" not in message:
            raise ConfigError(
                f'a message is {{"role": "user", "content": "..."}}, with a text as its content; got {message!r:.100}'
            )
    roles = [message["role"] for message in query]
    if roles == ["user"]:
        return None, query[0]["content"]
    if roles == ["system", "user"]:
        return query[0]["content"], query[1]["content"]
    raise ConfigError(
        f"messages have the roles {', '.join(roles) or 'of none'}; experts learned to accept single queries, so give one of"
        f" the role user, and before it, if need be, one of the role system."
    )


def usable_device(device: str | torch.device) -> torch.device:
    """A torch device, after a test that it can be used.

    Raises:
        ConfigError: the device cannot be used.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {device} cannot be used: {str(error).strip().splitlines()[0]}") from error
    return found


def load_ensemble(
    run_dir: str | Path,
    *,
    max_new_tokens: int = 128,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    trust: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Ensemble:
    """Load the experts of a run; every file is checked against its sha256 in the ledger.

    Args:
        run_dir: a run directory, ``runs/<order>/<method>/<key>/seed=<n>``, or another path that ``find_run`` takes, such as
            ``runs/<order>/<method>/latest``. Of an unfinished run the finished experts are loaded.
        max_new_tokens: longest answer.
        device: of the model, such as ``cuda`` or ``cuda:1``.
        dtype: of the base model: ``bf16``, ``fp32`` or a torch dtype; None takes the run's. With another dtype than the
            run's a verdict close to its threshold may change.
        trust: dotted names of your own classes, methods or readers, which may be imported if the run names them; classes
            that the calling program has imported are trusted too. No other code is run.
        trust_remote_code: whether Python code in the base model's files may run.

    Raises:
        ConfigError: the folder has no run, the run needs code that is not trusted, or device or dtype cannot be used.
        LedgerError: a file of the run is damaged, or the tokenizer or template has changed since training.
    """
    names = {kind: name for name, kind in DTYPES.items()}
    name = names.get(dtype, str(dtype)) if isinstance(dtype, torch.dtype) else dtype
    if name is not None:
        one_of("dtype", name, DTYPES)
    place = usable_device(device)
    run_dir = find_run(run_dir)
    if not (run_dir / "config.yaml").exists() or not (run_dir / "ledger.json").exists():
        raise ConfigError(f"{run_dir} holds no run; give the folder that has ledger.json in it.")
    if isinstance(trust, str):
        raise TypeError(f"trust takes a list of names; for one, write trust=[{trust!r}].")
    cfg = load_config(run_dir / "config.yaml", Trust(tuple(trust), trust_remote_code))
    method = load_method(cfg, Ledger(run_dir).read(), name, place)
    if method.traits.schedule != "frozen" and not (method.pool.names or method.state()):
        raise ConfigError(f"{run_dir} has finished no task yet, so it has no expert to answer.")
    return Ensemble(method, max_new_tokens=max_new_tokens, batch_size=cfg.data.eval_batch_size)


def load_method(
    cfg: DictConfig, ledger: Ledger, dtype: str | None = None, device: torch.device | None = None
) -> Method:
    """Build a run's method, and load everything that it has learned.

    Args:
        cfg: of the run.
        ledger: of the run.
        dtype: of the base model; None takes the run's.
        device: of the model; None is the CPU.

    Raises:
        LedgerError: an expert's file is damaged, or the tokenizer or template has changed since training.
    """
    config = validate(cfg)
    check_model(ledger, config)
    about = ledger.facts()
    template = build_template(config, about.get("date"))
    check_prompts(ledger, template)
    method = build_method(cfg, config, template, dtype or about["dtype"])
    check_model(ledger, config)  # its files may have been downloaded just now
    method.pool.choose_reading()
    if device is not None:
        method.to(device)  # tensors of its state are loaded onto its device
    facts = expert_facts(config, template, about["dtype"])
    for name, stage in ledger.content["stages"].items():
        if stage["trained"] and stage["trained"].get("ended", True):
            folder = ledger.verified(name) / "expert"
            with taken_up(ledger, name, facts):
                restore_expert(method, name.partition("-")[2], folder)
    return method


def read_tasks(cfg: DictConfig, ledger: Ledger, template: PromptTemplate) -> list[Task]:
    """Read the tasks of a finished run, and check that their rows are those of the run.

    Args:
        cfg: of the run.
        ledger: of the run.
        template: of the run.

    Raises:
        LedgerError: the data have changed since the run.
        DataError: the data cannot be read.
    """
    tasks = build_tasks(cfg, validate(cfg), template)
    changed = changed_data({task.name: task.digest() for task in tasks}, ledger.content["about"]["data"])
    if changed:
        raise LedgerError(f"{ledger.directory} was run on other data: {listed(changed)} changed since. Restore them.")
    return tasks


def answer_everything(ledger: Ledger, trust: Trust = NOTHING) -> int:
    """Compute every expert's verdict on every test query of a finished run, and the answers of those that accept it.

    The base model answers every query. Cached responses are reused; new ones are added to the cache of the last stage.

    Args:
        ledger: of the run, held.
        trust: the code that its settings may run.

    Returns:
        The number of answers that were generated.

    Raises:
        LedgerError: the data, tokenizer or template have changed since the run, or a file is damaged.
        DataError: the data cannot be read.
    """
    cfg = load_config(ledger.directory / "config.yaml", trust)
    method = load_remembering(cfg, ledger)
    for task in read_tasks(cfg, ledger, method.template):
        loader = query_loader([task], method.template, batch_size=validate(cfg).data.eval_batch_size, tell_task=False)
        with torch.inference_mode():
            for queries in loader:
                method.decide(queries)
        keep_said(method, task, ledger)
    return method.counts["generations"]


def load_remembering(cfg: DictConfig, ledger: Ledger, *kinds: str) -> ExpertMethod:
    """Load a run's method together with the cached responses of its experts.

    Args:
        cfg: of the run.
        ledger: of the run.
        kinds: kinds of responses to load beside ``REMEMBERED``, see ``Ledger.remembered``.
    """
    method = load_method(cfg, ledger).eval()
    assert isinstance(method, ExpertMethod)
    method.response_cache = response_cache_of(
        expert_facts(validate(cfg), method.template, ledger.content["about"]["dtype"])
    )
    for stage in ledger.content["stages"]:
        for kind in (REMEMBERED, *kinds):
            put_back(method.response_cache, ledger.remembered(stage, kind))
    return method


def keep_said(method: ExpertMethod, task: Task, ledger: Ledger, kind: str = REMEMBERED) -> None:
    """Add the new responses to one task's test queries to the cache of the run's last stage.

    Args:
        method: from ``load_remembering``; its cache has no new entries afterwards.
        task: with the queries that were answered.
        ledger: of the run, held.
        kind: of the responses, see ``Ledger.remembered``.
    """
    assert method.response_cache is not None
    entries, method.response_cache.new = method.response_cache.new, []
    if entries:
        *_, last = ledger.content["stages"]
        ledger.note_answers(last, task.name, {kind: remembered(entries, [task])[task.name]}, {})
        ledger.commit()
