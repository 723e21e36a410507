"""Loading the base model that all experts share: its tokenizer, its weights, and the fastest precision of the hardware."""

import codecs
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from see_lightning.config.schema import ModelConfig
from see_lightning.errors import FULL, ConfigError, Refusal, barred, listed, with_cause
from see_lightning.models import quantized_base
from see_lightning.models.architecture import check_architecture, open_windows
from see_lightning.models.attention import NAME, attention_name
from see_lightning.models.smollm2 import converted_folder, smollm2_folder
from see_lightning.models.tiny import tiny_config, tiny_model, tiny_tokenizer

#: Tensors without learned values in files of earlier versions of transformers: masks, rotary frequencies.
FORMER = re.compile(r"(attn|attention)\.(bias|masked_bias|causal_mask)$|\binv_freq$|\bversion$")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def fast_dtype(accelerator: str) -> str:
    """``bf16`` if the hardware has bf16 products, else ``fp32``.

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
    """The tokenizer alone; reading and checking the data needs no more of the model.

    Raises:
        ConfigError: there is no such model, or its tokenizer has no end-of-sequence token.
    """
    if config.source == "tiny":
        return tiny_tokenizer()
    with _refused_in_one_line(config):
        tokenizer = AutoTokenizer.from_pretrained(*_place(config, cache), **_hub(config))
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {config.name} has no end-of-sequence token, so answers could not end.")
    return tokenizer


def load_settings(config: ModelConfig, cache: Path) -> PreTrainedConfig:
    """The model's own configuration, checked; no weights are loaded.

    Raises:
        ConfigError: there is no such model, or experts cannot share it; see ``check_architecture``.
    """
    if config.source == "tiny":
        return tiny_config()
    with _refused_in_one_line(config):
        settings: PreTrainedConfig = AutoConfig.from_pretrained(*_place(config, cache), **_hub(config))
    check_architecture(config, settings)
    open_windows(settings)
    return settings


def end_ids(config: ModelConfig, cache: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: the tokenizer's and those of the model's configurations; no weights are loaded."""
    settings: list[Any] = [load_settings(config, cache)]
    if config.source != "tiny":
        with suppress(OSError, ValueError):  # the file is optional
            settings.append(GenerationConfig.from_pretrained(*_place(config, cache), revision=config.revision))
    ends = [tokenizer.eos_token_id]
    for eos in (getattr(one, "eos_token_id", None) for one in settings):
        ends += eos if isinstance(eos, list) else [eos]
    return {id_ for id_ in ends if isinstance(id_, int)}


def skeleton(config: ModelConfig, cache: Path) -> PreTrainedModel:
    """The model without weights, on the meta device: its layers by name and type."""
    return model_of(load_settings(config, cache), config)


def model_of(settings: PreTrainedConfig, config: ModelConfig) -> PreTrainedModel:
    """The model of a configuration, without weights, on the meta device.

    Args:
        settings: the model's own configuration.
        config: its name, for messages, and whether its own code may run.
    """
    with torch.device("meta"), _refused_in_one_line(config):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)
    return model


def load_model(config: ModelConfig, cache: Path, dtype: str) -> PreTrainedModel:
    """The frozen base model, in evaluation mode.

    Args:
        config: which model.
        cache: where converted models are kept.
        dtype: ``bf16`` or ``fp32``.

    Raises:
        ConfigError: there is no such model, its files are incomplete, experts cannot share it, or it cannot be quantised.
    """
    settings = load_settings(config, cache)
    gpu = torch.cuda.is_available()
    attention = attention_name(config.attention, settings.model_type, gpu)
    quantized = quantized_base.loading(config.quantization, DTYPES[dtype])
    if config.source == "tiny":
        model = tiny_model().to(DTYPES[dtype])
        if quantized:
            weights = model.state_dict()
            model = type(model).from_pretrained(
                None, config=settings, state_dict=weights, dtype=DTYPES[dtype], **quantized
            )
    else:
        with _refused_in_one_line(config):
            model, loading = AutoModelForCausalLM.from_pretrained(
                *_place(config, cache),
                config=settings,
                dtype=DTYPES[dtype],
                attn_implementation=attention if attention != NAME else "eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                **quantized,
                **_hub(config),
            )
        _check_complete(config, loading)
    before, attention = (
        model.config._attn_implementation,
        attention_name(config.attention, model.config.model_type, gpu),
    )
    # Without a choice the random model keeps that of transformers, with which its kept runs were made.
    if before != attention and (config.attention != "auto" or before == "eager"):
        model.set_attn_implementation(attention)
    # With ``logits_to_keep`` the head gets a strided slice, for which torch would copy the head's weight once per row.
    model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(),))
    model.requires_grad_(False)
    quantized_base.prepare(model)
    return model.eval()


