r"""SpectR (Fleshman and Van Durme, COLM 2025, arXiv 2504.03454): experts are weighed by how much of the input they read.

An expert's score at a layer is $\lVert V^\top x \rVert$ for a token's input $x$ and the update $BA = U \Sigma V^\top$: the
length of $x$ in the space of all inputs that the expert does not ignore, instead of that along the first direction alone.
How large an update is does not matter.

Letters: R ranks, I size of a layer's input.
"""

import torch
from torch import Tensor

from see_lightning.routing.mixtures import MixtureRouter

LEAST = 1e-6  # of the largest singular value; a direction below it has no part in the update, and none in the score


class Spectr(MixtureRouter):
    """Mixes the experts by the length of the input in the space that each reads."""

    def directions(self, sigma_R: Tensor, v_RI: Tensor) -> Tensor:
        r"""$V^\top$, (R, I), with zeros for directions that the update does not have."""
        return torch.where((sigma_R > LEAST * sigma_R.max())[:, None], v_RI, 0.0)
