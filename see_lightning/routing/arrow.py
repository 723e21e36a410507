r"""Arrow (Ostapenko et al., ICML 2024, arXiv 2405.11157): experts are weighed by the direction that each amplifies most.

The prototype $v_t$ of an expert at a layer is the first right singular vector of its update $BA$, the unit vector with the
largest $\lVert BA v \rVert$. A token's input $x$ weighs the experts by $\mathrm{softmax}(|v_t^\top x| / \tau)$ over the k
largest.

Letters: R ranks, I size of a layer's input.
"""

from torch import Tensor

from see_lightning.routing.mixtures import MixtureRouter


class Arrow(MixtureRouter):
    """Mixes the experts by their first right singular vectors."""

    def directions(self, sigma_R: Tensor, v_RI: Tensor) -> Tensor:
        """The first right singular vector, (1, I)."""
        return v_RI[:1]
