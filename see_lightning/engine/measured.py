"""Measurements of a finished run, kept in files beside its results together with the ledger's digest."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from see_lightning.engine.finished import Unheld, finished_results
from see_lightning.engine.ledger import Ledger, dump
from see_lightning.errors import room_needed
from see_lightning.files.run_files import LedgerError, read_file, seal
from see_lightning.files.writing import check_out, write_text

#: Files in a run's directory.
PERPLEXITY, TRANSFER, ROUTE = "perplexity.json", "transfer.json", "route.json"

Content = dict[str, Any]
Measure = Callable[[Mapping[str, Any], Ledger], Content]


class Measurement:
    """A measurement of a finished run, kept in a file that says to which state of the run it belongs.

    Args:
        path: of the file, in the run's directory.
        command: as it was typed; recorded in the file.
        asked: settings of the measurement, recorded in the file.
        out: file that is written instead; then nothing in the run directory is written or locked.

    Raises:
        Refusal: the run is not finished.
    """

    def __init__(
        self, path: Path, command: str, asked: Mapping[str, Any] | None = None, out: Path | None = None
    ) -> None:
        self.run_dir, self.name, self.path, self.out = path.parent, path.stem, out or path, out
        self.command, self.asked = command, asked or {}
        #: Content of the run's ``results.json``.
        self.results = finished_results(self.run_dir, f"{self.name} is measured after the last task")

    def read(self) -> Content | None:
        """The content of the file, if it is of the run's present state and has the settings; it needs no lock."""
        head = {"belongs_to": Ledger(self.run_dir).read().digest(), **self.asked}
        if not self.path.exists():
            return None
        try:
            found = read_file(self.path, f"{self.name}.json")
        except LedgerError as error:
            print(f"note: measured again: {error}", file=sys.stderr)
            return None
        return found if all(key in found and found[key] == value for key, value in head.items()) else None

    @contextmanager
    def held(self) -> Iterator[Ledger]:
        """A context in which to measure, with the ledger of the run: locked, or ``Unheld`` with ``out``.

        Raises:
            Refusal: the run directory or ``out`` cannot be written.
        """
        if self.out:
            check_out(self.out)
        with (
            room_needed(self.path.parent, "--out FILE"),
            Unheld(self.run_dir) if self.out else Ledger(self.run_dir) as ledger,
        ):
            yield ledger

    def write(self, ledger: Ledger, measured: Mapping[str, Any]) -> Content:
        """Write the file and return its content: what was measured, after the run and the command that it comes from."""
        # Late, because it imports torch, which takes longer than a refusal should.
        from see_lightning.engine.record import commit

        origin = {name: self.results[name] for name in ("method", "ratio", "order", "seed")}
        about = {"command": self.command, "commit": commit(), **origin, "belongs_to": ledger.digest(), **self.asked}
        content = {**about, **measured}
        ledger.check_held()
        write_text(self.path, dump(seal(content)))
        return content


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
    one = Measurement(path, command, asked, out)
    found = one.read()
    if found is None:
        with one.held() as ledger:
            found = one.read() or one.write(ledger, measure(one.results, ledger))
    return found


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
