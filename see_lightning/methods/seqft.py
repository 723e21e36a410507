"""Sequential fine-tuning of one adapter or of whole layers, without a measure against forgetting. SSR's "Non-rehearsal"."""

from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Traits


class SeqFt(OneAdapterMethod):
    """The lower bound of the benchmarks."""

    traits = Traits(weights="any", one_lora=True)