def _check_complete(config: ModelConfig, loading: Mapping[str, Any]) -> None:
    """Refuse files whose tensors are not exactly those of the model, which would not be the one that was saved.

    Args:
        config: which model.
        loading: transformers' loading info, without the tensors that the model's class allows to be missing or unexpected.

    Raises:
        ConfigError: tensors are missing, unexpected, or of another size.
    """
    unexpected = [name for name in loading["unexpected_keys"] if not FORMER.search(name)]
    sizes = [
        f"{name} ({list(size)} in the files, {list(expected)} in the model)"
        for name, size, expected in sorted(loading["mismatched_keys"])
    ]
    for names, fault in (
        (loading["missing_keys"], "lack {} of its weights, such as {}; they would be drawn at random"),
        (unexpected, "hold {} tensors that its configuration has no place for, such as {}"),
        (sizes, "hold {} tensors of another size than its configuration says: {}"),
    ):
        if names:
            raise ConfigError(
                f"the files of model.name={config.name} {fault.format(len(names), listed(sorted(names), most=3))}."
                f" Download the complete files, or choose another model."
            )


@contextmanager
def _refused_in_one_line(config: ModelConfig) -> Iterator[None]:
    """Turn an error of loading a model into a refusal with advice.

    Raises:
        ConfigError: the model cannot be downloaded or read.
    """
    if config.source == "hub":
        _check_folder(config.name)
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise  # the disk is full: reported elsewhere
        for cause in (error, error.__cause__, error.__context__):  # the cache folder may be at fault, not the name
            if isinstance(cause, OSError) and (reason := barred(cause)):
                raise ConfigError(
                    f"cannot get model.name={config.name}: {reason} HF_HOME=DIR sets another folder."
                ) from error
        reason = with_cause(error)
        marked = [path for path in Path(config.name).glob("*.json") if path.read_bytes()[:3] == codecs.BOM_UTF8]
        if marked:
            reason, advice = f"{marked[0]} begins with a byte order mark.", "Save it as UTF-8 without one."
        elif "trust_remote_code" in str(error):
            advice = "The model has code of its own, which runs only with model.trust_remote_code=true."
        elif Path(config.name).is_dir() or config.source != "hub":
            advice = "Download the complete files, or choose another model."
        else:
            advice = "Check the name, the network, and for a gated model `hf auth login`."
        raise ConfigError(f"cannot get model.name={config.name}: {reason} {advice}") from error


def _check_folder(name: str) -> None:
    """Refuse a name that is plainly a path but no folder with a model; the hub would be searched for it.

    Raises:
        ConfigError: the name is a file, no folder, or a folder without a model.
    """
    place = Path(name)
    if not (place.exists() or name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1):
        return
    if not place.is_dir():
        fault = "is a file; give the folder it lies in" if place.exists() else "is no folder here"
        home = " (~ is not resolved; write the path in full)" if name.startswith("~") else ""
        raise ConfigError(f"model.name={name} {fault}{home}.")
    if not (place / "config.json").exists():
        holds = ", ".join(sorted(path.name for path in place.iterdir())[:5]) or "nothing"
        adapter = (place / "adapter_config.json").exists()
        raise ConfigError(
            f"model.name={name} is a folder without config.json, so it holds no model; it holds {holds}."
            + (" It is an adapter: give the model that it belongs to." if adapter else "")
        )


def model_id(config: ModelConfig) -> str:
    """The base model's name in experts' files and reports: name, and revision if one is set."""
    return f"{config.name}@{config.revision}" if config.revision else config.name


def model_place(config: ModelConfig, cache: Path) -> str:
    """Where other programs load the same weights from: an absolute folder or a name on the hub; of ``model=tiny`` its name.

    For a model out of a package this is the folder of converted weights: those on the hub were never quantised.

    Args:
        config: which model.
        cache: where converted models are kept.
    """
    if config.source == "package":
        return str(converted_folder(cache).absolute())
    return str(Path(config.name).absolute()) if Path(config.name).is_dir() else config.name


def _place(config: ModelConfig, cache: Path) -> tuple[str]:
    return (str(smollm2_folder(cache)) if config.source == "package" else config.name,)


def _hub(config: ModelConfig) -> dict[str, object]:
    # Always passed: without it, transformers asks at the terminal whether to run the code that it found.
    return {"revision": config.revision, "trust_remote_code": config.source == "hub" and config.trust_remote_code}
