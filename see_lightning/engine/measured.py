"""Measurements of a finished run, kept in files beside its results together with the ledger's digest."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from see_lightning.engine.finished import Unheld, finished_results
from see_lightning.engine.ledger import Ledger, dump
from see_lightning.errors import room_needed
from see_lightning.files.run_files import LedgerError, read_file, seal
from see_lightning.files.writing import check_out, write_text

#: Files in a run's directory.
PERPLEXITY, TRANSFER = "perplexity.json", "transfer.json"

Content = dict[str, Any]
Measure = Callable[[Mapping[str, Any], Ledger], Content]


def measured_once(
    path: Path, command: str, measure: Measure, asked: Mapping[str, Any] | None = None, out: Path | None = None
) -> Content:
    """Read a measurement of a run; measure if there is none, or if the run or the settings have changed since.

    Args:
        path: of the file, in the run's directory.
        command: as it was typed; recorded in the file.
        measure: function of the run's results and its ledger that returns the measurement.
        asked: settings of the measurement, recorded in the file.
        out: file that is written instead; then nothing in the run directory is written or locked.

    Returns:
        The content of the file.

    Raises:
        Refusal: the run is not finished, its directory or ``out`` cannot be written, or ``measure`` refuses.
    """
    run_dir, name, path = path.parent, path.stem, out or path
    results = finished_results(run_dir, f"{name} is measured after the last task")
    found = _kept(path, name, Ledger(run_dir).read(), asked or {})
    if found is not None:  # reading needs no lock
        return found
    if out:
        check_out(out)
    with room_needed(path.parent, "--out FILE"), Unheld(run_dir) if out else Ledger(run_dir) as ledger:
        found = _kept(path, name, ledger, asked or {})
        if found is not None:
            return found
        head = {"belongs_to": ledger.digest(), **(asked or {})}
        # Late, because it imports torch, which takes longer than a refusal should.
        from see_lightning.engine.record import commit

        origin = {name: results[name] for name in ("method", "ratio", "order", "seed")}
        about = {"command": command, "commit": commit(), **origin, **head}
        content = {**about, **measure(results, ledger)}
        ledger.check_held()
        write_text(path, dump(seal(content)))
    return content


def _kept(path: Path, name: str, ledger: Ledger, asked: Mapping[str, Any]) -> Content | None:
    """The measurement in a file, if it is of the run's present state and has these settings."""
    head = {"belongs_to": ledger.digest(), **asked}
    if not path.exists():
        return None
    try:
        found = read_file(path, f"{name}.json")
    except LedgerError as error:
        print(f"note: measured again: {error}", file=sys.stderr)
        return None
    return found if all(key in found and found[key] == value for key, value in head.items()) else None


def is_current(path: Path, belongs_to: str) -> bool:
    """Whether a measurement is of the run's present state; results without a ledger count as unchanged.

    Args:
        path: of the file.
        belongs_to: the ledger's digest in the file.
    """
    without_ledger = not path.with_name("ledger.json").exists()
    return without_ledger or belongs_to == Ledger(path.parent).read().digest()


def stale(path: Path) -> str:
    """The message about a measurement that is not current."""
    return (
        f"{path} was measured before the run became what it is; give see-lightning {path.stem} {path.parent}"
        f" again, or delete it."
    )
