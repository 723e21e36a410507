"""The process in which W&B's client runs, as the run's own process starts it, asks it and ends it."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from see_lightning.engine import wandb_client


class Lost(Exception):
    """W&B's client does not answer, or answers that it failed."""


class Client:
    """Runs ``wandb_client`` and puts requests to it. ``kill``, called from any thread, ends a wait for an answer."""

    def __init__(self) -> None:
        # Not a module of this package, for -m would look for it in the working folder first.
        command = [sys.executable, "-P", wandb_client.__file__]
        program = {"WANDB_PROGRAM": sys.argv[0]} if sys.argv[0] else {}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=program | os.environ,
            start_new_session=True,  # so that Ctrl-C does not reach it
        )

    def ask(self, do: str, until: Callable[[], float], **content: Any) -> dict[str, Any]:
        """What a method of the client returns.

        Args:
            do: its name.
            until: the time, by the monotonic clock, at which waiting ends.
            content: its arguments.

        Raises:
            Lost: there is no answer.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **content}) + "\n")
            self._process.stdin.flush()
            while not select.select([self._process.stdout], [], [], 0.1)[0]:
                if time.monotonic() > until():
                    raise Lost("no answer in time")
            reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise Lost("its client has ended") from error
        if "failed" in reply:
            raise Lost(reply["failed"])
        return reply

    def kill(self) -> None:
        """End it; W&B's own process ends with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
