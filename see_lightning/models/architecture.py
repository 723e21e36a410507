"""What a model's own configuration tells before its weights are loaded: whether experts can share what it has read."""

from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from see_lightning.config.schema import ModelConfig
from see_lightning.errors import ConfigError

_NEVER_REACHED = 2**30  # tokens
_WINDOW = "seen_at_once"  # notes how long the shortest was
#: How a refusal ends.
OTHERS = "Choose a causal language model with attention in every layer; docs/models.md lists what works."


def check_architecture(config: ModelConfig, settings: PreTrainedConfig) -> None:
    """Refuse a model that does not go on from a prompt, or whose reading cannot be kept token by token.

    Args:
        config: names it and the most tokens that are read.
        settings: the model's own configuration.

    Raises:
        ConfigError: it is no causal language model, recurrent, or reads through windows shorter than ``max_length``, or at
            most fewer tokens.
    """
    name, kind = f"model.name={config.name}", settings.model_type
    remote = "AutoModelForCausalLM" in (getattr(settings, "auto_map", None) or {})
    is_causal = type(settings) in MODEL_FOR_CAUSAL_LM_MAPPING
    if settings.is_encoder_decoder or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES or not (is_causal or remote):
        raise ConfigError(f"{name} is a {kind} model, which is no causal language model. {OTHERS}")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(settings, "is_decoder", False):
        raise ConfigError(f"{name} is a {kind} model, which reads in both directions and writes no answers. {OTHERS}")
    is_stateful = is_causal and MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]._is_stateful
    kinds = {type(layer) for layer in DynamicCache(config=settings).layers}
    if is_stateful or kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        raise ConfigError(
            f"{name} is a {kind} model, which keeps what it has read in a state that experts cannot share and branch from"
            f" token by token. {OTHERS}"
        )
    window = shortest_window(settings)
    if window is not None and window < config.max_length:
        raise ConfigError(
            f"{name} reads through a window of {window} tokens, fewer than model.max_length={config.max_length}; set"
            f" model.max_length={window} or less, or choose a model with full attention."
        )
    limit = longest_text(settings)
    if limit is not None and limit < config.max_length:
        raise ConfigError(f"model.max_length={config.max_length}, but {config.name} reads at most {limit} tokens.")


def longest_text(settings: PreTrainedConfig) -> int | None:
    """The most tokens that a model reads, none of them out of sight; None where it does not say."""
    text = settings.get_text_config(decoder=True)
    found = (getattr(text, name, None) for name in (_WINDOW, "max_position_embeddings", "n_positions", "max_seq_len"))
    return next((limit for limit in found if limit and limit > 0), None)


def shortest_window(settings: PreTrainedConfig) -> int | None:
    """How many tokens back a model's layers see at least, or None where all see everything."""
    layers = DynamicCache(config=settings).layers
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    windows += [getattr(settings.get_text_config(decoder=True), name) for name in _own_windows(settings)]
    return min(windows, default=None)


def open_windows(settings: PreTrainedConfig) -> None:
    """Let every layer see everything: the same numbers, for ``check_architecture`` saw that no window is ever left.

    Windows count columns of a batch, padding and branches included, of which there may be more than a row has tokens.
    """
    text, window = settings.get_text_config(decoder=True), shortest_window(settings)
    if window is None:
        return
    setattr(text, _WINDOW, window)
    for name in ("sliding_window", "attention_chunk_size", *_own_windows(settings)):
        if getattr(text, name, None):
            setattr(text, name, _NEVER_REACHED)


def _own_windows(settings: PreTrainedConfig) -> list[str]:
    """Windows of which transformers' caches do not know, such as GPT-Neo's ``window_size``."""
    text = settings.get_text_config(decoder=True).to_dict()
    return [
        name
        for name, value in text.items()
        if name.endswith(("window", "window_size")) and "sliding" not in name and type(value) is int and value > 0
    ]
