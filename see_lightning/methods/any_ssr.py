"""Any-SSR: a frozen expert for each task, and a router that is fitted in closed form (ICCV 2025, arXiv 2503.13575).

Tong et al., *Analytic Subspace Routing: How Recursive Least Squares Works in Continual Learning of Large Language Model*.
PAPERS.md lists the differences. ``routing/analytic.py`` has the mathematics.
"""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.methods.method import ExpertMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.routing.analytic import Analytic
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from see_lightning.tasks.variants import definition, in_wordings


class AnySsr(ExpertMethod):
    """Experts without verdicts, chosen by a ridge regression that each task updates exactly; no row is kept.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        features: number of random features of the regression, at least 1.
        ridge: weight of the squared norm of its solution, above 0.
        layer: the regression reads the hidden states behind this decoder layer: its number from 1, a share of all layers
            below 1, 0 for the last hidden states, None for a quarter of all layers.
        wordings: of the training rows that it learns: ``as_is``, ``input_only`` (without the definition), or both.

    Raises:
        ConfigError: a setting is unknown or out of range, or the base model has no such layer.
    """

    traits = Traits(
        has_experts=True,
        router=Analytic,
        trains_apart=True,
        after_training=frozenset({"features", "ridge", "layer", "wordings"}),
    )

    def __init__(
        self, setup: Setup, *, features: int, ridge: float, layer: float | None, wordings: Sequence[str]
    ) -> None:
        super().__init__(setup)
        within("method.features", features, 1)
        within("method.ridge", ridge, 1e-6)
        self.regression = Analytic(self, features=features, ridge=ridge, layer=layer, wordings=wordings)

    @cached_property
    def own_router(self) -> Analytic:
        """The regression."""
        return self.regression

    def end_task(self, task: Task, memory: Memory) -> None:
        """Updates the regression with the task's training prompts; not where the run has chosen another router."""
        if self.chosen_router is None:
            common = definition((*task.train, *task.held_out))
            rows = in_wordings(task.train, common, self.regression.wordings)
            self.regression.learn(task.name, [self.template.prompt_ids(row) for row in rows])

    def state(self) -> dict[str, Tensor]:
        """The two matrices of the regression, which are of all tasks together."""
        return self.regression.state(next(reversed(self.regression.kept), ""))

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The matrices after a task replace those before it."""
        self.regression.load_state(task, tensors)
