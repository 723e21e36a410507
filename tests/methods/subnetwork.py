"""A pool of experts with random weights, and scores and routers over them."""

from collections.abc import Sequence

import torch
from torch import nn

from see_lightning.adapters.pool import ExpertPool
from see_lightning.methods.subnetworks.mixture import MaskScores, TrainableSubnetwork
from tests.adapters import small

RANK = 4


def learning(
    granularity: str,
    *,
    experts: int = 3,
    k: int = 2,
    density: float = 0.4,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    weights_seed: int = 5,
    gated: bool = True,
) -> tuple[ExpertPool, TrainableSubnetwork]:
    """A pool and what a task would train of it; ``gated`` says whether it has routers."""
    pool = small.pool(rank=RANK, alpha=6.0, targets=list(targets))
    pool.add_adapter("pool", 0, experts)
    draw = torch.Generator().manual_seed(weights_seed)
    scores, routers = [], []
    for layer in pool.layers:
        pair = pool.pair(layer, "pool")
        for weight in pair:
            nn.init.normal_(weight, std=0.5, generator=draw)
        (ranks, inner), (outer, _) = (weight.shape for weight in pair)
        scores.append(MaskScores(experts, granularity, (ranks, inner, outer), draw))
        routers.append(nn.Parameter(torch.randn(experts, inner, generator=draw)))
    return pool.eval(), TrainableSubnetwork(pool, "pool", scores, routers if gated else (), k=k, density=density)
