"""The base model that all experts share: its tokenizer, its weights, and the precision the hardware is fast at."""

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
from see_lightning.models.architecture import check_architecture, open_windows
from see_lightning.models.attention import NAME, PLAIN
from see_lightning.models.smollm2 import converted_folder, smollm2_folder
from see_lightning.models.tiny import tiny_config, tiny_model, tiny_tokenizer

#: Tensors in files of earlier versions of transformers that hold nothing learned: masks, rotary frequencies.
FORMER = re.compile(r"(attn|attention)\.(bias|masked_bias|causal_mask)$|\binv_freq$|\bversion$")
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
    with _refused_in_one_line(config):
        tokenizer = AutoTokenizer.from_pretrained(*_place(config, cache), **_hub(config))
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {config.name} has no end-of-sequence token, so answers could not end.")
    return tokenizer


def load_settings(config: ModelConfig, cache: Path) -> PreTrainedConfig:
    """The model's own configuration, checked; no weights are loaded.

    Raises:
        ConfigError: there is no such model, or experts cannot share it.
    """
    if config.source == "tiny":
        return tiny_config()
    with _refused_in_one_line(config):
        settings: PreTrainedConfig = AutoConfig.from_pretrained(*_place(config, cache), **_hub(config))
    check_architecture(config, settings)
    open_windows(settings)
    return settings


def end_ids(config: ModelConfig, cache: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: the tokenizer's, and what the model's own settings add; no weights are loaded."""
    settings: list[Any] = [load_settings(config, cache)]
    if config.source != "tiny":
        with suppress(OSError, ValueError):  # there need be none
            settings.append(GenerationConfig.from_pretrained(*_place(config, cache), revision=config.revision))
    ends = [tokenizer.eos_token_id]
    for one in (getattr(one, "eos_token_id", None) for one in settings):
        ends += one if isinstance(one, list) else [one]
    return {id_ for id_ in ends if isinstance(id_, int)}


def skeleton(config: ModelConfig, cache: Path) -> PreTrainedModel:
    """The model without weights: its layers by name and kind."""
    settings = load_settings(config, cache)  # outside of the meta device, on which no weights are converted
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
        ConfigError: there is no such model, its files are not whole, or experts cannot share it.
    """
    settings = load_settings(config, cache)
    if config.source == "tiny":
        model = tiny_model().to(DTYPES[dtype])
    else:
        # On a CPU the fused kernel loses to plain attention at these lengths: 15 to 30 % of a training step.
        attention = "sdpa" if torch.cuda.is_available() else "eager"
        with _refused_in_one_line(config):
            model, told = AutoModelForCausalLM.from_pretrained(
                *_place(config, cache),
                config=settings,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                **_hub(config),
            )
        _check_whole(config, told)
    if model.config._attn_implementation == "eager" and model.config.model_type in PLAIN:
        model.set_attn_implementation(NAME)
    # Given some positions only, the head gets a strided slice, for which torch would copy its weight once per row.
    model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(),))
    model.requires_grad_(False)
    return model.eval()


def _check_whole(config: ModelConfig, told: Mapping[str, Any]) -> None:
    """Refuse files whose tensors are not those of the model: it would not be the one that was saved.

    Args:
        config: which model.
        told: what transformers tells of the loading. What a model's class says may be missing or left over is not in it.
    """
    left = [name for name in told["unexpected_keys"] if not FORMER.search(name)]
    sizes = [
        f"{name} ({list(found)} in the files, {list(wanted)} in the model)"
        for name, found, wanted in sorted(told["mismatched_keys"])
    ]
    for names, fault in (
        (told["missing_keys"], "lack {} of its weights, such as {}; they would be drawn at random"),
        (left, "hold {} tensors that its configuration has no place for, such as {}"),
        (sizes, "hold {} tensors of another size than its configuration says: {}"),
    ):
        if names:
            raise ConfigError(
                f"the files of model.name={config.name} {fault.format(len(names), listed(sorted(names), most=3))}. Get them"
                f" whole, or choose another model."
            )


@contextmanager
def _refused_in_one_line(config: ModelConfig) -> Iterator[None]:
    """Within this, a model that cannot be got or read is a refusal that says what to do.

    Raises:
        ConfigError: so it is.
    """
    if config.source == "hub":
        _check_folder(config.name)
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise  # tells of the disk
        for cause in (error, error.__cause__, error.__context__):  # a cache that cannot be used is no wrong name
            if isinstance(cause, OSError) and (told := barred(cause)):
                raise ConfigError(
                    f"cannot get model.name={config.name}: {told} HF_HOME=DIR gives another place."
                ) from error
        told = with_cause(error)
        marked = [path for path in Path(config.name).glob("*.json") if path.read_bytes()[:3] == codecs.BOM_UTF8]
        if marked:
            told, advice = f"{marked[0]} begins with a byte order mark.", "Save it as UTF-8 without one."
        elif "trust_remote_code" in str(error):
            advice = "It brings code of its own, which runs with model.trust_remote_code=true."
        elif Path(config.name).is_dir() or config.source != "hub":
            advice = "Get the files whole, or choose another model."
        else:
            advice = "Check the name, the network, and for a gated model `hf auth login`."
        raise ConfigError(f"cannot get model.name={config.name}: {told} {advice}") from error


def _check_folder(name: str) -> None:
    """Refuse what is plainly a path but no folder with a model, which the hub would be asked for."""
    place = Path(name)
    if not (place.exists() or name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1):
        return
    if not place.is_dir():
        what = "is a file; give the folder it lies in" if place.exists() else "is no folder here"
        home = " (~ is not resolved; write the path in full)" if name.startswith("~") else ""
        raise ConfigError(f"model.name={name} {what}{home}.")
    if not (place / "config.json").exists():
        holds = ", ".join(sorted(path.name for path in place.iterdir())[:5]) or "nothing"
        adapter = (place / "adapter_config.json").exists()
        raise ConfigError(
            f"model.name={name} is a folder without config.json, so it holds no model; it holds {holds}."
            + (" It is an adapter: give the model that it belongs to." if adapter else "")
        )


def model_id(config: ModelConfig) -> str:
    """How experts and reports name the base model."""
    return f"{config.name}@{config.revision}" if config.revision else config.name


def model_place(config: ModelConfig, cache: Path) -> str:
    """Where others find the very weights: a folder in full, or the name on the hub; a random model has no place but its name.

    A package's weights are those of its converted folder: what the hub has under a like name was never quantised.
    """
    if config.source == "package":
        return str(converted_folder(cache).absolute())
    return str(Path(config.name).absolute()) if Path(config.name).is_dir() else config.name


def _place(config: ModelConfig, cache: Path) -> tuple[str]:
    return (str(smollm2_folder(cache)) if config.source == "package" else config.name,)


def _hub(config: ModelConfig) -> dict[str, object]:
    # Said in either case: unsaid, transformers asks at the terminal whether code that it found shall run.
    return {"revision": config.revision, "trust_remote_code": config.source == "hub" and config.trust_remote_code}
