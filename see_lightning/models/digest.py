"""Digests of a base model's files, by which a run detects that its model has changed since it was started."""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from see_lightning.config.schema import ModelConfig
from see_lightning.files.reading import sha256
from see_lightning.files.writing import make_folder, write_text
from see_lightning.models.smollm2 import converted_files

#: Suffixes of the files of a model and its tokenizer.
READ = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
WEIGHTS = (".safetensors", ".bin")
LARGE = 1 << 24  # bytes; a smaller file is read each time
#: Seconds since a file's last change within which its digest is not cached: on a file system with times in whole seconds, a
#: second change within the same second would not show.
RECENT = 2.0

#: Files other than the weights that determine a model's computation and its tokens.
SETTINGS = re.compile(
    r"(config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json|.*\.py"
)
VOCABULARY = re.compile(
    r"(vocab|tekken)\.json|(vocab|merges)\.txt|.*\.(model|tiktoken)"
)  # if there is no tokenizer.json
CHAT = re.compile(r"chat_template\.(json|jinja)")


def model_folder(config: ModelConfig) -> Path | None:
    """The folder with the files of a model of the hub or of a folder; None if they are not on this machine."""
    folder = Path(config.name)
    if folder.is_dir():
        return folder
    kept = try_to_load_from_cache(config.name, "config.json", revision=config.revision)
    return Path(kept).parent if isinstance(kept, str) else None


def model_files(config: ModelConfig, cache: Path) -> dict[str, str] | None:
    """The sha256 of each file of the base model, by name.

    Args:
        config: which model.
        cache: folder with the cached digests of large files, each valid until the file changes.

    Returns:
        The digests; None if the weights are not on this machine, or the model has no files (``model=tiny``).
    """
    if config.source != "hub":
        return converted_files(cache) if config.source == "package" else None
    try:
        folder = model_folder(config)
        paths = sorted(path for path in folder.iterdir() if path.suffix in READ and path.is_file()) if folder else []
    except (OSError, ValueError):  # an unreadable folder or invalid name is refused when the model is loaded
        return None
    if not any(path.suffix in WEIGHTS for path in paths):
        return None
    known = _DigestCache(cache / "digests.json")
    digests = {path.name: known.sha256(path) for path in paths}
    known.write()
    return digests


def weights_of(files: Mapping[str, str]) -> dict[str, str]:
    """The files that hold a model's weights, out of all its files; digests by name."""
    safe = any(name.endswith(".safetensors") for name in files)  # then transformers reads no other weights

    def counts(name: str) -> bool:
        if name.endswith((".safetensors", ".safetensors.index.json")):
            return True
        return not safe and name.startswith(("pytorch_model", "model")) and name.endswith((".bin", ".bin.index.json"))

    return {name: digest for name, digest in files.items() if counts(name)}


def changed_files(then: Mapping[str, str], now: Mapping[str, str], *, chat: bool) -> list[str]:
    """Names of a model's files that differ between two times and change its logits or its tokens.

    Args:
        then: sha256 of the files by name, as recorded. A record of an earlier version has the weights only; then nothing else
            is compared.
        now: sha256 of the present files by name.
        chat: whether the chat template is used.
    """
    recorded, present = (_read_files(files, chat=chat) for files in (then, now))
    if "config.json" not in recorded:
        present = {name: present[name] for name in present.keys() & recorded.keys()}
    return sorted(name for name in {*recorded, *present} if recorded.get(name) != present.get(name))


def _read_files(files: Mapping[str, str], *, chat: bool) -> dict[str, str]:
    """The files that are read when a model is loaded, out of all its files; digests by name."""
    kinds = [SETTINGS, *([] if "tokenizer.json" in files else [VOCABULARY]), *([CHAT] if chat else [])]
    others = {name: digest for name, digest in files.items() if any(kind.fullmatch(name) for kind in kinds)}
    return {**others, **weights_of(files)}


def files_digest(files: Mapping[str, str]) -> str:
    """One sha256 over the names and digests of all files."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


class _DigestCache:
    """Digests of large files, cached on disk.

    A digest is valid for the same path, inode, size, modification time (mtime), and change time (ctime), which no program can
    set back.

    Args:
        path: the cache file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests: dict[str, str] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):  # without a cache, all files are read again
            cached = json.loads(path.read_text(encoding="utf-8"))
            self.digests = {key: digest for key, digest in cached.items() if re.fullmatch("[0-9a-f]{64}", digest)}
        self.changed = False

    def sha256(self, path: Path) -> str:
        """sha256 of a file, computed if it is small, recently changed, or not cached."""
        real = path.resolve()
        status = real.stat()
        if status.st_size < LARGE or time.time() - status.st_ctime < RECENT:
            return sha256(real)
        facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        key = f"{real} {' '.join(map(str, facts))}"
        if key not in self.digests:
            self.digests = {name: digest for name, digest in self.digests.items() if not name.startswith(f"{real} ")}
            self.digests[key] = sha256(real)
            self.changed = True
        return self.digests[key]

    def write(self) -> None:
        """Write the cache if it changed; an error is ignored, since digests can be computed again."""
        if not self.changed:
            return
        with suppress(OSError):
            make_folder(self.path.parent)
            write_text(self.path, json.dumps(self.digests, indent=1))
