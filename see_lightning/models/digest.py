"""The content of a base model's files, so that a run can tell whether its model is still the one it was begun with."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from see_lightning.config import ModelConfig
from see_lightning.models.smollm2 import SHA256
from see_lightning.writing import write_text

#: Endings of the files of which a model and its tokenizer are made.
READ = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
WEIGHTS = (".safetensors", ".bin")
LARGE = 1 << 24  # bytes; a smaller file is read each time


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_folder(config: ModelConfig) -> Path | None:
    """Where the files of a model lie that is not packaged; None if they are not on this machine."""
    folder = Path(config.name)
    if folder.is_dir():
        return folder
    kept = try_to_load_from_cache(config.name, "config.json", revision=config.revision) if "/" in config.name else None
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
        return {"model.safetensors": SHA256} if config.source == "package" else None
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
    """Of a model's files those that say how it computes; the others make its prompts, which are compared by themselves."""
    safe = any(name.endswith(".safetensors") for name in files)  # then transformers reads no other weights

    def counts(name: str) -> bool:
        if name.endswith(".bin"):
            return not safe and name.rpartition("/")[2].startswith(("pytorch_model", "model"))
        return name.endswith((*WEIGHTS, ".py")) or name == "config.json"

    return {name: digest for name, digest in files.items() if counts(name)}


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
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            self.found = found if isinstance(found, dict) else {}
        self.changed = False

    def sha256(self, path: Path) -> str:
        real = path.resolve()
        status = real.stat()
        if status.st_size < LARGE:
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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self.found, indent=1))
