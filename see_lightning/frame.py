"""The frame in which every command runs: what is refused is told in one line, and output never ends a run."""

import os
import re
import signal
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO

from see_lightning.config.explain import REFUSED, explain
from see_lightning.errors import ConfigError, barred
from see_lightning.files.text import CONTROL, visible

#: What a table or a progress bar writes itself: a return at its start or a line's end, lines up, weights and hues.
MOVED = re.compile(r"(?:\x1b\[A)+\Z|\r?")
STYLE = r"(?!\x1b\[(?:(?:[0-4]|2[1-4]|3[1-69]|9[1-6])(?:;(?!m)|(?=m)))*m)"
OBEYED = re.compile(rf"(?!\r\n){CONTROL.pattern}")
OBEYED_IN_TERMINAL = re.compile(rf"(?!\r\n){STYLE}{CONTROL.pattern}")


@contextmanager
def frame(code: int = 2, prefix: str = "") -> Iterator[None]:
    """Within this, a refusal ends the process with one line, and output that nobody can read or receive ends nothing.

    Args:
        code: exit code of what is refused.
        prefix: of the line.

    Raises:
        SystemExit: something was refused, or Ctrl-C was given.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Output, before)
    try:
        check_launcher(os.environ)
        yield
    except KeyboardInterrupt:
        print(f"{prefix}stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except REFUSED as error:
        print(f"{prefix}{explain(error)}", file=sys.stderr)
        raise SystemExit(code) from None
    except OSError as error:
        told = barred(error)
        if told is None:
            raise
        print(f"{prefix}{told}", file=sys.stderr)
        raise SystemExit(code) from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


#: What torchrun, srun and the like tell a process, each a whole number.
LAUNCHER = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"),
    *("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "JSM_NAMESPACE_RANK"),
)


def check_launcher(environment: MutableMapping[str, str]) -> None:
    """Take out a launcher's variables that are empty, at which libraries stumble, and refuse what is no number.

    Args:
        environment: of the process.

    Raises:
        ConfigError: a variable is no whole number.
    """
    for name in LAUNCHER:
        value = environment.get(name, "0").strip()
        if not value:
            del environment[name]
        elif not value.isdecimal():
            raise ConfigError(
                f"the environment variable {name} is {value!r}, where torchrun or srun would put a whole number; without"
                f" either of them: unset {name}"
            )


def print_exactly(text: str) -> None:
    """Print what a program may read on: as it is into a pipe or a file; for a terminal, control characters are escapes."""
    if isinstance(sys.stdout, Output) and not sys.stdout.isatty():
        sys.stdout.write_exactly(f"{text}\n")
    else:
        print(visible(text))


class Output:
    """A text stream for people: what its encoding lacks, and what a terminal would obey, is written as an escape.

    Weights, hues and returns of tables and progress bars stay. What is written to a closed pipe, a full disk or a terminal
    that is gone is dropped.

    Args:
        stream: standard output or error; None if the process was started without.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open as long as the process
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        """It equals its stream: absl's log handler, when Hydra closes it, closes a stream that is not the process's."""
        return other is self or other is self._stream

    def __hash__(self) -> int:
        return hash(self._stream)

    def write(self, text: str) -> int:
        """As the stream does, less what a terminal would obey."""
        start = MOVED.match(text).end()  # type: ignore[union-attr]  # it matches nothing, too
        styled = self.isatty() or "FORCE_COLOR" in os.environ
        self.write_exactly(text[:start] + visible(text[start:], OBEYED_IN_TERMINAL if styled else OBEYED))
        return len(text)

    def write_exactly(self, text: str) -> int:
        """As the stream does."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """As the stream does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Let what is still buffered, and all that follows, go nowhere; the run is not done for its listener's sake."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError) and self != sys.stderr:
            print(
                f"note: standard output cannot be written, so nothing more is printed: {error.strerror}",
                file=sys.stderr,
            )
