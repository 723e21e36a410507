"""Makes golden files: ``python -m tests.golden.make [NAME...]``, all of them without names."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# What restricts the libraries to older instructions, whose sums end in other last digits.
KINDS: tuple[dict[str, str], ...] = (
    {},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
)
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def main(names: list[str]) -> None:
    """Measure the runs on every kind of arithmetic that this processor has, and write what is common and what is not."""
    with tempfile.TemporaryDirectory() as place:
        kinds: dict[str, dict[str, Any]] = {}
        for number, kind in enumerate(KINDS):
            path = Path(place, str(number))
            subprocess.run(
                [sys.executable, "-m", "tests.golden.make", "--into", str(path), *names],
                env={**os.environ, **QUIET, **kind},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            measured = json.loads(path.read_text())
            kinds[measured["processor"]] = measured["runs"]
    for name in next(iter(kinds.values())):
        write(name, {processor: runs[name] for processor, runs in kinds.items()})


def write(name: str, kinds: dict[str, dict[str, Any]]) -> None:
    """Write one golden file.

    Args:
        name: of the run.
        kinds: processor -> what was measured on it.
    """
    from tests.golden.runs import path_of

    first, *others = kinds.values()
    same = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    apart = {processor: {k: v for k, v in run.items() if k not in same} for processor, run in sorted(kinds.items())}
    kept = ",\n".join(f"{json.dumps(processor)}: {_lines(run)}" for processor, run in apart.items())
    text = f'{{"everywhere": {_lines(same)},\n"by_processor": {{\n{kept}}}}}\n'
    path_of(name).write_text(text, encoding="utf-8")
    print(path_of(name))


def _lines(values: dict[str, Any]) -> str:
    """As JSON, a line for each value."""
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()) + "}"


def measure_here(into: Path, names: list[str]) -> None:
    """Measure runs by the arithmetic that this process was started with, for another process."""
    from tests.golden.runs import CASES, measure, processor

    runs = {}
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as place:
            runs[name] = measure(name, Path(place))
    into.write_text(json.dumps({"processor": processor(), "runs": runs}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--into"]:
        measure_here(Path(sys.argv[2]), sys.argv[3:])
    else:
        main(sys.argv[1:])
