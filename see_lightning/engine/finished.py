"""Reads a finished run: its results, and its ledger without a lock on its directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from see_lightning.engine.ledger import Ledger
from see_lightning.errors import Refusal
from see_lightning.reporting.runs import read_results


def finished_results(run_dir: Path, why: str) -> dict[str, Any]:
    """The content of a finished run's ``results.json``.

    Args:
        run_dir: of the run.
        why: reason why the run must be finished, for the refusal.

    Raises:
        Refusal: there is no run, or it is not finished.
    """
    if not (run_dir / "ledger.json").exists():
        raise Refusal(f"{run_dir} holds no run; give the folder that has ledger.json in it.")
    path = run_dir / "results.json"
    if not path.exists():
        command = Ledger(run_dir).read().content["about"].get("command")
        raise Refusal(f"{run_dir} is not finished, and {why}; go on with: {command}")
    return read_results(path)


class Unheld(Ledger):
    """The ledger of a finished run, read-only: nothing is written or locked; new records are kept in memory.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, writes=False)
        self._noted: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.read()

    def note_answers(
        self, stage: str, task: str, blocks: Mapping[str, Sequence[Mapping[str, Any]]], facts: Mapping[str, Any]
    ) -> None:
        """Keep records in memory."""
        for kind, records in blocks.items():
            self._noted.setdefault((stage, kind), []).extend(map(dict, records))

    def _records(self, stage: str, kind: str, digests: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        return super()._records(stage, kind, digests) + self._noted.get((stage, kind), [])
