"""Sampled tokens: each row draws its own noise, so that its answer does not depend on the other rows of a batch.

Letters: V vocabulary.
"""

import torch
from torch import Tensor


def nucleus(logits_V: Tensor, top_p: float) -> tuple[Tensor, float]:
    r"""The tokens among which top-p sampling draws (Holtzman et al., ICLR 2020, arXiv 1904.09751, section 3.1).

    Args:
        logits_V: already divided by the temperature.
        top_p: above 0 and at most 1.

    Returns:
        True for each token in the nucleus, (V,), and the distance in probability from ``top_p`` to the nearest sum at which
        the nucleus would have another size; infinite for ``top_p`` 1.

    >>> import torch
    >>> nucleus(torch.tensor([0.5, 0.1, 0.4]).log(), 0.6)[0]
    tensor([ True, False,  True])
    """
    if top_p >= 1:
        return torch.ones_like(logits_V, dtype=torch.bool), float("inf")
    ordered = logits_V.double().softmax(-1).sort(descending=True, stable=True)
    sums_V = ordered.values.cumsum(-1)
    before_V = sums_V - ordered.values
    inside_V = torch.empty_like(logits_V, dtype=torch.bool)
    inside_V[ordered.indices] = before_V < top_p  # the first is always inside
    return inside_V, float((sums_V - top_p).abs().min())


class Sampler:
    r"""Draws the tokens of one row by the Gumbel-Max trick.

    $\arg\max_v (z_v / \tau + g_v)$ with Gumbel noise $g$ is a draw from $\mathrm{softmax}(z / \tau)$ (Maddison et al.,
    *A\* Sampling*, NeurIPS 2014, arXiv 1411.0030).

    The noise depends on the seed and on the number of the token alone. So two computations of the same logits that differ by
    rounding give the same token, unless two tokens are close; and how close is known, as it is for the most probable token.

    Args:
        temperature: logits are divided by it, above 0.
        top_p: tokens are drawn from the fewest most probable ones whose probabilities add up to at least this, above 0 and at
            most 1.
        seed: of the noise.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p = temperature, top_p
        self._draw = torch.Generator().manual_seed(seed)

    def choose(self, logits_V: Tensor) -> tuple[int, float]:
        """The next token, and the smallest change of the logits with which another one might have been chosen, in nats."""
        scaled_V = logits_V.double().cpu() / self.temperature
        inside_V, distance = nucleus(scaled_V, self.top_p)
        # An exponential variable is above 0, so its logarithm is finite.
        noise_V = -torch.empty(len(scaled_V), dtype=torch.float64).exponential_(generator=self._draw).log()
        best = (scaled_V + noise_V).masked_fill(~inside_V, -torch.inf).topk(2)
        lead = float(best.values[0] - best.values[1]) * self.temperature
        return int(best.indices[0]), min(lead, distance)
