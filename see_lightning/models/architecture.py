"""A model's configuration, checked before its weights are loaded: can experts share its KV cache? And its decoder layers."""

from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from see_lightning.config.schema import ModelConfig
from see_lightning.errors import ConfigError

_NEVER_REACHED = 2**30  # tokens
_WINDOW = "seen_at_once"  # attribute that holds the shortest window's size after ``open_windows``
#: Last sentence of a refusal.
OTHERS = "Choose a causal language model with attention in every layer; docs/models.md lists what works."


def check_architecture(config: ModelConfig, settings: PreTrainedConfig) -> None:
    """Refuse a model that is no causal language model, or has no KV cache of single tokens.

    Args:
        config: the model's name and ``max_length``.
        settings: the model's own configuration.

    Raises:
        ConfigError: the model is no causal language model, is recurrent, or has an attention window or a context that is
            shorter than ``max_length``.
    """
    name, kind = f"model.name={config.name}", settings.model_type
    remote = "AutoModelForCausalLM" in (getattr(settings, "auto_map", None) or {})
    is_causal = type(settings) in MODEL_FOR_CAUSAL_LM_MAPPING
    if settings.is_encoder_decoder or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES or not (is_causal or remote):
        raise ConfigError(f"{name} is a {kind} model, which is no causal language model. {OTHERS}")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(settings, "is_decoder", False):
        raise ConfigError(f"{name} is a {kind} model, which reads in both directions and generates no text. {OTHERS}")
    is_stateful = is_causal and MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]._is_stateful
    kinds = {type(layer) for layer in DynamicCache(config=settings).layers}
    if is_stateful or kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        raise ConfigError(
            f"{name} is a {kind} model, which keeps a recurrent state instead of keys and values of each token, so experts"
            f" cannot share what it has read. {OTHERS}"
        )
    window = shortest_window(settings)
    if window is not None and window < config.max_length:
        raise ConfigError(
            f"{name} has an attention window of {window} tokens, fewer than model.max_length={config.max_length}; set"
            f" model.max_length={window} or less, or choose a model with full attention."
        )
    limit = longest_text(settings)
    if limit is not None and limit < config.max_length:
        raise ConfigError(f"model.max_length={config.max_length}, but {config.name} reads at most {limit} tokens.")


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a model, the first one first; empty if its class does not name them (``_no_split_modules``)."""
    kinds = model._no_split_modules or ()
    # A sharded layer has a class of its own, derived from the named one.
    named = (
        layer for layer in model.get_decoder().modules() if any(one.__name__ in kinds for one in type(layer).__mro__)
    )
    return list(named)


def longest_text(settings: PreTrainedConfig) -> int | None:
    """Most tokens that a model reads with full attention; None if its configuration does not tell."""
    text = settings.get_text_config(decoder=True)
    limits = (getattr(text, name, None) for name in (_WINDOW, "max_position_embeddings", "n_positions", "max_seq_len"))
    return next((limit for limit in limits if limit and limit > 0), None)


def shortest_window(settings: PreTrainedConfig) -> int | None:
    """Size of the shortest attention window in tokens; None if every layer has full attention."""
    layers = DynamicCache(config=settings).layers
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    windows += [getattr(settings.get_text_config(decoder=True), name) for name in _own_windows(settings)]
    return min(windows, default=None)


def open_windows(settings: PreTrainedConfig) -> None:
    """Give every layer full attention, in place.

    Results do not change, since ``check_architecture`` has refused windows shorter than a text. But a window counts columns
    of a batch, with padding and branches, which may be more than the tokens of a row.

    Args:
        settings: the model's own configuration.
    """
    text, window = settings.get_text_config(decoder=True), shortest_window(settings)
    if window is None:
        return
    setattr(text, _WINDOW, window)
    for name in ("sliding_window", "attention_chunk_size", *_own_windows(settings)):
        if getattr(text, name, None):
            setattr(text, name, _NEVER_REACHED)


def _own_windows(settings: PreTrainedConfig) -> list[str]:
    """Names of settings of windows that transformers' caches do not know, such as GPT-Neo's ``window_size``."""
    text = settings.get_text_config(decoder=True).to_dict()
    return [
        name
        for name, value in text.items()
        if name.endswith(("window", "window_size")) and "sliding" not in name and type(value) is int and value > 0
    ]
