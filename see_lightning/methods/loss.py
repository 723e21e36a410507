"""The loss on answers.

Letters: B examples, S tokens, V vocabulary.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy

from see_lightning.tasks.batches import IGNORED


def answer_loss(logits_BSV: Tensor, labels_BS: Tensor, mean: str) -> Tensor:
    r"""Negative log-likelihood of the answers' tokens, in nats.

    ``tokens``: $\frac{1}{\sum_b |r_b|}\sum_b\sum_i -\log p(r_{b,i})$, as in ordinary fine-tuning; a refusal of four
    tokens then weighs little beside a long answer. ``examples``: $\frac{1}{B}\sum_b \frac{1}{|r_b|}\sum_i -\log p(r_{b,i})$,
    every example weighs the same (SEE's objective averages over examples).

    Args:
        logits_BSV: of the positions that predict the labels: position s predicts label s.
        labels_BS: ``IGNORED`` where there is no loss; every row has at least one label.
        mean: ``tokens`` or ``examples``.

    >>> import torch
    >>> logits = torch.zeros(2, 3, 4)
    >>> labels = torch.tensor([[IGNORED, IGNORED, 1], [1, 2, 3]])
    >>> answer_loss(logits, labels, "tokens") == answer_loss(logits, labels, "examples") == torch.tensor(4.0).log()
    tensor(True)
    """
    loss_BS = cross_entropy(
        logits_BSV.flatten(0, 1).float(), labels_BS.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels_BS)
    counts_BS = labels_BS != IGNORED
    if mean == "tokens":
        return loss_BS.sum() / counts_BS.sum()
    return (loss_BS.sum(dim=1) / counts_BS.sum(dim=1)).mean()
