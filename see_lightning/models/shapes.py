"""Shapes of well-known models, for estimates without a network: a run reads the model's own configuration instead."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

_LLAMA = {"model_type": "llama", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}


def _sizes(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, groups: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": tied,
    }


_LLAMA_2 = {**_LLAMA, **_sizes(32000, 4096, 11008, 32, 32, 32, tied=False), "max_position_embeddings": 4096}
#: By name on the Hub: settings of the configuration. A test holds the numbers of weights against the published ones.
SHAPES: dict[str, Mapping[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _LLAMA_2,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA_2,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA | _sizes(128256, 4096, 14336, 32, 32, 8, tied=False),
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA | _sizes(128256, 2048, 8192, 16, 32, 8, tied=True),
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "model_type": "qwen2",
        "max_position_embeddings": 32768,
        **_sizes(151936, 896, 4864, 24, 14, 2, tied=True),
    },
    "Qwen/Qwen3-0.6B": _sizes(151936, 1024, 3072, 28, 16, 8, tied=True) | _QWEN3 | {"max_position_embeddings": 40960},
    "Qwen/Qwen3-1.7B": _sizes(151936, 2048, 6144, 28, 16, 8, tied=True) | _QWEN3 | {"max_position_embeddings": 40960},
    "Qwen/Qwen3-8B": _sizes(151936, 4096, 12288, 36, 32, 8, tied=False) | _QWEN3 | {"max_position_embeddings": 40960},
    "google/gemma-3-1b-it": {
        "model_type": "gemma3_text",
        "head_dim": 256,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
        **_sizes(262144, 1152, 6912, 26, 4, 1, tied=True),
    },
    "HuggingFaceTB/SmolLM2-360M-Instruct": _LLAMA | _sizes(49152, 960, 2560, 32, 15, 5, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _LLAMA | _sizes(49152, 2048, 8192, 24, 32, 32, tied=True),
}


def known_shape(name: str) -> PreTrainedConfig | None:
    """The configuration of a well-known model, in all that determines its sizes; None of another one."""
    if name not in SHAPES:
        return None
    settings = dict(SHAPES[name])
    found: PreTrainedConfig = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return found
