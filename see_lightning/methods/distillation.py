"""How far one model's predictions are from another's, for methods that distil.

Letters: L labels, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.utils.checkpoint import checkpoint

ROWS = 32  # labels whose probabilities are held in full precision at once


def divergence(of_LV: Tensor, from_LV: Tensor, temperature: float = 1.0) -> Tensor:
    r"""$\mathrm{KL}(p \Vert q) = \sum_v p_v \log\frac{p_v}{q_v}$ at each label, in nats, (L,).

    The direction is the order of the arguments. Forward, with a teacher's $p$ and a student's $q$, the student must cover all
    that the teacher may say; in reverse, with a student's $p$ and a teacher's $q$, it may not say what the teacher would not.

    Args:
        of_LV: logits of $p$.
        from_LV: logits of $q$.
        temperature: both logits are divided by it, above 0.

    >>> certain, even = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> divergence(certain, even), divergence(even, certain)
    (tensor([0.6931]), tensor([24.3069]))
    """
    # Backward passes compute the probabilities again: those of all labels would be the largest tensors of a step.
    pairs = zip(torch.split(of_LV, ROWS), torch.split(from_LV, ROWS), strict=True)
    return torch.cat([checkpoint(_divergence, of, other, temperature, use_reentrant=False) for of, other in pairs])


def _divergence(of_LV: Tensor, from_LV: Tensor, temperature: float) -> Tensor:
    log_p_LV, log_q_LV = ((logits.float() / temperature).log_softmax(-1) for logits in (of_LV, from_LV))
    return kl_div(log_q_LV, log_p_LV, reduction="none", log_target=True).sum(-1)
