"""Multi-task learning: one adapter on all tasks at once, as if none had come later."""

from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Traits


class Mtl(OneAdapterMethod):
    """The joint upper bound of one adapter; it needs every task's data at the same time."""

    traits = Traits(schedule="joint")
