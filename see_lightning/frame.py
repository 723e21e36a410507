"""The context in which every command runs: a refusal is one line, and output that cannot be written never ends a run."""

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

#: Control sequences of tables and progress bars: carriage returns, cursor up, text styles and colours.
MOVED = re.compile(r"(?:\x1b\[A)+\Z|\r?")
STYLE = r"(?!\x1b\[(?:(?:[0-4]|2[1-4]|3[1-69]|9[1-6])(?:;(?!m)|(?=m)))*m)"
OBEYED = re.compile(rf"(?!\r\n){CONTROL.pattern}")
OBEYED_IN_TERMINAL = re.compile(rf"(?!\r\n){STYLE}{CONTROL.pattern}")


@contextmanager
def frame(code: int = 2, prefix: str = "") -> Iterator[None]:
    """A context in which a refusal ends the process with one line, and output that cannot be written is dropped.

    Args:
        code: exit code after a refusal.
        prefix: of the refusal's line.

    Raises:
        SystemExit: after a refusal or Ctrl-C.
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
        message = barred(error)
        if message is None:
            raise
        print(f"{prefix}{message}", file=sys.stderr)
        raise SystemExit(code) from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


#: Environment variables of torchrun, srun and other launchers; each is a whole number.
LAUNCHER = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"),
    *("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "JSM_NAMESPACE_RANK"),
)


def check_launcher(environment: MutableMapping[str, str]) -> None:
    """Remove a launcher's empty variables, which break libraries, and refuse values that are not numbers.

    Args:
        environment: of the process.

    Raises:
        ConfigError: a variable is not a whole number.
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
    """Print text for other programs: unchanged into a pipe or a file; in a terminal, control characters become escapes."""
    if isinstance(sys.stdout, Output) and not sys.stdout.isatty():
        sys.stdout.write_exactly(f"{text}\n")
    else:
        print(visible(text))


class Output:
    """A text stream for people: control characters, and characters that its encoding lacks, are written as escapes.

    Styles, colours and carriage returns of tables and progress bars stay. Output to a closed pipe, a full disk or a closed
    terminal is dropped.

    Args:
        stream: standard output or error; None if the process has none.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open as long as the process
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        """Equal to its stream: when Hydra closes absl's log handler, that closes every stream but the process's own."""
        return other is self or other is self._stream

    def __hash__(self) -> int:
        return hash(self._stream)

    def write(self, text: str) -> int:
        """Write text, with control characters as escapes."""
        start = MOVED.match(text).end()  # type: ignore[union-attr]  # it also matches an empty text
        styled = self.isatty() or "FORCE_COLOR" in os.environ
        self.write_exactly(text[:start] + visible(text[start:], OBEYED_IN_TERMINAL if styled else OBEYED))
        return len(text)

    def write_exactly(self, text: str) -> int:
        """Write text unchanged; after an error of the stream all output is dropped."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream; after an error all output is dropped."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Redirect the buffer and all further output to the null device, so that the run continues."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError) and self != sys.stderr:
            print(
                f"note: standard output cannot be written, so nothing more is printed: {error.strerror}",
                file=sys.stderr,
            )
