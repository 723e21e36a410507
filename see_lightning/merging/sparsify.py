"""Which entries of a task vector are kept before vectors are merged.

Letters: O and I the sizes of a layer's output and input.
"""

import torch
from torch import Tensor


def largest(delta_OI: Tensor, density: float) -> Tensor:
    """The entries of largest magnitude; the others become zeros ("trim", Yadav et al., TIES-Merging, NeurIPS 2023).

    Args:
        delta_OI: the change of a layer.
        density: share of its entries that is kept, 0..1; rounded down to a whole number of entries.

    >>> largest(torch.tensor([[1.0, -3.0], [2.0, 0.5]]), 0.5)
    tensor([[ 0., -3.],
            [ 2.,  0.]])
    """
    flat = delta_OI.flatten()
    kept = torch.topk(flat.abs(), int(density * flat.numel()), sorted=False).indices
    return torch.zeros_like(flat).index_put((kept,), flat[kept]).view_as(delta_OI)


def at_random(delta_OI: Tensor, density: float, draw: int) -> Tensor:
    """Entries kept at random and divided by the share that is kept (DARE, Yu et al., ICML 2024, equation 3).

    Args:
        delta_OI: the change of a layer.
        density: probability with which an entry is kept, above 0..1.
        draw: seed.
    """
    generator = torch.Generator().manual_seed(draw)
    kept_OI = torch.rand(delta_OI.shape, generator=generator).to(delta_OI.device) < density
    return torch.where(kept_OI, delta_OI / density, 0.0)
