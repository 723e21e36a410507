"""The loss on answers.

Letters: B examples, S tokens, L labels, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from see_lightning.tasks.batches import IGNORED

ROWS = 32  # labels whose logits are held in full precision at once


class _TokenLoss(torch.autograd.Function):
    """Cross entropy of each label, a few rows at a time.

    The logits of all labels in full precision would be the largest tensors of a step.
    """

    @staticmethod
    def forward(ctx: Any, logits_LV: Tensor, labels_L: Tensor) -> Tensor:
        loss_L = torch.empty(len(labels_L), device=logits_LV.device)
        slope_LV = torch.empty_like(logits_LV)
        for start in range(0, len(labels_L), ROWS):
            rows = slice(start, start + ROWS)
            part = logits_LV[rows].to(torch.float32, copy=True)  # what follows writes into it
            label = labels_L[rows, None]
            part -= part.logsumexp(dim=-1, keepdim=True)
            loss_L[rows] = -part.gather(1, label)[:, 0]
            slope_LV[rows] = part.exp_().scatter_add_(1, label, part.new_full(label.shape, -1.0))
        ctx.save_for_backward(slope_LV)
        return loss_L

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope_LV,) = ctx.saved_tensors
        return slope_LV * grads[0][:, None].to(slope_LV.dtype), None


def answer_loss(logits_LV: Tensor, labels_BS: Tensor, mean: str) -> Tensor:
    r"""Negative log-likelihood of the answers' tokens, in nats.

    ``tokens``: $\frac{1}{\sum_b |r_b|}\sum_b\sum_i -\log p(r_{b,i})$, as in ordinary fine-tuning; a negative of four tokens
    has little weight then. ``examples``: $\frac{1}{B}\sum_b \frac{1}{|r_b|}\sum_i -\log p(r_{b,i})$, every example has the
    same weight (SEE's objective averages over examples).

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
    return label_mean(label_losses(logits_LV, labels_BS), labels_BS, mean)


def label_losses(logits_LV: Tensor, labels_BS: Tensor) -> Tensor:
    """Negative log-likelihood of each label, (L,), in nats.

    Args:
        logits_LV: of the positions that predict the labels, row by row.
        labels_BS: ``IGNORED`` where there is no loss.
    """
    loss_L: Tensor = _TokenLoss.apply(logits_LV, labels_BS[labels_BS != IGNORED])  # type: ignore[no-untyped-call]
    return loss_L


def label_mean(loss_L: Tensor, labels_BS: Tensor, mean: str) -> Tensor:
    """The mean of a loss of each label, over all labels or over examples.

    Args:
        loss_L: row by row.
        labels_BS: ``IGNORED`` where there is no loss; every row has at least one label.
        mean: ``tokens``, or ``examples``: the mean over examples of their own means.

    >>> labels, loss = torch.tensor([[IGNORED, 1], [2, 3]]), torch.tensor([6.0, 1.0, 2.0])
    >>> label_mean(loss, labels, "tokens"), label_mean(loss, labels, "examples")
    (tensor(3.), tensor(3.7500))
    """
    if mean == "tokens":
        return loss_L.mean()
    chosen_BS = labels_BS != IGNORED
    share_B = 1 / (chosen_BS.sum(dim=1) * len(labels_BS))
    return (loss_L * share_B[:, None].expand_as(chosen_BS)[chosen_BS]).sum()


def row_mean(each_B: Tensor, labels_BS: Tensor, mean: str) -> Tensor:
    """The mean of a number of each row, with the weight that the row has in the loss on answers.

    Args:
        each_B: one number for each row.
        labels_BS: ``IGNORED`` where there is no loss; every row has at least one label.
        mean: ``tokens``: a row weighs as many as its labels; ``examples``: all weigh the same.

    >>> labels = torch.tensor([[IGNORED, IGNORED, 1], [1, 2, 3]])
    >>> [row_mean(torch.tensor([0.0, 4.0]), labels, mean).item() for mean in ("tokens", "examples")]
    [3.0, 2.0]
    """
    labels_B = (labels_BS != IGNORED).sum(1)
    weight_B = labels_B if mean == "tokens" else torch.ones_like(labels_B)
    return (each_B * weight_B).sum() / weight_B.sum()
