"""Random models of many architectures, each of two layers and made in milliseconds, with the tiny tokenizer beside them."""

from pathlib import Path

import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel

from see_lightning.models.tiny import tiny_tokenizer

BASIS = {"vocab_size": len(tiny_tokenizer()), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LIKE_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    **BASIS,
}
LIKE_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048, **BASIS}
LIKE_NEOX = {name: value for name, value in LIKE_LLAMA.items() if name != "num_key_value_heads"}
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, **BASIS}

CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**LIKE_LLAMA),
    "mistral": lambda: hf.MistralConfig(**LIKE_LLAMA, sliding_window=600),
    "qwen2": lambda: hf.Qwen2Config(**LIKE_LLAMA),
    "qwen3": lambda: hf.Qwen3Config(**LIKE_LLAMA, head_dim=8),
    "gemma2": lambda: hf.Gemma2Config(**LIKE_LLAMA, head_dim=8),
    "gemma3": lambda: hf.Gemma3TextConfig(**LIKE_LLAMA, head_dim=8),
    "gpt2": lambda: hf.GPT2Config(**LIKE_GPT2),
    "gptj": lambda: hf.GPTJConfig(**LIKE_GPT2, rotary_dim=4),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**LIKE_NEOX),
    "opt": lambda: hf.OPTConfig(**LIKE_NEOX, ffn_dim=64, word_embed_proj_dim=32),
    "falcon": lambda: hf.FalconConfig(**WIDTH, num_attention_heads=4),
    "mixtral": lambda: hf.MixtralConfig(**LIKE_LLAMA, num_local_experts=4),
    "phi3": lambda: hf.Phi3Config(**LIKE_LLAMA),
    # Positions are not position ids.
    "bloom": lambda: hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **BASIS),
    "falcon_alibi": lambda: hf.FalconConfig(**WIDTH, num_attention_heads=4, alibi=True),
    "mpt": lambda: hf.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=2048, vocab_size=BASIS["vocab_size"]),
    # Not to be used.
    "roberta": lambda: hf.RobertaConfig(**LIKE_NEOX, is_decoder=True),
    "openai_gpt": lambda: hf.OpenAIGPTConfig(**LIKE_GPT2),
    "bert": lambda: hf.BertConfig(**LIKE_NEOX),
    "mamba": lambda: hf.MambaConfig(**WIDTH, state_size=4),
    "rwkv": lambda: hf.RwkvConfig(**WIDTH, attention_hidden_size=32),
    "windows": lambda: hf.MistralConfig(**LIKE_LLAMA, sliding_window=64),
    "gpt_neo": lambda: hf.GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], **BASIS
    ),
    "t5": lambda: hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **BASIS),
    "bart": lambda: hf.BartConfig(d_model=32, encoder_layers=2, decoder_layers=2, **BASIS),
}


def random_model(kind: str) -> PreTrainedModel:
    """A model of a kind, its weights large enough that it matters where a token stands."""
    load = hf.AutoModelForSeq2SeqLM if kind in ("t5", "bart") else hf.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = load.from_config(CONFIGS[kind](), attn_implementation="eager").eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.2)
    return model.requires_grad_(False)


def model_folder(kind: str, folder: Path, **tokenizer: str | None) -> Path:
    """The same as a folder that ``model.name`` may be; ``tokenizer`` overwrites attributes of its tokenizer."""
    random_model(kind).save_pretrained(folder)
    made = tiny_tokenizer()
    for name, value in tokenizer.items():
        setattr(made, name, value)
    made.save_pretrained(folder)
    return folder
