r"""SpectR (Fleshman and Van Durme, COLM 2025, arXiv 2504.03454): experts are weighed by the size of their updates.

An expert's score at a layer uses the whole spectrum of its update $BA = U \Sigma V^\top$:
$\lVert \Sigma V^\top x \rVert = \lVert BA x \rVert$ for a token's input $x$, instead of the first direction alone.

Letters: R ranks, I size of a layer's input.
"""

from torch import Tensor

from see_lightning.routing.mixtures import MixtureRouter


class Spectr(MixtureRouter):
    """Mixes the experts by the norms of their updates."""

    def directions(self, sigma_R: Tensor, v_RI: Tensor) -> Tensor:
        r"""$\Sigma V^\top$, (R, I)."""
        return sigma_R[:, None] * v_RI
