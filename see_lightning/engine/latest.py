"""Which run a user means: its folder, one that holds no other run, or the one that was finished last."""

from pathlib import Path

from see_lightning.errors import Refusal
from see_lightning.reporting.runs import find_runs

LATEST = "latest"  # runs/pocket_5/see/latest, which is no folder
SHOWN = 5  # runs that a refusal names


def find_run(path: str | Path) -> Path:
    """The directory of the run that a path means.

    Args:
        path: of a run's directory; of a folder that holds this run alone, such as ``runs/<order>/<method>/<key>``; or of a
            folder of runs with ``/latest`` behind it, for the one whose results are newest, or if none is finished, the one
            that went on last.

    Returns:
        The directory. A path that holds no run is returned as it is: what needs a run tells so.

    Raises:
        Refusal: several runs may be meant, or there is none.
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
