"""Lightning's strategy for a base model in parts (`see_lightning.models.sharding`)."""

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from see_lightning.config.validation import FSDP_BASE


class FSDPBaseStrategy(DDPStrategy):
    """Trains experts as DDP does, and leaves alone what each rank holds a part of."""

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        parts = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, parts)  # type: ignore[no-untyped-call]
        wrapped: DistributedDataParallel = super()._setup_model(model)
        return wrapped


# By name, since every task gets a fresh Trainer with a fresh strategy.
StrategyRegistry.register(FSDP_BASE, FSDPBaseStrategy, description="DDP over experts, FSDP over the frozen base model")
