"""Lightning's strategy for a sharded base model, see ``see_lightning.models.sharding``."""

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from see_lightning.config.validation import FSDP_BASE


class FSDPBaseStrategy(DDPStrategy):
    """DDP over the parameters of experts; the sharded parameters of the base model are ignored."""

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        sharded = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded)  # type: ignore[no-untyped-call]
        wrapped: DistributedDataParallel = super()._setup_model(model)
        return wrapped


# Registered by name: every task has a new Trainer with a new strategy.
StrategyRegistry.register(FSDP_BASE, FSDPBaseStrategy, description="DDP over experts, FSDP over the frozen base model")
