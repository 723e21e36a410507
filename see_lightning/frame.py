"""The frame in which every command runs: what is refused is told in one line, and output never ends a run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from see_lightning.refusals import REFUSED, explain


@contextmanager
def frame(code: int = 2, prefix: str = "") -> Iterator[None]:
    """Within this, a refusal ends the process with one line, and output that nobody can read or receive ends nothing.

    Args:
        code: exit code of what is refused.
        prefix: of the line.

    Raises:
        SystemExit: something was refused.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Output, before)
    try:
        yield
    except REFUSED as error:
        print(f"{prefix}{explain(error)}", file=sys.stderr)
        raise SystemExit(code) from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class Output:
    """A text stream that writes what its encoding lacks as an escape, and drops what is written to a closed pipe.

    Args:
        stream: standard output or error; None if the process was started without.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open as long as the process
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream does."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """As the stream does."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """Let what is still buffered, and all that follows, go nowhere; the run is not done for its listener's sake."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
