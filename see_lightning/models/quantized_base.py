"""The frozen base model in 8 or 4 bits by bitsandbytes.

``int8`` has the weights of LLM.int8(), with a scale for each output (Dettmers et al., 2022, arXiv 2208.07339); ``nf4`` is
that of QLoRA, with double quantisation (Dettmers et al., 2023, arXiv 2305.14314). Linear layers are quantised, except the
vocabulary head; all else keeps its dtype.

Letters: I and O the sizes of a layer's input and output.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from see_lightning.errors import ConfigError

#: Weights that share a scale in NF4, and scales that share one in turn (double quantisation).
BLOCK, OUTER = 64, 256
PACKAGES = ("bitsandbytes", "accelerate")


def loading(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that load a model in fewer bits; none for ``none``.

    Args:
        kind: ``none``, ``int8`` or ``nf4``.
        dtype: of the products.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if kind == "none":
        return {}
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"model.quantization={kind} needs {' and '.join(missing)}: pip install 'see-lightning[quantized]'."
        )
    if kind == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
        )
    }


def prepare(model: PreTrainedModel) -> None:
    """Make quantised layers compute the same in every mode and batch, with gradients.

    In a pass without gradients bitsandbytes packs the 4-bit weights of a layer for a CPU's bf16 instructions; a later pass
    with gradients would then get none through this layer, without an error, since the base model stays in evaluation mode.
    Its 8-bit layers round their inputs too, where a last digit decides by a whole step, and look for outliers in all rows of
    a batch: a row's verdict would depend on the rows beside it. Here 8-bit weights are multiplied with inputs as they are.
    """
    for layer in _layers(model):
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        else:
            layer.forward = partial(_of_eight_bits, layer)


def _of_eight_bits(layer: Any, x: Tensor) -> Tensor:
    """The output of an 8-bit layer, in place of its ``forward``."""
    y: Tensor = _Product.apply(x, layer.weight.data, layer.weight.SCB)  # type: ignore[no-untyped-call]
    return y if layer.bias is None else y + layer.bias


class _Product(torch.autograd.Function):
    """The product with restored weights, which are restored again for the gradient instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values_OI: Tensor, scales_O: Tensor) -> Tensor:
        ctx.save_for_backward(values_OI, scales_O)
        return linear(x, _times(values_OI, scales_O).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        values_OI, scales_O = ctx.saved_tensors
        return gradients[0] @ _times(values_OI, scales_O).to(gradients[0].dtype), None, None


def _times(values_OI: Tensor, scales_O: Tensor) -> Tensor:
    """8-bit weights in fp32."""
    return values_OI * (scales_O.float()[:, None] / 127)


def check_quantizable(model: PreTrainedModel, kind: str, name: str, *, has_gpu: bool) -> None:
    """Refuse a model whose layers bitsandbytes cannot quantise rightly.

    Args:
        model: with or without weights.
        kind: value of ``model.quantization``.
        name: of the model, for messages.
        has_gpu: whether it is to run on a GPU.

    Raises:
        ConfigError: see above.
    """
    if kind == "none":
        return
    for path, layer in _linear(model).items():
        inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.nx
        if kind == "nf4" and not has_gpu and inputs % BLOCK:
            raise ConfigError(
                f"model.quantization=nf4: bitsandbytes restores wrong weights on a CPU where a layer's inputs are no multiple"
                f" of {BLOCK}, and {path} of {name} has {inputs}; choose model.quantization=int8 or a GPU."
            )


def stored_bytes(model: PreTrainedModel, kind: str, dtype: torch.dtype) -> int:
    """Bytes of a model's weights as they are kept in memory.

    Args:
        model: not quantised, with or without weights.
        kind: value of ``model.quantization``.
        dtype: of what is not quantised.
    """
    whole: int = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    if kind == "none":
        return whole
    saved = 0
    for layer in _linear(model).values():
        weights: int = layer.weight.numel()
        _, outputs = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
        scales = math.ceil(weights / BLOCK)
        kept = weights + 4 * outputs if kind == "int8" else weights // 2 + scales + 4 * math.ceil(scales / OUTER)
        saved += weights * dtype.itemsize - kept
    return whole - saved


def restored_bytes(model: PreTrainedModel, kind: str, dtype: torch.dtype) -> int:
    """Bytes of the largest layer's weight, which is restored for each of its products; arguments as ``stored_bytes``."""
    if kind == "none":
        return 0
    largest: int = max((layer.weight.numel() for layer in _linear(model).values()), default=0)
    return largest * (dtype.itemsize + (4 if kind == "int8" else 0))  # of 8 bits first in fp32


def weight_error(model: PreTrainedModel, exact: Callable[[str], Tensor]) -> float:
    """Frobenius norm of the difference of the quantised weights and the exact ones, as a share of the latter's; 0..1.

    Args:
        model: quantised.
        exact: gives the weight of a layer by its name in fp32, as files have it.
    """
    lost = total = 0.0
    for path, layer in model.named_modules():
        if not _is_quantized(layer):
            continue
        weight_OI = exact(path)
        if getattr(layer, "source_cls", None) is Conv1D:  # its files have (I, O)
            weight_OI = weight_OI.T
        lost += float((restored(layer) - weight_OI).square().sum())
        total += float(weight_OI.square().sum())
    return math.sqrt(lost / total) if total else 0.0


def restored(layer: nn.Module) -> Tensor:
    """The weight with which a quantised layer computes, (O, I), in fp32 on the CPU."""
    from bitsandbytes import functional  # an extra

    weight: Any = layer.weight
    if getattr(weight, "quant_state", None) is None:
        return _times(weight.data, weight.SCB).cpu()
    found: Tensor = functional.dequantize_4bit(weight.data, weight.quant_state)
    return found.float().cpu()


def _linear(model: PreTrainedModel) -> dict[str, Any]:
    """The layers that would be quantised, by name."""
    head = model.get_output_embeddings()
    return {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    }


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in model.modules() if _is_quantized(layer))


def _is_quantized(layer: nn.Module) -> bool:
    return type(layer).__name__ in ("Linear4bit", "Linear8bitLt") and type(layer).__module__.startswith("bitsandbytes")
