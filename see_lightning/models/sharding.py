"""Sharding of the frozen base model (FSDP): each rank holds a part of every layer, and gathers a layer while it runs.

Every forward pass gathers the layers one after the other, so all ranks must run the model equally often.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from see_lightning.errors import ConfigError
from see_lightning.models.architecture import decoder_layers


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Split every decoder layer over the ranks; the embeddings and the vocabulary head stay whole on each.

    Args:
        model: frozen, without adapters; adapters that are added later stay whole on every rank.
        mesh: the ranks, in one dimension.

    Raises:
        ConfigError: the model's class does not name its layers.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} does not name its layers (_no_split_modules), so it cannot be split over ranks;"
            f" choose trainer=ddp, in which each rank holds the whole model."
        )
    whole = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    # The decoder is the root, since PEFT calls the model's own forward without its hooks. Like the layers it frees its
    # parameters after a pass: what a pass gathers must not depend on the passes that a rank ran before.
    for part in (*layers, model.get_decoder()):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    model.to(mesh.device_type)  # the layers were moved one by one already


def is_sharded(module: nn.Module) -> bool:
    """Whether a module contains a sharded model."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


@contextmanager
def in_step(module: nn.Module) -> Iterator[None]:
    """Let each rank run a sharded model a different number of times.

    Before each pass the ranks vote on whether to go on. A rank that is done runs empty passes until all are done.
    If a rank leaves with an exception, the others fail.

    Args:
        module: contains the model. If it is not sharded, nothing happens.
    """
    root = next((part for part in module.modules() if isinstance(part, FSDPModule)), None)
    if root is None:
        yield
        return
    assert isinstance(root, nn.Module)
    group = next(part for part in root.parameters() if isinstance(part, DTensor)).device_mesh.get_group()

    def any_rank_continues(this_rank: bool) -> bool:
        vote = torch.tensor(int(this_rank))
        dist.all_reduce(vote, dist.ReduceOp.MAX, group)
        return bool(vote)

    def vote_to_continue(*_: object) -> None:
        any_rank_continues(True)

    hook = root.register_forward_pre_hook(vote_to_continue, prepend=True)  # before anything is gathered
    try:
        yield
    finally:
        hook.remove()
    dummy_11 = torch.zeros(1, 1, dtype=torch.long, device=next(root.parameters()).device)
    while any_rank_continues(False):
        with torch.no_grad():
            root(input_ids=dummy_11, use_cache=False)
