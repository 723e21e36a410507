"""The base model that all experts share: its tokenizer, its weights, and the precision the hardware is fast at."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from see_lightning.config import ConfigError, ModelConfig
from see_lightning.models.attention import NAME, PLAIN
from see_lightning.models.smollm2 import smollm2_folder
from see_lightning.models.tiny import tiny_model, tiny_tokenizer
from see_lightning.refusals import barred

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def fast_dtype(accelerator: str) -> str:
    """``bf16`` where the hardware multiplies it in hardware, else ``fp32``.

    Args:
        accelerator: Lightning's name of the device kind; ``auto`` takes a GPU if there is one.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if accelerator == "mps":
        return "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def load_tokenizer(config: ModelConfig, cache: Path) -> PreTrainedTokenizerBase:
    """The tokenizer alone, which is all that reading and checking the data needs."""
    if config.source == "tiny":
        return tiny_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(*_place(config, cache), **_hub(config))
    except OSError as error:
        for cause in (error, error.__cause__, error.__context__):  # a cache that cannot be used is no wrong name
            if isinstance(cause, OSError) and (told := barred(cause)):
                raise ConfigError(
                    f"cannot get model.name={config.name}: {told} HF_HOME=DIR gives another place."
                ) from error
        raise ConfigError(
            f"cannot get model.name={config.name}: {str(error).splitlines()[0]} Check the name, the network, and for a"
            f" gated model `hf auth login`."
        ) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {config.name} has no end-of-sequence token, so answers could not end.")
    return tokenizer


def load_model(config: ModelConfig, cache: Path, dtype: str) -> PreTrainedModel:
    """The frozen base model, in evaluation mode.

    Args:
        config: which model.
        cache: where converted models are kept.
        dtype: ``bf16`` or ``fp32``.
    """
    if config.source == "tiny":
        model = tiny_model().to(DTYPES[dtype])
    else:
        # On a CPU the fused kernel loses to plain attention at these lengths: 15 to 30 % of a training step.
        attention = "sdpa" if torch.cuda.is_available() else "eager"
        model = AutoModelForCausalLM.from_pretrained(
            *_place(config, cache), dtype=DTYPES[dtype], attn_implementation=attention, **_hub(config)
        )
    if model.config._attn_implementation == "eager" and model.config.model_type in PLAIN:
        model.set_attn_implementation(NAME)
    kinds = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - {DynamicLayer.__name__}
    if kinds:
        raise ConfigError(
            f"{config.name} keeps what it has read in {', '.join(sorted(kinds))}, of which no part can be read on by itself;"
            f" models with full attention in every layer can be used."
        )
    # Given some positions only, the head gets a strided slice, for which torch would copy its weight once per row.
    model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(),))
    model.requires_grad_(False)
    return model.eval()


@contextmanager
def head_on(model: PreTrainedModel, chosen_BS: Tensor) -> Iterator[None]:
    """Let the vocabulary head run on some positions only: its logits are then (1, chosen, V), row by row.

    The head costs a fifth of a small model's forward pass, and all but a few positions of a training batch need none of
    it. Chosen before the head rather than after, so whatever a model does to its logits it still does.

    Args:
        model: a causal language model of Hugging Face's interface.
        chosen_BS: True where logits are wanted.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0][chosen_BS][None],))
    try:
        yield
    finally:
        hook.remove()


def model_id(config: ModelConfig) -> str:
    """How experts and reports name the base model."""
    return f"{config.name}@{config.revision}" if config.revision else config.name


def _place(config: ModelConfig, cache: Path) -> tuple[str]:
    return (str(smollm2_folder(cache)) if config.source == "package" else config.name,)


def _hub(config: ModelConfig) -> dict[str, object]:
    # Remote code only when asked for in so many words; a package's own folder never has any.
    return (
        {"revision": config.revision, "trust_remote_code": config.trust_remote_code} if config.source == "hub" else {}
    )
