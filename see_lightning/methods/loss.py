"""The loss on answers.

Letters: B examples, S tokens, L labels, V vocabulary.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy

from see_lightning.tasks.batches import IGNORED


def answer_loss(logits_LV: Tensor, labels_BS: Tensor, mean: str) -> Tensor:
    r"""Negative log-likelihood of the answers' tokens, in nats.

    ``tokens``: $\frac{1}{\sum_b |r_b|}\sum_b\sum_i -\log p(r_{b,i})$, as in ordinary fine-tuning; a refusal of four
    tokens then weighs little beside a long answer. ``examples``: $\frac{1}{B}\sum_b \frac{1}{|r_b|}\sum_i -\log p(r_{b,i})$,
    every example weighs the same (SEE's objective averages over examples).

    Args:
        logits_LV: of the positions that predict the labels, row by row.
        labels_BS: ``IGNORED`` where there is no loss; every row has at least one label.
        mean: ``tokens`` or ``examples``.

    >>> import torch
    >>> labels = torch.tensor([[IGNORED, IGNORED, 1], [1, 2, 3]])
    >>> logits = torch.zeros(4, 4)
    >>> answer_loss(logits, labels, "tokens") == answer_loss(logits, labels, "examples") == torch.tensor(4.0).log()
    tensor(True)
    """
    chosen_BS = labels_BS != IGNORED
    loss_L = cross_entropy(logits_LV.float(), labels_BS[chosen_BS], reduction="none")
    if mean == "tokens":
        return loss_L.mean()
    share_B = 1 / (chosen_BS.sum(dim=1) * len(labels_BS))
    return (loss_L * share_B[:, None].expand_as(chosen_BS)[chosen_BS]).sum()
