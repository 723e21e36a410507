"""A run as a model of lm-evaluation-harness: ``see-lightning lm-eval run --model see_lightning ...``.

This is the harness's own command with this model registered. In ``--model_args run_dir=RUN_DIR,adapter=ensemble`` the adapter
is ``ensemble``, ``base``, or an expert's name.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from see_lightning.cli.old_names import current_name
from see_lightning.engine.ensemble import load_ensemble, usable_device
from see_lightning.errors import ConfigError, nearest
from see_lightning.evaluation.expert_scorer import Continuation, ExpertScorer
from see_lightning.frame import frame
from see_lightning.methods.method import OneAdapterMethod

ENSEMBLE, BASE = "ensemble", "base"
ARGUMENTS = ("run_dir", "adapter", "device", "trust", "trust_remote_code")  # of the harness's ``--model_args``
ANSWER = 256  # limit of new tokens for tasks without one; the harness's own models have the same

T = TypeVar("T")


class ExpertLM(LM):
    """One adapter of a run, the base model or the ensemble, as a model of the harness.

    A request's context is the query, formatted by the run's prompt template. The ensemble routes each query once, and the
    expert that accepts it scores or generates the answer.

    Args:
        scorer: of a run.
        adapter: ``ensemble``, ``base``, or an expert's name; an expert answers every query as if it had accepted it.
    """

    def __init__(self, scorer: ExpertScorer, adapter: str = ENSEMBLE) -> None:
        super().__init__()
        method, names = scorer.method, (ENSEMBLE, BASE, *experts(scorer))
        if adapter not in names:
            raise ConfigError(
                f"there is no adapter {adapter!r}.{nearest(adapter, names)} There are: {', '.join(names)}."
            )
        if adapter == ENSEMBLE and method.needs_task_id:
            raise ConfigError(
                f"{type(method).__name__.lower()} needs the task of a query, and a query of the harness has none: its"
                f" ensemble cannot be evaluated. Choose among {', '.join(names[1:])}."
            )
        self.scorer, self.adapter = scorer, adapter
        #: By task: each query, and the adapter that answered it.
        self.answered: dict[str, dict[str, str]] = {}
        self._chosen: dict[str, str | None] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The log-probability of each answer, and whether greedy decoding would give it."""
        found: dict[tuple[str, str], tuple[float, bool]] = {}
        answers: dict[str, list[str]] = {}  # by query, in the order given, each once
        for query, answer in dict.fromkeys(request.args for request in requests):
            answers.setdefault(query, []).append(answer)
        self._choose(requests)
        for query, own in _shown(list(answers.items()), "answers scored"):
            scores = self.scorer.score(self._chosen[query], query, own)
            found |= {(query, text): (s.log_likelihood, s.is_greedy) for text, s in zip(own, scores, strict=True)}
        return [found[request.args] for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-probability of each text. Without a query there is no routing: an ensemble of experts uses its base model.

        Raises:
            ConfigError: the adapter is a single expert.
        """
        adapter, method = None, self.scorer.method
        if self.adapter not in (ENSEMBLE, BASE):
            raise ConfigError(
                "a task scores texts without a query, which no expert can accept; leave it out, or leave out the experts"
                " (--adapters ensemble,base)."
            )
        if self.adapter == ENSEMBLE and isinstance(method, OneAdapterMethod) and not self.scorer.pool.header_ids:
            adapter = method.ADAPTER  # activated adapters act from a prompt's end on, and there is no prompt
        return [self._score_text(adapter, request.args[0]) for request in _shown(requests, "texts scored")]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The greedy answer to each request.

        Raises:
            ConfigError: a task asks for sampled answers.
        """
        self._choose(requests)
        return [self._write(*request.args) for request in _shown(requests, "answers written")]

    def _choose(self, requests: Sequence[Instance]) -> None:
        queries = dict.fromkeys(request.args[0] for request in requests)
        new = [query for query in queries if query not in self._chosen]
        if self.adapter == ENSEMBLE:
            chosen = self.scorer.choose(new)
        else:
            chosen = [None if self.adapter == BASE else self.adapter] * len(new)
        self._chosen |= dict(zip(new, chosen, strict=True))
        for request in requests:
            query = request.args[0]
            self.answered.setdefault(str(request.task_name), {})[query] = self._chosen[query] or BASE

    def _write(self, query: str, settings: dict[str, Any]) -> str:
        wanted = greedy(settings)
        return self.scorer.write(
            self._chosen[query], query, max_new_tokens=wanted["max_gen_toks"], until=wanted["until"]
        )

    def _score_text(self, adapter: str | None, text: str) -> float:
        template, longest = self.scorer.template, self.scorer.longest
        tokenizer = template.tokenizer
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        ids = template.text_ids(text)
        windows = map(make_disjoint_window, get_rolling_token_windows(ids, first, longest, 1))
        parts = [self.scorer.score_ids(adapter, past, [Continuation((), new)]) for past, new in windows]
        return sum(part.log_likelihood for (part,) in parts)


@register_model("see_lightning")
class SeeLightning(ExpertLM):
    """A run by its directory; the batch size is the run's own setting.

    Args:
        run_dir: directory of a run.
        adapter: ``ensemble``, ``base``, or an expert's name.
        device: such as cuda; always the CPU where there is no GPU, since the harness passes cuda by default.
        batch_size: passed by the harness, not used.
        max_batch_size: passed by the harness, not used.
        trust: dotted names of classes that may be imported, with blanks between several.
        trust_remote_code: whether Python code that comes with the base model may run.
        **older: arguments under older names, see ``conf/old_names.yaml``.

    Raises:
        ConfigError: an argument is unknown.
    """

    def __init__(
        self,
        run_dir: str | Path,
        adapter: str = ENSEMBLE,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        trust: str = "",
        trust_remote_code: bool = False,
        **older: str,
    ) -> None:
        for name, value in older.items():
            if current_name("lm-eval", name) != "adapter":
                raise ConfigError(
                    f"model see_lightning takes no {name!r}.{nearest(name, ARGUMENTS)} It takes {', '.join(ARGUMENTS)}."
                )
            adapter = value
        place = device if torch.cuda.is_available() else "cpu"
        super().__init__(load_scorer(run_dir, place, trust.split(), trust_remote_code=trust_remote_code), adapter)


def load_scorer(
    run_dir: str | Path, device: str | None = None, trust: Sequence[str] = (), *, trust_remote_code: bool = False
) -> ExpertScorer:
    """Load a run's method as a scorer of texts.

    Args:
        run_dir: directory of a run.
        device: where to compute; by default on a GPU if there is one.
        trust: dotted names of classes that may be imported.
        trust_remote_code: whether Python code that comes with the base model may run.

    Raises:
        Refusal: there is no such device, or the run cannot be loaded.
    """
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    ensemble = load_ensemble(run_dir, device=place, trust=trust, trust_remote_code=trust_remote_code)
    return ExpertScorer(ensemble.method, ensemble.batch_size)


def greedy(settings: dict[str, Any]) -> dict[str, Any]:
    """A task's settings of generation, completed with defaults.

    Raises:
        ConfigError: the task asks for sampled answers.
    """
    wanted: dict[str, Any] = normalize_gen_kwargs(settings, ANSWER)
    if wanted["do_sample"] and wanted.get("temperature", 1.0) > 0:
        raise ConfigError(
            f"answers are greedy, and a task asks for sampled ones with {settings}; set do_sample: false in its"
            f" generation_kwargs."
        )
    return wanted


def experts(scorer: ExpertScorer) -> list[str]:
    """The experts that can be evaluated alone, oldest first."""
    return list(scorer.pool.names) if scorer.method.traits.has_experts else []


def _shown(items: Iterable[T], name: str) -> Iterable[T]:
    """The items, with a progress bar in a terminal."""
    shown: Iterable[T] = tqdm(items, desc=name, disable=None, leave=False)
    return shown


@frame()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the harness's own command.

    Args:
        arguments: as typed; those of the process by default.
    """
    if arguments is not None:
        sys.argv = ["lm_eval", *arguments]  # the harness reads its arguments from there
    cli_evaluate()
