"""Sequential fine-tuning: one adapter, task after task, and nothing against forgetting. SSR's "Non-rehearsal"."""

from see_lightning.methods.method import OneAdapterMethod


class SeqFt(OneAdapterMethod):
    """The lower bound that every method is measured against."""
