"""Sampled tokens: each row draws its own noise, so that its answer does not depend on the other rows of a batch.

Letters: V vocabulary.
"""

import torch
from torch import Tensor


def nucleus(logits_V: Tensor, top_p: float) -> Tensor:
    r"""The tokens among which top-p sampling draws (Holtzman et al., ICLR 2020, arXiv 1904.09751).

    Args:
        logits_V: already divided by the temperature.
        top_p: above 0 and at most 1.

    Returns:
        True for the fewest most probable tokens whose probabilities add up to at least ``top_p``, (V,); of equally probable
        ones the first.

    >>> import torch
    >>> nucleus(torch.tensor([0.5, 0.1, 0.4]).log(), 0.6)
    tensor([ True, False,  True])
    """
    inside_V = torch.ones_like(logits_V, dtype=torch.bool)
    if top_p < 1:
        ordered = logits_V.double().softmax(-1).sort(descending=True, stable=True)
        before_V = ordered.values.cumsum(-1) - ordered.values
        inside_V[ordered.indices] = before_V < top_p  # the first is always inside
    return inside_V


class Sampler:
    r"""Draws the tokens of one row by the Gumbel-Max trick.

    $\arg\max_v (z_v / \tau + g_v)$ with Gumbel noise $g$ is a draw from $\mathrm{softmax}(z / \tau)$ (Maddison et al.,
    *A\* Sampling*, NeurIPS 2014, arXiv 1411.0030).

    The noise depends on the seed and on the number of the token alone, so the other rows of a batch have no part in it.
    Logits that differ by rounding give the same token, unless two sums are nearly equal.

    Args:
        temperature: logits are divided by it, above 0.
        top_p: tokens are drawn from the fewest most probable ones whose probabilities add up to at least this, above 0 and at
            most 1.
        seed: of the noise.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p = temperature, top_p
        self._draw = torch.Generator().manual_seed(seed)

    def choose(self, logits_V: Tensor) -> int:
        """The next token."""
        scaled_V = logits_V.double().cpu() / self.temperature
        # An exponential variable is above 0, so its logarithm is finite.
        noise_V = -torch.empty(len(scaled_V), dtype=torch.float64).exponential_(generator=self._draw).log()
        return int((scaled_V + noise_V).masked_fill(~nucleus(scaled_V, self.top_p), -torch.inf).argmax())
