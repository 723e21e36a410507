"""Two signals: a proposed expert's log-odds and a density of the query's input alone, joined by a logistic regression.

The log-odds know the words of the definition, and tell foreign queries with a definition from own ones; the density does not
depend on the definition, and tells foreign inputs from own ones. Queries without a definition have lower log-odds, so each
task has two thresholds: one for queries with a definition and one for those without.

Letters: Q queries, T tasks, N samples (a text under one expert), P prompts, H hidden states, F signals.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.errors import ConfigError
from see_lightning.routing.features import FeatureRouter
from see_lightning.routing.guarantee import guaranteed_threshold
from see_lightning.routing.logistic import fit_logistic
from see_lightning.routing.propose import scoring_router
from see_lightning.routing.scoring import ScoringRouter
from see_lightning.routing.signals import GENERAL, OTHER, OWN, Measured, Sample, Scale, even_weights, worded
from see_lightning.routing.walk import Deciding, log_odds
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.bodies import body_of, has_definition, query_of
from see_lightning.tasks.negatives import unseen_general
from see_lightning.tasks.variants import AS_IS, INPUT_ONLY

BY, BODY = "by.", "body."  # begin the names of the other routers' tensors in a task's state
RIDGE = 0.01  # of the regression, whose samples of a task have the weight 2 in all


class Refusing(Deciding, Protocol):
    """A method whose experts learn to refuse general instructions.

    Attributes:
        general_negatives: number that each expert learns to refuse.
        general_source: of these instructions.
    """

    general_negatives: int
    general_source: str


class Joint(ScoringRouter):
    """The proposed expert, if its log-odds and the score of the query's body together reach its threshold.

    The body is the text behind the first blank line, and what stands before it is the definition. The weights are fitted on
    held-out rows, which the own expert must accept as they stand, reworded, with errors and without the definition, and
    another expert must refuse; and on general instructions with and without their definition, which the expert must refuse.

    Args:
        method: whose experts give verdicts.
        by: settings of the router that proposes an expert.
        body: settings of the feature router that scores bodies.
        target_recall: least share of a task's queries that is accepted under each wording, above 0 and below 1.
        confidence: of this share, below 1. With fewer held-out rows than it needs, all of them are accepted.
        ood_examples: general instructions, which no expert learns to refuse, at least 1.

    Raises:
        ConfigError: ``by`` gives no scores, ``body`` is no router of features, one of them has a threshold, or a setting is
            out of range.
    """

    needs = frozenset({"has_experts", "learns_refusals"})
    holds_out = True
    asks_few = True

    def __init__(
        self,
        method: Refusing,
        *,
        by: Mapping[str, Any],
        body: Mapping[str, Any],
        target_recall: float = 0.95,
        confidence: float = 0.95,
        ood_examples: int = 60,
    ) -> None:
        super().__init__(method, target_recall=target_recall)
        within("router.target_recall", target_recall, 0.01, 0.999)
        within("router.confidence", confidence, 0.01, 0.999)
        within("router.ood_examples", ood_examples, 1)
        proposer, scores = scoring_router(by, method), scoring_router(body, method)
        if not isinstance(scores, FeatureRouter) or scores.holds_out or proposer.holds_out:
            raise ConfigError(
                "router.by and router.body of router=joint have no threshold of their own, and router.body scores features:"
                " router.by.target_recall=0 router@router.body=density router.body.target_recall=0."
            )
        self._refusing, self.by, self.body = method, proposer, scores
        self.confidence, self.ood_examples = confidence, ood_examples
        self.wordings, self.holds_out = (AS_IS, INPUT_ONLY), True

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """One router learns the task's prompts, the other one their bodies."""
        self.by.learn(task, prompts)
        bodies = [self._ids(body_of(self._query(prompt))) for prompt in prompts]
        self.body.learn(task, list(dict.fromkeys(map(tuple, bodies))))
        self._forget()

    def hold_out(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Keep log-odds and features of bodies of held-out rows and of general instructions."""
        names, queries = self.candidates(), list(dict.fromkeys(map(self._query, prompts)))
        samples = self._samples(task, names.index(task), queries)
        found = log_odds(
            self._refusing, [self._ids(one.text) for one in samples], [names[one.expert] for one in samples]
        )
        bodies = list(dict.fromkeys(body_of(one.text) for one in samples))
        places = {body: place for place, body in enumerate(bodies)}
        self.kept[task] = {
            "log_odds": torch.tensor(found, dtype=torch.float64),
            "samples": torch.tensor(
                [
                    (places[body_of(one.text)], one.expert, one.kind, has_definition(one.text), one.wording)
                    for one in samples
                ]
            ),
            "states": self.body.embed([self._ids(body) for body in bodies], self.body.layer),
        }
        self._forget()

    def candidates(self) -> list[str]:
        """The learned tasks."""
        return self.by.candidates()

    def scores(self, queries: Queries) -> Tensor:
        """By how much the proposed task's joined signals exceed its threshold, (Q, T); -inf for the other tasks."""
        names, texts = self.candidates(), [self._query(prompt) for prompt in queries.prompts]
        proposed = [row.index(max(row)) for row in self.by.scores(queries).tolist()]
        bodies_QT = self.body.scores(replace(queries, prompts=[self._ids(body_of(text)) for text in texts]))
        router = self._refusing.sequential_router(replace(queries, only_decide=True))
        found = router.log_odds([[names[place]] for place in proposed])
        scores_QT = torch.full((len(queries), len(names)), -torch.inf, dtype=torch.float64)
        for row, (place, text, (value,)) in enumerate(zip(proposed, texts, found, strict=True)):
            signals_1F = self.scales[place].signals(torch.tensor([value]), bodies_QT[row, place][None].cpu())
            scores_QT[row, place] = self._join(signals_1F)[0] - self.least[place, has_definition(text)]
        return scores_QT

    def thresholds(self) -> Tensor:
        """Zero for each task, (T,): scores are differences from thresholds."""
        return torch.zeros(len(self.candidates()), dtype=torch.float64)

    @cached_property
    def measured(self) -> "list[Measured]":
        """The samples of each task's expert, from its own held-out rows and from those of later tasks."""
        # The rows of a task are always scored together, so the scores are the same after they were restored.
        scores = {
            task: self.body.score(kept["states"].to(self.method.pool.device())).double().cpu()
            for task, kept in self.kept.items()
        }
        found = []
        for place in range(len(self.candidates())):
            parts = []
            for task, kept in self.kept.items():
                here_N = kept["samples"][:, 1] == place
                samples_N5 = kept["samples"][here_N]
                bodies_N = scores[task][samples_N5[:, 0], place]
                parts.append(Measured(kept["log_odds"][here_N], bodies_N, *samples_N5[:, 2:].T))
            found.append(Measured(*map(torch.cat, zip(*parts, strict=True))))
        return found

    @cached_property
    def scales(self) -> "list[Scale]":
        """The scale of each task's signals."""
        return [Scale.of(one) for one in self.measured]

    @cached_property
    def weights(self) -> Tensor:
        """The constant and the weights of both signals, (1 + F,)."""
        signals, accepted, weight = [], [], []
        for one, scale in zip(self.measured, self.scales, strict=True):
            signals.append(scale.signals(one.log_odds_N, one.bodies_N))
            accepted.append(one.kind_N == OWN)
            weight.append(even_weights(one.kind_N, one.defined_N))
        return fit_logistic(torch.cat(signals), torch.cat(accepted).double(), torch.cat(weight), RIDGE)

    @cached_property
    def least(self) -> dict[tuple[int, bool], float]:
        """By task and by whether a query has a definition, the least joined signals with which the expert answers."""
        found = {}
        for place, (one, scale) in enumerate(zip(self.measured, self.scales, strict=True)):
            joined_N, is_own_N = self._join(scale.signals(one.log_odds_N, one.bodies_N)), one.kind_N == OWN
            for defined in (False, True):
                group_N = is_own_N & (one.defined_N == defined)
                if not group_N.any():  # all of the task's queries are of the other group
                    group_N = is_own_N
                worded = [joined_N[group_N & (one.wording_N == n)] for n in set(one.wording_N[group_N].tolist())]
                found[place, defined] = min(
                    guaranteed_threshold(values_N.tolist(), self.target_recall, self.confidence) for values_N in worded
                )
        return found

    def state(self, task: str) -> dict[str, Tensor]:
        """What all three keep of a task."""
        parts = {BY: self.by, BODY: self.body}
        inner = {f"{start}{name}": one for start, part in parts.items() for name, one in part.state(task).items()}
        return super().state(task) | inner

    def load_state(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Load a task's ``state``."""
        for start, part in ((BY, self.by), (BODY, self.body)):
            part.load_state(task, {n.removeprefix(start): one for n, one in tensors.items() if n.startswith(start)})
        super().load_state(task, {n: one.cpu() for n, one in tensors.items() if not n.startswith((BY, BODY))})
        self._forget()

    def nbytes(self) -> int:
        """Size of all that is kept."""
        return super().nbytes() + self.by.nbytes() + self.body.nbytes()

    def _forget(self) -> None:
        """Compute scales, weights and thresholds again when they are needed: each task changes them."""
        for name in ("measured", "scales", "weights", "least"):
            self.__dict__.pop(name, None)

    def _join(self, signals_NF: Tensor) -> Tensor:
        return self.weights[0] + signals_NF @ self.weights[1:]

    def _samples(self, task: str, place: int, queries: Sequence[str]) -> list[Sample]:
        """The texts whose log-odds are kept of a task, under its own expert and under the nearest other one."""
        method = self._refusing
        draw = seed(method.run_seed, task, "general negatives")
        general = unseen_general(self.ood_examples, method.general_source, draw, refused=method.general_negatives)
        samples = []
        for query in queries:
            order = random.Random(seed(method.run_seed, task, f"wordings of {query}"))
            samples += [Sample(text, place, OWN, n) for n, text in enumerate(worded(query, order))]
        samples += [
            Sample(text, place, GENERAL, 0)
            for row in general
            for text in dict.fromkeys((row.prompt, body_of(row.prompt)))
        ]
        if place:
            asked = Queries(
                list(map(self._ids, queries)), list(queries), [0] * len(queries), [1] * len(queries), rows=len(queries)
            )
            scores_QT = self.by.scores(asked)[:, :place]  # of the other tasks, all of which are older
            samples += [
                Sample(query, row.index(max(row)), OTHER, 0)
                for query, row in zip(queries, scores_QT.tolist(), strict=True)
            ]
        return samples

    def _query(self, prompt: Sequence[int]) -> str:
        return query_of(self.method.template, prompt)

    def _ids(self, query: str) -> list[int]:
        return self.method.template.prompt_ids(query)
