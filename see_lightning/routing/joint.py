"""Two signals: a proposed expert's log-odds and how typical the query's features are, joined by a logistic regression.

The log-odds know the words of the definition. Features of the frozen base model do not: the score by which the expert is
proposed tells foreign definitions from own ones in other words, and the density of the input alone tells foreign inputs from
own ones. A query is as typical as the lower of both. Queries without a definition have lower log-odds, so each task has two
thresholds: one for queries with a definition and one for those without.

Letters: Q queries, T tasks, N samples (a text under one expert), W wordings, P prompts, H hidden states, F signals.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.routing.features import FeatureRouter
from see_lightning.routing.guarantee import guaranteed_threshold
from see_lightning.routing.logistic import fit_logistic
from see_lightning.routing.propose import scoring_router
from see_lightning.routing.scoring import ScoringRouter
from see_lightning.routing.signals import BARE, GENERAL, OTHER, OWN, Measured, Sample, Scale, even_weights, worded
from see_lightning.routing.walk import Deciding, log_odds
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.bodies import body_ids, body_of, has_definition, query_of, without_opening
from see_lightning.tasks.negatives import unseen_general
from see_lightning.tasks.variants import AS_IS, INPUT_ONLY

BY, BODY = "by.", "body."  # begin the names of the other routers' tensors in a task's state
PROPOSAL_STATES, BODY_STATES = "proposal_states", "body_states"  # tensors of a task's state: features of its samples
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
    """The proposed expert, if its log-odds and the scores of the query's features together reach its threshold.

    The body is the text behind the first blank line, and what stands before it is the definition. The weights are fitted on
    held-out rows, which the own expert must accept as they stand, reworded, with errors and without the definition and
    the nearest older expert must refuse as they stand and without the definition, and on general instructions with and
    without their definition, which the expert must refuse.

    Args:
        method: whose experts give verdicts.
        by: settings of the feature router that proposes an expert.
        body: settings of the feature router that scores bodies.
        target_recall: least share of a task's queries that is accepted under each wording, above 0 and below 1.
        bare_recall: the same for queries without a definition; None is ``target_recall``. Foreign queries are the hardest to
            tell apart there, so a lower share sends the most of them to the base model.
        confidence: of these shares, below 1. With fewer held-out rows than it needs, all of them are accepted.
        ood_examples: general instructions, which no expert learns to refuse, at least 1.

    Raises:
        ConfigError: ``by`` or ``body`` is no router of features or has a threshold of its own, ``body`` scores more than
            bodies, there are fewer general instructions, or a setting is out of range.
    """

    needs = frozenset({"has_experts", "learns_refusals"})
    takes_conversations = False
    not_in_state = frozenset({"target_recall", "bare_recall", "confidence"})
    holds_out = True
    asks_few = True

    def __init__(
        self,
        method: Refusing,
        *,
        by: Mapping[str, Any],
        body: Mapping[str, Any],
        target_recall: float = 0.95,
        bare_recall: float | None = None,
        confidence: float = 0.95,
        ood_examples: int = 60,
    ) -> None:
        super().__init__(method, target_recall=target_recall)
        self.bare_recall = target_recall if bare_recall is None else bare_recall
        within("router.target_recall", target_recall, 0.01, 0.999)
        within("router.bare_recall", self.bare_recall, 0.01, 0.999)
        within("router.confidence", confidence, 0.01, 0.999)
        within("router.ood_examples", ood_examples, 1)
        self._refusing, self.by, self.body = method, _part("by", by, method), _part("body", body, method)
        if self.body.wordings != (INPUT_ONLY,):
            raise ConfigError(
                f"router.body of router=joint scores bodies, which have no definition: router.body.wordings=[{INPUT_ONLY}];"
                f" got {list(self.body.wordings)}."
            )
        self.confidence, self.ood_examples = confidence, ood_examples
        self._general(0)  # refused here if there are too few, not after the first expert has been trained
        self.wordings, self.holds_out = (AS_IS, INPUT_ONLY), True

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """One router learns the task's prompts, the other one their bodies."""
        self.by.learn(task, prompts)
        bodies = dict.fromkeys(tuple(body_ids(self.method.template, prompt)) for prompt in prompts)
        if len(bodies) < self.body.fewest:
            raise ConfigError(
                f"router=joint needs {self.body.fewest} different texts behind the first blank line of {task}'s prompts;"
                f" there are {len(bodies)}. Choose router=propose, or put the texts that differ behind the first blank line."
            )
        self.body.learn(task, list(bodies))
        self._forget()

    def hold_out(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Keep log-odds and features of held-out rows and of general instructions."""
        names, told = self.candidates(), list(map(self._query, prompts))
        queries = list(dict.fromkeys(told))
        samples = self._samples(task, names.index(task), queries, without_opening(told))
        texts = list(dict.fromkeys(one.text for one in samples))
        ids, places = list(map(self._ids, texts)), {text: place for place, text in enumerate(texts)}
        states_WPH = self.by.states(ids)
        samples += self._under_others(names.index(task), queries, states_WPH[:, [places[one] for one in queries]])
        orders: list[list[str]] = [[] for _ in texts]  # the experts that are asked for a text, which is read once
        for one in samples:
            orders[places[one.text]].append(names[one.expert])
        found = log_odds(self._refusing, ids, orders)
        self.kept[task] = {
            "log_odds": torch.tensor(
                [found[places[one.text]][orders[places[one.text]].index(names[one.expert])] for one in samples],
                dtype=torch.float64,
            ),
            "samples": torch.tensor(
                [(places[one.text], one.expert, one.kind, has_definition(one.text), one.wording) for one in samples]
            ),
            PROPOSAL_STATES: states_WPH,
            BODY_STATES: self.body.states(ids),
        }
        self._forget()

    def candidates(self) -> list[str]:
        """The learned tasks."""
        return self.by.candidates()

    def scores(self, queries: Queries) -> Tensor:
        """By how much the proposed task's joined signals exceed its threshold, (Q, T); -inf for the other tasks."""
        names, texts = self.candidates(), [self._query(prompt) for prompt in queries.prompts]
        proposals_QT, bodies_QT = self.by.scores(queries).cpu(), self.body.scores(queries).cpu()
        proposed = [row.index(max(row)) for row in proposals_QT.tolist()]
        router = self._refusing.sequential_router(replace(queries, only_decide=True))
        found = router.log_odds([[names[place]] for place in proposed])
        scores_QT = torch.full((len(queries), len(names)), -torch.inf, dtype=torch.float64)
        for row, (place, text, (value,)) in enumerate(zip(proposed, texts, found, strict=True)):
            here = bodies_QT[row, place][None], proposals_QT[row, place][None]
            signals_1F = self.scales[place].signals(torch.tensor([value], dtype=torch.float64), *here)
            scores_QT[row, place] = self._join(signals_1F)[0] - self.least[place, has_definition(text)]
        return scores_QT

    def thresholds(self) -> Tensor:
        """Zero for each task, (T,): scores are differences from thresholds."""
        return torch.zeros(len(self.candidates()), dtype=torch.float64)

    @cached_property
    def measured(self) -> "list[Measured]":
        """The samples of each task's expert, from its own held-out rows and from those of later tasks."""
        scored = {
            task: (self._scores(self.body, kept[BODY_STATES]), self._scores(self.by, kept[PROPOSAL_STATES]))
            for task, kept in self.kept.items()
        }
        found = []
        for place in range(len(self.candidates())):
            parts = []
            for task, kept in self.kept.items():
                here_N = kept["samples"][:, 1] == place
                samples_N5 = kept["samples"][here_N]
                scores = (scores_PT[samples_N5[:, 0], place] for scores_PT in scored[task])
                parts.append(Measured(kept["log_odds"][here_N], *scores, *samples_N5[:, 2:].T))
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
            signals.append(scale.signals(one.log_odds_N, one.bodies_N, one.proposals_N))
            accepted.append(one.kind_N == OWN)
            weight.append(even_weights(one.kind_N, one.defined_N))
        return fit_logistic(torch.cat(signals), torch.cat(accepted).double(), torch.cat(weight), RIDGE)

    @cached_property
    def least(self) -> dict[tuple[int, bool], float]:
        """By task and by whether a query has a definition, the least joined signals with which the expert answers."""
        found = {}
        for place, (one, scale) in enumerate(zip(self.measured, self.scales, strict=True)):
            joined_N = self._join(scale.signals(one.log_odds_N, one.bodies_N, one.proposals_N))
            is_own_N = one.kind_N == OWN
            for defined, recall in ((False, self.bare_recall), (True, self.target_recall)):
                group_N = is_own_N & (one.defined_N == defined)
                if not group_N.any():  # all of the task's queries are of the other group
                    group_N = is_own_N
                worded = [joined_N[group_N & (one.wording_N == n)] for n in set(one.wording_N[group_N].tolist())]
                found[place, defined] = min(
                    guaranteed_threshold(values_N.tolist(), recall, self.confidence) for values_N in worded
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

    def _scores(self, router: FeatureRouter, states_WPH: Tensor) -> Tensor:
        """Scores of kept features, (P, T). Those of a task are always computed together, so restored ones stay the same."""
        return (
            torch.stack([router.score(one.to(self.method.pool.device())) for one in states_WPH]).mean(0).double().cpu()
        )

    def _join(self, signals_NF: Tensor) -> Tensor:
        return self.weights[0] + signals_NF @ self.weights[1:]

    def _samples(self, task: str, place: int, queries: Sequence[str], bare: Collection[str]) -> list[Sample]:
        """The texts whose log-odds under a task's own expert are kept: every query, in other words unless it is bare."""
        method = self._refusing
        general = self._general(seed(method.run_seed, task, "general negatives"))
        samples = []
        for query in queries:
            order = random.Random(seed(method.run_seed, task, f"wordings of {query}"))
            found = [(BARE, query)] if query in bare else list(enumerate(worded(query, order)))
            samples += [Sample(text, place, OWN, n) for n, text in found]
        return samples + [
            Sample(text, place, GENERAL, 0)
            for row in general
            for text in dict.fromkeys((row.prompt, body_of(row.prompt)))
        ]

    def _general(self, draw: int) -> list[Example]:
        source, refused = self._refusing.general_source, self._refusing.general_negatives
        return unseen_general(self.ood_examples, source, draw, refused=refused, setting="router.ood_examples")

    def _under_others(self, place: int, queries: Sequence[str], states_WQH: Tensor) -> list[Sample]:
        """The queries of a task under the nearest older expert, the only ones there are beside its own."""
        if not place:
            return []
        scores_QT = self.by.mean_score(states_WQH)[:, :place]
        return [
            Sample(query, row.index(max(row)), OTHER, 0) for query, row in zip(queries, scores_QT.tolist(), strict=True)
        ]

    def _query(self, prompt: Sequence[int]) -> str:
        return query_of(self.method.template, prompt)

    def _ids(self, query: str) -> list[int]:
        return self.method.template.prompt_ids(query)


def _part(name: str, settings: Mapping[str, Any], method: Refusing) -> FeatureRouter:
    """One of the two routers of features."""
    router = scoring_router(settings, method)
    if not isinstance(router, FeatureRouter) or router.holds_out:
        raise ConfigError(
            f"router.{name} of router=joint scores features and has no threshold of its own, such as router@router.{name}="
            f"{'analytic' if name == 'by' else 'density'} with router.{name}.target_recall=0."
        )
    return router
