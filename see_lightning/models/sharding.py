"""The frozen base model in parts: a rank holds its share of every layer, which is whole only while it computes.

Every forward pass gathers the layers one after the other, so all ranks that share a model must run it equally often.
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


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Leave to each rank its share of every decoder layer; the embeddings and the vocabulary head stay whole.

    Args:
        model: frozen, without adapters; what is added later stays whole on every rank.
        mesh: the ranks, in one dimension.

    Raises:
        ConfigError: the model does not say what its layers are.
    """
    decoder = model.get_decoder()
    layers = [layer for layer in decoder.modules() if type(layer).__name__ in (model._no_split_modules or ())]
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} does not name its layers (_no_split_modules), so it cannot be split over ranks;"
            f" choose trainer=ddp, in which each rank holds the whole model."
        )
    whole = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    # The decoder is the root, for PEFT calls the model's own forward past its hooks. It gives its parameters up again like
    # its layers do: what is gathered in a pass must not hang on which passes a rank has behind it.
    for part in (*layers, decoder):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    model.to(mesh.device_type)  # the layers are there already, one by one


def is_sharded(module: nn.Module) -> bool:
    """Whether ranks share a model in it."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


@contextmanager
def in_step(module: nn.Module) -> Iterator[None]:
    """Let every rank run the model in it as often as it needs to; one that is done first takes part until all are.

    Before each pass the ranks vote on whether anybody goes on. A rank that leaves with an exception takes part no longer,
    and the others fail.

    Args:
        module: holds the model; nothing happens if that is not sharded.
    """
    root = next((part for part in module.modules() if isinstance(part, FSDPModule)), None)
    if root is None:
        yield
        return
    assert isinstance(root, nn.Module)
    group = next(part for part in root.parameters() if isinstance(part, DTensor)).device_mesh.get_group()

    def somebody_goes_on(myself: bool) -> bool:
        vote = torch.tensor(int(myself))
        dist.all_reduce(vote, dist.ReduceOp.MAX, group)
        return bool(vote)

    def go_on(*_: object) -> None:
        somebody_goes_on(True)

    hook = root.register_forward_pre_hook(go_on, prepend=True)  # before anything is gathered
    try:
        yield
    finally:
        hook.remove()
    nothing = torch.zeros(1, 1, dtype=torch.long, device=next(root.parameters()).device)
    while somebody_goes_on(False):
        with torch.no_grad():
            root(input_ids=nothing, use_cache=False)
