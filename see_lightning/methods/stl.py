"""Single-task learning: one expert per task, told which task a query belongs to. SEE's "AvgSTL".

The oracle of routing: what an ensemble of the same experts would score if it never erred. With ``router=centroid`` and the
like, the same experts are routed without being told.
"""

from see_lightning.methods.method import ExpertMethod


class Stl(ExpertMethod):
    """Experts without indicators; a task that has no expert yet is the base model's."""
