"""Multi-task learning: one adapter, or whole layers of the model, trained on all tasks jointly."""

from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Traits


class Mtl(OneAdapterMethod):
    """The upper bound for one adapter; it needs the data of all tasks at once."""

    traits = Traits(schedule="joint", weights="any")
