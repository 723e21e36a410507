"""The file of a stage's training examples, ``examples.jsonl``."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from see_lightning.data.example import Example
from see_lightning.files.writing import write_text


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write the examples of a stage's training as JSON lines."""
    lines = [{"id": e.id, "task": e.task, **_context(e), "prompt": e.prompt, "target": e.target} for e in examples]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _context(example: Example) -> dict[str, Any]:
    """The fields of an example's system prompt and earlier turns; empty if it has neither."""
    system = {} if example.system is None else {"system": example.system}
    return {**system, "turns": [asdict(turn) for turn in example.turns]} if example.turns else system
