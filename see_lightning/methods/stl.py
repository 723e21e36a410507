"""Single-task learning: one expert per task, chosen by the given task id. SEE's "AvgSTL".

It is the score of an ensemble of these experts with perfect routing. Another router, such as ``router=centroid``, chooses the
same experts without a task id.
"""

from see_lightning.methods.method import ExpertMethod
from see_lightning.methods.setup import Traits
from see_lightning.routing.oracle import Oracle


class Stl(ExpertMethod):
    """Experts without verdicts; the base model answers queries of tasks that have no expert yet."""

    traits = Traits(has_experts=True, router=Oracle, trains_apart=True)
