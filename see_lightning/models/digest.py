"""The content of a base model's files, so that a run can tell whether its model is still the one it was begun with."""

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

#: Endings of the files of which a model and its tokenizer are made.
READ = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
WEIGHTS = (".safetensors", ".bin")
LARGE = 1 << 24  # bytes; a smaller file is read each time
RECENT = (
    2.0  # seconds; a file system that keeps whole seconds would not show that a file is written once more within one
)

#: Of the files that are read, those beside the weights that say how a model computes and what its tokens are.
SETTINGS = re.compile(
    r"(config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json|.*\.py"
)
VOCABULARY = re.compile(
    r"(vocab|tekken)\.json|(vocab|merges)\.txt|.*\.(model|tiktoken)"
)  # if there is no tokenizer.json
CHAT = re.compile(r"chat_template\.(json|jinja)")


def model_folder(config: ModelConfig) -> Path | None:
    """Where the files of a model lie that is not packaged; None if they are not on this machine."""
    folder = Path(config.name)
    if folder.is_dir():
        return folder
    kept = try_to_load_from_cache(config.name, "config.json", revision=config.revision)
    return Path(kept).parent if isinstance(kept, str) else None


def model_files(config: ModelConfig, cache: Path) -> dict[str, str] | None:
    """The sha256 of each file of the base model, by name.

    Args:
        config: which model.
        cache: where digests of large files are kept, each valid as long as the file was not touched.

    Returns:
        None if its weights are not on this machine, or there are no files of it (``model=tiny``).
    """
    if config.source != "hub":
        return converted_files(cache) if config.source == "package" else None
    try:
        folder = model_folder(config)
        paths = sorted(path for path in folder.iterdir() if path.suffix in READ and path.is_file()) if folder else []
    except (OSError, ValueError):  # what cannot be read, or is no name of a model, is refused where it is loaded
        return None
    if not any(path.suffix in WEIGHTS for path in paths):
        return None
    known = _Kept(cache / "digests.json")
    found = {path.name: known.sha256(path) for path in paths}
    known.write()
    return found


def weights_of(files: Mapping[str, str]) -> dict[str, str]:
    """Of a model's files those that hold its weights."""
    safe = any(name.endswith(".safetensors") for name in files)  # then transformers reads no other weights

    def counts(name: str) -> bool:
        if name.endswith((".safetensors", ".safetensors.index.json")):
            return True
        return not safe and name.startswith(("pytorch_model", "model")) and name.endswith((".bin", ".bin.index.json"))

    return {name: digest for name, digest in files.items() if counts(name)}


def changed_files(then: Mapping[str, str], now: Mapping[str, str], *, chat: bool) -> list[str]:
    """Names of the files by which a model computes otherwise, or reads and writes other tokens, than it did.

    Args:
        then: the sha256 of its files by name, as noted; of a version that noted weights alone, nothing else is compared.
        now: the same as they are.
        chat: whether its chat template is used.
    """
    theirs, ours = (_read_files(files, chat=chat) for files in (then, now))
    if "config.json" not in theirs:
        ours = {name: ours[name] for name in ours.keys() & theirs.keys()}
    return sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))


def _read_files(files: Mapping[str, str], *, chat: bool) -> dict[str, str]:
    """Of a model's files those that are read when it is loaded."""
    kinds = [SETTINGS, *([] if "tokenizer.json" in files else [VOCABULARY]), *([CHAT] if chat else [])]
    beside = {name: digest for name, digest in files.items() if any(kind.fullmatch(name) for kind in kinds)}
    return {**beside, **weights_of(files)}


def files_digest(files: Mapping[str, str]) -> str:
    """One digest of all files."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


class _Kept:
    """Digests of large files from earlier readings.

    A digest counts for the very file that was read: its place, size, time of writing, and the time at which the system last
    saw it changed, which no program sets back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, str] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):  # then all are read once more
            found = json.loads(path.read_text(encoding="utf-8"))
            self.found = {key: digest for key, digest in found.items() if re.fullmatch("[0-9a-f]{64}", digest)}
        self.changed = False

    def sha256(self, path: Path) -> str:
        real = path.resolve()
        status = real.stat()
        if status.st_size < LARGE or time.time() - status.st_ctime < RECENT:
            return sha256(real)
        facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        key = f"{real} {' '.join(map(str, facts))}"
        if key not in self.found:
            self.found = {name: digest for name, digest in self.found.items() if not name.startswith(f"{real} ")}
            self.found[key] = sha256(real)
            self.changed = True
        return self.found[key]

    def write(self) -> None:
        """Keep what is new; where nothing can be kept, it is computed again next time."""
        if not self.changed:
            return
        with suppress(OSError):
            make_folder(self.path.parent)
            write_text(self.path, json.dumps(self.found, indent=1))
