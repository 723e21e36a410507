"""Memory of a training step before any weight is loaded: the step runs on tensors without data, whose sizes are counted.

Letters: L labels, S tokens.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import AdapterConfig
from see_lightning.models.architecture import decoder_layers
from see_lightning.models.attention import LONG, attention_name
from see_lightning.models.base import DTYPES
from see_lightning.models.quantized_base import restored_bytes, stored_bytes

#: Memory of glibc's heap for each byte that is alive in it, and bytes that torch's libraries take once they compute: both
#: from six training steps, others than those of ``benchmarks/memory.py``. Blocks of many sizes, all aligned, leave gaps.
HEAP, LIBRARIES = 1.35, 250 * 2**20
#: Bytes that CUDA takes in each process.
CONTEXT = 500 * 2**20


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts the bytes of all tensors that are alive, and the most at any time.

    Tensors from before count once they are given to ``add``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def add(self, tensors: Iterable[Tensor]) -> Self:
        """Count tensors, each storage once, until it is freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._alive:
                self._alive[id(storage)] = weakref.ref(storage, self._freed(id(storage), storage.nbytes()))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return self

    def _freed(self, key: int, size: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            self._alive.pop(key, None)
            self.now -= size

        return forget

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it returns."""
        out = func(*args, **(kwargs or {}))
        self.add(one for one in tree_leaves(out) if isinstance(one, Tensor))
        return out


@dataclass(frozen=True)
class BatchShape:
    """The sizes of a micro-batch.

    Args:
        rows: of the batch, all of the same length.
        length: tokens of a row, its answer included.
        labels: tokens of a row's answer.
    """

    rows: int
    length: int
    labels: int


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training process on one device.

    Args:
        base: weights of the base model.
        adapters: weights of all adapters that are in memory.
        optimizer: gradients and moments of the trained adapter.
        step: activations and temporary tensors at the fullest moment of a step.
        cache: KV caches of the base model that are kept for training.
        process: the interpreter and its libraries.
    """

    base: int
    adapters: int
    optimizer: int
    step: int
    cache: int = 0
    process: int = 0

    def total(self) -> int:
        """All parts together."""
        return self.base + self.adapters + self.optimizer + self.step + self.cache + self.process


def without_data(
    skeleton: PreTrainedModel,
    adapter: AdapterConfig,
    dtype: str,
    *,
    attention: str = "auto",
    has_gpu: bool = False,
    checkpointing: bool = False,
) -> ExpertPool:
    """A pool with one expert in training, whose tensors have sizes and no data.

    Args:
        skeleton: the base model on the meta device; changed.
        adapter: of the run, with names of layers as its targets.
        dtype: ``bf16`` or ``fp32``, of the base model.
        attention: value of ``model.attention``.
        has_gpu: whether the model is to run on a GPU.
        checkpointing: whether layers are computed again in the backward pass.
    """
    skeleton.set_attn_implementation(attention_name(attention, skeleton.config.model_type, has_gpu))
    skeleton.to(DTYPES[dtype]).requires_grad_(False)  # type: ignore[arg-type]
    with torch.device("meta"):
        pool = ExpertPool(skeleton, replace(adapter, activated=False), "without data")
        pool.add_expert("trained", weights_seed=0)
    # Parameters are replaced, since a tensor of the meta device cannot become one of another device in place.
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            pool.to_empty(device="cpu")
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    pool.train_only("trained")
    if checkpointing:
        pool.checkpoint_gradients()
    return pool


def step_bytes(pool: ExpertPool, batch: BatchShape, *, activated: bool = False) -> int:
    """Bytes of activations and temporary tensors at the fullest moment of a step, weights and optimizer left out.

    Args:
        pool: from ``without_data``.
        batch: the micro-batch.
        activated: whether experts act from the answer on, over KV caches of the base model; these are counted.
    """
    trained = [weight for weight in pool.parameters() if weight.requires_grad]
    mode = next(weight.fake_mode for weight in trained if hasattr(weight, "fake_mode"))
    read = batch.length - batch.labels if activated else 0
    live = LiveBytes().add([*pool.parameters(), *pool.buffers()])
    with mode, live:
        for weight in trained:  # as after an earlier step
            weight.grad = torch.zeros_like(weight)
        kept = live.peak = live.now
        _step(pool, batch, read)
    return live.peak - kept


def _step(pool: ExpertPool, batch: BatchShape, read: int) -> None:
    """One forward and backward pass; ``read`` tokens of each row are read by the base model alone."""
    model, cache = pool.model, None
    ids_BS = torch.ones(batch.rows, batch.length, dtype=torch.long)
    mask_BS = torch.ones_like(ids_BS)
    positions_BS = torch.arange(batch.length).expand(batch.rows, -1)
    decoder = model.get_decoder()
    if read:
        with torch.no_grad(), pool.use_adapter(None):
            cache = decoder(
                input_ids=ids_BS[:, :read], position_ids=positions_BS[:, :read], use_cache=True
            ).past_key_values
    with pool.learning():
        states_BSH = decoder(
            input_ids=ids_BS[:, read:],
            attention_mask=mask_BS,
            position_ids=positions_BS[:, read:],
            past_key_values=cache,
            use_cache=False,
        ).last_hidden_state
        answer_LH = states_BSH[:, -batch.labels - 1 : -1] if not read else states_BSH
        logits_LV = model.get_output_embeddings()(answer_LH.flatten(0, 1))
    # As ``answer_loss``, which keeps a tensor of the logits' size for the backward pass, without its thousands of operations.
    torch.autograd.backward((logits_LV * torch.empty_like(logits_LV)).sum())


def shapes_to_try(tokens: int, longest: int, labels: int) -> list[BatchShape]:
    """The micro-batches of a run that can take most memory.

    Attention of rows below ``LONG`` tokens keeps its scores, which grow with the length; that of longer rows keeps none.

    Args:
        tokens: most tokens of a micro-batch.
        longest: tokens of the longest row.
        labels: tokens of the longest answer.

    >>> shapes_to_try(4096, 1536, 64)
    [BatchShape(rows=2, length=1536, labels=64), BatchShape(rows=8, length=511, labels=64)]
    """
    lengths = dict.fromkeys([longest, min(longest, LONG - 1)])
    return [BatchShape(max(1, tokens // length), length, min(labels, length - 1)) for length in lengths]


def training_footprint(
    skeleton: PreTrainedModel,
    adapter: AdapterConfig,
    dtype: str,
    batches: Sequence[BatchShape],
    *,
    attention: str = "auto",
    has_gpu: bool = False,
    checkpointing: bool = False,
    adapters: int = 1,
    ranks: int = 1,
    is_sharded: bool = False,
    quantization: str = "none",
) -> Footprint:
    """The memory of the largest training step of a run, on each of its devices.

    Args:
        skeleton: the base model on the meta device; changed.
        adapter: of the run, with names of layers as its targets.
        dtype: ``bf16`` or ``fp32``, of the base model.
        batches: the micro-batches that may be the largest.
        attention: value of ``model.attention``.
        has_gpu: whether it runs on a GPU, where this process's own memory does not count.
        checkpointing: whether layers are computed again in the backward pass.
        adapters: that are in memory at the end of the run.
        ranks: devices that train together.
        is_sharded: whether each of them holds a part of the base model; two layers are whole at a time.
        quantization: value of ``model.quantization``; the weights of one layer are restored at a time.
    """
    base = stored_bytes(skeleton, quantization, DTYPES[dtype])
    restored = restored_bytes(skeleton, quantization, DTYPES[dtype])
    pool = without_data(skeleton, adapter, dtype, attention=attention, has_gpu=has_gpu, checkpointing=checkpointing)
    trained = {id(weight): weight for weight in pool.parameters() if weight.requires_grad}
    one = sum(weight.nbytes for weight in trained.values())
    if is_sharded:
        layer = max(sum(weight.nbytes for weight in layer.parameters()) for layer in decoder_layers(pool.model))
        base = base // ranks + 2 * layer
    step = max(step_bytes(pool, batch, activated=adapter.activated) for batch in batches)
    return Footprint(
        base=base,
        adapters=one * adapters,
        optimizer=3 * one,
        step=int((step + restored) * (1 if has_gpu else HEAP)),
        cache=int(adapter.cache_gb / 2 * 2**30) if adapter.activated else 0,
        process=CONTEXT if has_gpu else process_bytes("VmRSS") + LIBRARIES,
    )


def process_bytes(field: str) -> int:
    """Bytes of this process as the kernel counts them: ``VmRSS`` now, ``VmHWM`` at most; 0 where it does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
