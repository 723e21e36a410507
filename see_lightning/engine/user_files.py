"""The user's own files and imported experts that a run's settings name."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from see_lightning.config.origins import NONE
from see_lightning.data.general import BUILT_IN
from see_lightning.files.reading import sha256

#: Settings of a method that may name a user's file, and their words that name none.
SOURCES = {"general_source": (BUILT_IN,), "rewordings": (BUILT_IN, "model")}
#: Files of an adapter's folder that an import reads.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "quantized.safetensors", "expert.json")


def source_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """The user's files and imported experts in a run's settings, or their digests, by dotted setting.

    >>> source_files({"method": {"general_source": "mine.jsonl", "rewordings": "built_in"}, "order": {"tasks": ["qa"]}})
    {'method.general_source': 'mine.jsonl'}
    """
    method, order = settings["method"], settings["order"]
    files = {
        f"method.{name}": str(method[name])
        for name, words in SOURCES.items()
        if method.get(name) is not None and str(method[name]).split(" ")[0] not in words
    }
    experts = (order.get("experts") or {}).items()
    return files | {f"order.experts.{task}": one for task, one in experts if isinstance(one, str) and one != NONE}


def source_digest(source: Path) -> str:
    """sha256 of a file, or over the files of an adapter's folder.

    Raises:
        OSError: it cannot be read.
    """
    if not source.is_dir():
        return sha256(source)
    sha256(source / ADAPTER_FILES[0])
    digests = [(path.name, sha256(path)) for path in sorted(source.iterdir()) if path.name in ADAPTER_FILES]
    return hashlib.sha256(repr(digests).encode()).hexdigest()
