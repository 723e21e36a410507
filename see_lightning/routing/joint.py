"""Two signals: an expert's log-odds and a score of the input alone, joined by a logistic regression.

The log-odds depend on the words of the definition, the score of the input's body does not. Both are measured on rows that the
expert must accept, under several wordings, and on rows that it must refuse; a threshold accepts a stated share of own queries
with a stated confidence.

Letters: Q queries, T tasks, N samples (a row under one expert), P prompts, H hidden states, F signals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.errors import ConfigError
from see_lightning.routing.features import FeatureRouter
from see_lightning.routing.guarantee import guaranteed_threshold
from see_lightning.routing.propose import scoring_router
from see_lightning.routing.scoring import ScoringRouter
from see_lightning.routing.walk import Deciding, log_odds
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.bodies import body_ids
from see_lightning.tasks.negatives import unseen_general
from see_lightning.tasks.variants import AS_IS, INPUT_ONLY

BY = "by."  # begins the names of the feature router's tensors in a task's state
RIDGE = 1.0  # weight of half the squared norm of the weights of standardised signals


class Refusing(Deciding, Protocol):
    """A method whose experts learn to refuse general instructions.

    Attributes:
        general_negatives: number that each expert learns to refuse.
        general_source: of these instructions.
    """

    general_negatives: int
    general_source: str


def fit_logistic(x_NF: Tensor, y_N: Tensor, ridge: float = RIDGE) -> Tensor:
    r"""Weights of a logistic regression, (1 + F,), the constant first: the minimum of the penalised negative log-likelihood.

    $\sum_n \log(1 + e^{-z_n}) + (1 - y_n) z_n + \frac{\lambda}{2} \lVert w \rVert^2$ with $z = b + X w$, by Newton's method.

    Args:
        x_NF: inputs, in fp64, standardised.
        y_N: 1 for a row to accept, 0 for one to refuse.
        ridge: $\lambda$, above 0; the constant b is not penalised, so there must be rows of both kinds.
    """
    x_NG = torch.cat([torch.ones_like(x_NF[:, :1]), x_NF], dim=1)
    penalty_G = torch.full((x_NG.shape[1],), ridge, dtype=x_NF.dtype)
    penalty_G[0] = 0

    def loss(weights_G: Tensor) -> Tensor:
        z_N = x_NG @ weights_G
        return torch.nn.functional.softplus(z_N).sum() - y_N @ z_N + (penalty_G * weights_G.square()).sum() / 2

    weights_G = torch.zeros(x_NG.shape[1], dtype=x_NF.dtype)
    for _ in range(50):
        p_N = torch.sigmoid(x_NG @ weights_G)
        gradient_G = x_NG.T @ (p_N - y_N) + penalty_G * weights_G
        hessian_GG = x_NG.T @ (x_NG * (p_N * (1 - p_N))[:, None]) + penalty_G.diag()
        step_G, size = torch.linalg.lstsq(hessian_GG, gradient_G[:, None]).solution[:, 0], 1.0
        while size > 1e-6 and loss(weights_G - size * step_G) > loss(weights_G):
            size /= 2
        weights_G = weights_G - size * step_G
        if gradient_G.abs().max() < 1e-9:
            break
    return weights_G


class Joint(ScoringRouter):
    """The expert whose task is nearest by the input's body, if its log-odds and that score together reach its threshold.

    The input's body is the text behind the first blank line. The weights are fitted on held-out rows, which the own expert
    must accept as they stand and without their definition, and the nearest other expert must refuse; and on general
    instructions, with and without their first line, which every expert must refuse. Thresholds accept ``target_recall`` of a
    task's queries, under each of these wordings, with the confidence; with fewer held-out rows than that needs, all of them.

    Args:
        method: whose experts give verdicts.
        by: settings of the feature router that scores bodies.
        target_recall: least share of own queries that are accepted, above 0 and below 1.
        confidence: of this share, below 1.
        ood_examples: general instructions, which no expert learns to refuse, at least 1.

    Raises:
        ConfigError: ``by`` is no router of features or has a threshold, or a setting is out of range.
    """

    needs = frozenset({"has_experts", "learns_refusals"})
    holds_out = True
    asks_few = True

    def __init__(
        self,
        method: Refusing,
        *,
        by: Mapping[str, Any],
        target_recall: float = 0.95,
        confidence: float = 0.95,
        ood_examples: int = 60,
    ) -> None:
        super().__init__(method, target_recall=target_recall)
        within("router.target_recall", target_recall, 0.01, 0.999)
        within("router.confidence", confidence, 0.01, 0.999)
        within("router.ood_examples", ood_examples, 1)
        scores = scoring_router(by, method)
        if not isinstance(scores, FeatureRouter) or scores.holds_out:
            raise ConfigError(
                "router.by of router=joint is a router of features without a threshold of its own: router.by.target_recall=0."
            )
        self._refusing, self.by = method, scores
        self.confidence, self.ood_examples = confidence, ood_examples
        self.wordings, self.holds_out = (AS_IS, INPUT_ONLY), True
        self._fitted: tuple[Tensor, Tensor] | None = None  # a scale of the signals, (2, F), and the weights, (1 + F,)

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """The feature router learns the bodies of the task's inputs."""
        self.by.learn(task, list(dict.fromkeys(map(tuple, self._bodies(prompts)))))
        self._fitted = None

    def hold_out(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Keep features and log-odds of the task's held-out rows, and of general instructions, under experts."""
        general = self._general(task)
        rows = [*map(list, prompts), *general]
        bodies = list(map(tuple, self._bodies(rows)))
        states_PH = self.by.embed(bodies, self.by.layer)
        names = self.by.candidates()
        here, own = names.index(task), range(len(prompts))
        samples = [(row, here, int(row in own)) for row in range(len(rows))]
        if len(names) > 1:
            for row in own:
                scores_T = self.by.score(states_PH[row][None])[0].clone()
                scores_T[here] = -torch.inf
                samples.append((row, int(scores_T.argmax()), 0))
        found = log_odds(
            self._refusing, [rows[row] for row, *_ in samples], [names[expert] for _, expert, _ in samples]
        )
        places = {body: place for place, body in enumerate(dict.fromkeys(bodies))}
        self.kept[task] = {
            "states": states_PH,
            "samples": torch.tensor(samples),
            "log_odds": torch.tensor(found, dtype=torch.float64),
            "bodies": torch.tensor([places[body] for body in bodies]),
        }
        self._fitted = None

    def candidates(self) -> list[str]:
        """The experts with held-out rows."""
        return list(self.kept)

    def scores(self, queries: Queries) -> Tensor:
        """Log-odds of both signals together for the nearest task of each query, (Q, T), -inf for the others."""
        names = self.by.candidates()
        bodies_QT = self.by.scores(replace(queries, prompts=self._bodies(queries.prompts)))
        nearest = [row.index(max(row)) for row in bodies_QT.tolist()]
        router = self._refusing.sequential_router(replace(queries, only_decide=True))
        found = router.log_odds([[names[task]] for task in nearest])
        places = torch.tensor(nearest)[:, None]
        joint_Q = self._join(torch.tensor(found, dtype=torch.float64)[:, 0], bodies_QT.double().gather(1, places)[:, 0])
        return torch.full(bodies_QT.shape, -torch.inf, dtype=torch.float64).scatter(1, places, joint_Q[:, None])

    def thresholds(self) -> Tensor:
        """The least log-odds of both signals with which a task's expert answers, (T,)."""
        least = []
        for task, kept in self.kept.items():
            values: dict[int, float] = {}  # by row, the lowest of its wordings
            signals_NF, is_own_N = self._signals(task)
            joint_N = self._join(*signals_NF.T)
            for (row, _, _), value, is_own in zip(
                kept["samples"].tolist(), joint_N.tolist(), is_own_N.tolist(), strict=True
            ):
                if is_own:
                    body = int(kept["bodies"][row])
                    values[body] = min(values.get(body, torch.inf), value)
            least.append(guaranteed_threshold(list(values.values()), self.target_recall, self.confidence))
        return torch.tensor(least, dtype=torch.float64)

    def state(self, task: str) -> dict[str, Tensor]:
        """The task's features and log-odds, and what the feature router keeps of it."""
        return super().state(task) | {f"{BY}{name}": tensor for name, tensor in self.by.state(task).items()}

    def load_state(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Load a task's ``state``."""
        self.by.load_state(task, {n.removeprefix(BY): tensor for n, tensor in tensors.items() if n.startswith(BY)})
        super().load_state(task, {n: tensor.cpu() for n, tensor in tensors.items() if not n.startswith(BY)})
        self._fitted = None

    def nbytes(self) -> int:
        """Size of all that is kept."""
        return super().nbytes() + self.by.nbytes()

    def _join(self, log_odds_N: Tensor, scores_N: Tensor) -> Tensor:
        """The fitted log-odds of acceptance, (N,)."""
        if self._fitted is None:
            signals, is_own = zip(*map(self._signals, self.kept), strict=True)
            signals_NF = torch.cat(signals)
            scale_2F = torch.stack([signals_NF.mean(0), signals_NF.std(0).clamp(min=1e-9)])
            weights_G = fit_logistic((signals_NF - scale_2F[0]) / scale_2F[1], torch.cat(is_own).double())
            self._fitted = scale_2F, weights_G
        scale_2F, weights_G = self._fitted
        return weights_G[0] + (torch.stack([log_odds_N, scores_N], dim=1) - scale_2F[0]) / scale_2F[1] @ weights_G[1:]

    def _signals(self, task: str) -> tuple[Tensor, Tensor]:
        """Log-odds and score of each sample of a task, (N, 2), and whether the expert must accept it, (N,)."""
        kept = self.kept[task]
        scores_PT = torch.cat([self.by.score(state_H[None]) for state_H in kept["states"]]).double().cpu()
        rows_N, experts_N, is_own_N = kept["samples"].T
        return torch.stack([kept["log_odds"], scores_PT[rows_N, experts_N]], dim=1), is_own_N

    def _bodies(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return [body_ids(self.method.template, prompt) for prompt in prompts]

    def _general(self, task: str) -> list[list[int]]:
        """Prompts of general instructions, with and without their first line."""
        method = self._refusing
        draw = seed(method.run_seed, task, "general negatives")
        rows = unseen_general(self.ood_examples, method.general_source, draw, refused=method.general_negatives)
        texts = [text for row in rows for text in (row.prompt, row.prompt.partition("\n")[2]) if text.strip()]
        return [method.template.prompt_ids(text) for text in texts]
