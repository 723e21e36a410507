"""Sequential fine-tuning of one adapter, without a measure against forgetting. SSR's "Non-rehearsal"."""

from see_lightning.methods.method import OneAdapterMethod


class SeqFt(OneAdapterMethod):
    """The lower bound of the benchmarks."""
