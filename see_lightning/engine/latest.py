"""Finds the run directory for a path: of a run, of a folder with a single run, or ``latest`` in a folder of runs."""

from pathlib import Path

from see_lightning.errors import Refusal
from see_lightning.reporting.runs import find_runs

LATEST = "latest"  # as in runs/pocket_5/see/latest; no folder of this name exists
SHOWN = 5  # most runs that a refusal lists


def find_run(path: str | Path) -> Path:
    """The run directory for a path.

    Args:
        path: a run directory; a folder with a single run, such as ``runs/<order>/<method>/<key>``; or a folder of runs
            followed by ``/latest``: the run with the newest results, or if none is finished, with the newest ledger.

    Returns:
        The directory. A path without a run is returned unchanged; the caller refuses it.

    Raises:
        Refusal: the folder holds several runs, or ``latest`` is asked for where there is none.
    """
    path = Path(path)
    if (path / "ledger.json").exists():
        return path
    wants_latest = path.name == LATEST and not path.exists() and path.parent.is_dir()
    if not wants_latest and not path.is_dir():
        return path
    folder = path.parent if wants_latest else path
    finished, unfinished = find_runs([folder])
    directories = [file.parent for file in finished if (file.parent / "ledger.json").exists()]
    if wants_latest:
        if directories:
            return max(directories, key=lambda run: (run / "results.json").stat().st_mtime_ns)
        if unfinished:
            return max(unfinished, key=lambda run: (run / "ledger.json").stat().st_mtime_ns)
        raise Refusal(f"{folder} holds no run, so there is no latest one.")
    directories += unfinished
    if len(directories) > 1:
        named = "".join(f"\n  {run}" for run in sorted(directories)[:SHOWN])
        raise Refusal(
            f"{path} holds {len(directories)} runs; give one of them, or {path / LATEST} for the one finished last:{named}"
            + ("\n  ..." if len(directories) > SHOWN else "")
        )
    return directories[0] if directories else path
