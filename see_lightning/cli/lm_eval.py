"""A run as a model of lm-evaluation-harness: ``see-lightning lm-eval run --model see_lightning ...``.

That is the harness's own command, which knows this model; ``--model_args run_dir=RUN_DIR,adapter=ensemble`` says who speaks:
``ensemble``, ``base``, or an expert by its name.
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

from see_lightning.engine.ensemble import load_ensemble, usable_device
from see_lightning.errors import ConfigError, nearest
from see_lightning.frame import frame
from see_lightning.methods.expert_scorer import Continuation, ExpertScorer
from see_lightning.methods.method import OneAdapterMethod

ENSEMBLE, BASE = "ensemble", "base"
ANSWER = 256  # tokens of an answer whose task sets no limit, as in the harness's own models

T = TypeVar("T")


class ExpertLM(LM):
    """One adapter of a run, the base model or the ensemble, as a model of the harness.

    A request's context is the query, put to the model through the run's prompt template. The ensemble's experts walk on it,
    once for each query, and whoever accepts scores or writes the answer.

    Args:
        scorer: of a run.
        adapter: ``ensemble``, ``base``, or an expert's name, which then answers everything as if it had accepted.
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
                f"{type(method).__name__.lower()} must be told the task of a query, and a foreign one has none: its ensemble"
                f" cannot be asked. Choose among {', '.join(names[1:])}."
            )
        self.scorer, self.adapter = scorer, adapter
        #: By task: each query, and who answered it.
        self.answered: dict[str, dict[str, str]] = {}
        self._chosen: dict[str, str | None] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each answer its log-probability, and whether it is what would be written."""
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
        """Of each text its log-probability. There is no query to walk on, so an ensemble of experts leaves it to its base.

        Raises:
            ConfigError: an expert is asked alone.
        """
        adapter, method = None, self.scorer.method
        if self.adapter not in (ENSEMBLE, BASE):
            raise ConfigError(
                "a task scores texts without a query, which no expert can accept; leave it out, or leave out the experts"
                " (--adapters ensemble,base)."
            )
        if self.adapter == ENSEMBLE and isinstance(method, OneAdapterMethod) and not self.scorer.pool.header_ids:
            adapter = method.ADAPTER  # activated ones act from a prompt's end on, and there is no prompt
        return [self._score_text(adapter, request.args[0]) for request in _shown(requests, "texts scored")]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers.

        Raises:
            ConfigError: a task wants them sampled.
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
    """A run by its directory; how many queries are read together is the run's own setting.

    Args:
        run_dir: as ``load_ensemble`` takes it.
        adapter: as ``ExpertLM`` takes it.
        device: where to compute; without a GPU the CPU, for the harness asks for one unless it is told otherwise.
        batch_size: not used; the harness hands it over.
        max_batch_size: likewise.
        trust: as ``load_ensemble`` takes it, with blanks between several.
        trust_remote_code: as ``load_ensemble`` takes it.
        voice: older name of ``adapter``.
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
        voice: str | None = None,
    ) -> None:
        place = device if torch.cuda.is_available() else "cpu"
        super().__init__(
            load_scorer(run_dir, place, trust.split(), trust_remote_code=trust_remote_code), voice or adapter
        )


def load_scorer(
    run_dir: str | Path, device: str | None = None, trust: Sequence[str] = (), *, trust_remote_code: bool = False
) -> ExpertScorer:
    """A run's method, with what it takes to score texts.

    Args:
        run_dir: as ``load_ensemble`` takes it.
        device: where to compute; by default on a GPU if there is one.
        trust: as ``load_ensemble`` takes it.
        trust_remote_code: likewise.

    Raises:
        Refusal: there is no such device, or as in ``load_ensemble``.
    """
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    ensemble = load_ensemble(run_dir, device=place, trust=trust, trust_remote_code=trust_remote_code)
    return ExpertScorer(ensemble.method, ensemble.batch_size)


def greedy(settings: dict[str, Any]) -> dict[str, Any]:
    """A task's settings of generation, with what it leaves open.

    Raises:
        ConfigError: they ask for sampled answers.
    """
    wanted: dict[str, Any] = normalize_gen_kwargs(settings, ANSWER)
    if wanted["do_sample"] and wanted.get("temperature", 1.0) > 0:
        raise ConfigError(
            f"answers are greedy, and a task asks for sampled ones with {settings}; set do_sample: false in its"
            f" generation_kwargs."
        )
    return wanted


def experts(scorer: ExpertScorer) -> list[str]:
    """The experts that can be asked alone, oldest first."""
    return list(scorer.pool.names) if scorer.method.traits.has_experts else []


def _shown(what: Iterable[T], name: str) -> Iterable[T]:
    """Progress, in a terminal."""
    shown: Iterable[T] = tqdm(what, desc=name, disable=None, leave=False)
    return shown


@frame()
def main(arguments: Sequence[str] | None = None) -> None:
    """The harness's own command.

    Args:
        arguments: as typed; those of the process by default.
    """
    if arguments is not None:
        sys.argv = ["lm_eval", *arguments]  # it looks nowhere else
    cli_evaluate()
