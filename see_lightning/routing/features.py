"""Routers that score a query by the frozen base model's features: means of its hidden states over the prompt's tokens.

Letters: P prompts, Q queries, T tasks, H hidden states, W wordings.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from see_lightning.adapters.embeddings import checked_layer
from see_lightning.routing.router import Routed
from see_lightning.routing.scoring import ScoringRouter, checked_wordings
from see_lightning.routing.verdicts import threshold_at_recall
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.bodies import body_ids
from see_lightning.tasks.variants import AS_IS

HELD_OUT = "held_out"  # tensor of a task's state: features of held-out rows, on which its threshold is set
SHARED = "shared."  # begins the names of tensors of all tasks in the newest task's state


class FeatureRouter(ScoringRouter):
    """The expert of the task with the largest score; the base model where that score lies below the task's threshold.

    Args:
        method: whose queries are routed.
        layer: features are means of the hidden states behind this decoder layer, from 1, and only the layers up to it are
            computed; 0 for the last hidden states, None for the layer behind a quarter of all layers.
        wordings: ``as_is``, ``input_only`` (without the definition), or both: a task is learned from its training rows in
            each of them, and a query's score is the mean over them. So half of the score does not depend on the definition,
            and a long one does not outweigh the input.
        target_recall: least share of a task's held-out rows that its threshold accepts; 0 for no threshold, so the base
            model is never chosen.

    Raises:
        ConfigError: the base model has no such layer, or a setting is unknown or out of range.
    """

    asks_few = True

    def __init__(
        self, method: Routed, *, layer: float | None = 0, wordings: Sequence[str] = (AS_IS,), target_recall: float = 0.0
    ) -> None:
        super().__init__(method, target_recall=target_recall)
        self.layer, self.wordings = checked_layer(method.pool, layer), checked_wordings(wordings)
        #: Tensors that are kept of all learned tasks together, by name; each task replaces them.
        self.shared: dict[str, Tensor] = {}
        self._thresholds_T: Tensor | None = None

    @abstractmethod
    def fit(self, task: str, states_PH: Tensor) -> None:
        """Learn a task from the features of its training prompts, (P, H).

        Adds the task to ``kept``, and replaces ``shared`` if the router has tensors of all tasks.
        """

    @abstractmethod
    def score(self, states_PH: Tensor) -> Tensor:
        """How near features lie to each learned task, (P, T): larger is nearer; tasks in the order of learning."""

    def learn(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Learn a task from the features of its training prompts."""
        self.fit(task, self.embed(prompts, self.layer))
        self._thresholds_T = None

    def hold_out(self, task: str, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the features of held-out rows, if there is to be a threshold."""
        if self.holds_out:
            self.kept[task] = {**self.kept[task], HELD_OUT: self.states(prompts).flatten(0, 1)}
            self._thresholds_T = None

    def state(self, task: str) -> dict[str, Tensor]:
        """The tensors that are kept of a task; of the newest task those of all tasks too."""
        shared = self.shared if task == next(reversed(self.kept), None) else {}
        return super().state(task) | {SHARED + name: tensor for name, tensor in shared.items()}

    def load_state(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Load a task's ``state``; of the tensors of all tasks, those of the task that is loaded last stay."""
        super().load_state(task, {name: one for name, one in tensors.items() if not name.startswith(SHARED)})
        self.shared = {name.removeprefix(SHARED): one for name, one in tensors.items() if name.startswith(SHARED)}
        self._thresholds_T = None

    def nbytes(self) -> int:
        """Size of all that is kept, of each task and of all together."""
        return super().nbytes() + sum(tensor.nbytes for tensor in self.shared.values())

    def candidates(self) -> list[str]:
        """The learned tasks."""
        return list(self.kept)

    def scores(self, queries: Queries) -> Tensor:
        """The score of each query for each learned task, (Q, T); tasks in the order of learning."""
        first, *further = self._worded(queries.prompts)
        states_WPH = [self.embed_queries(replace(queries, prompts=first), self.layer)]
        for prompts in further:
            states_PH = states_WPH[0].clone()
            # A query without a definition is the same in both wordings, and read once.
            if changed := [row for row, prompt in enumerate(prompts) if prompt != first[row]]:
                again = replace(queries.select(changed), prompts=[prompts[row] for row in changed])
                states_PH[changed] = self.embed_queries(again, self.layer)
            states_WPH.append(states_PH)
        return self.mean_score(torch.stack(states_WPH))

    def states(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The features of prompts, such as held-out ones, in each of the router's wordings, (W, P, H); no cost is counted."""
        return torch.stack([self.embed(one, self.layer) for one in self._worded(prompts)])

    def mean_score(self, states_WPH: Tensor) -> Tensor:
        """Scores of features, (P, T), as the mean over the wordings."""
        return torch.stack([self._by_row(states_PH) for states_PH in states_WPH]).mean(0)

    def _worded(self, prompts: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        """The prompts in each of the router's wordings; one without a definition stays as it is."""
        template = self.method.template
        return [
            [list(prompt) if wording == AS_IS else body_ids(template, prompt) for prompt in prompts]
            for wording in self.wordings
        ]

    def thresholds(self) -> Tensor:
        """The least score at which each task's expert is chosen, (T,); -inf without ``target_recall``.

        Computed when needed and not when a task is learned, since a later task can change the scores of earlier ones.
        """
        if self._thresholds_T is None:
            least = [self._threshold(place, kept) for place, kept in enumerate(self.kept.values())]
            self._thresholds_T = torch.tensor(least, dtype=torch.float64)
        return self._thresholds_T

    def _threshold(self, place: int, kept: Mapping[str, Tensor]) -> float:
        if not self.holds_out:
            return -torch.inf
        states_WPH = kept[HELD_OUT].reshape(len(self.wordings), -1, kept[HELD_OUT].shape[-1])
        return threshold_at_recall(self.mean_score(states_WPH)[:, place].tolist(), self.target_recall)

    def _by_row(self, states_PH: Tensor) -> Tensor:
        """Scores, (P, T), each row by itself: products of several rows may differ in their last digits with their number."""
        return torch.cat([self.score(state_H[None]) for state_H in states_PH])


def triangle(symmetric_FF: Tensor) -> Tensor:
    """The entries of a symmetric matrix on and below its diagonal, row by row."""
    return symmetric_FF[torch.ones_like(symmetric_FF, dtype=torch.bool).tril()]


def symmetric(entries: Tensor) -> Tensor:
    """The symmetric matrix with these entries on and below its diagonal, row by row."""
    size = int(((8 * len(entries) + 1) ** 0.5 - 1) / 2)
    lower_FF = torch.zeros(size, size, dtype=entries.dtype)
    lower_FF[torch.ones(size, size, dtype=torch.bool).tril()] = entries
    return lower_FF + lower_FF.tril(-1).T
