"""Starts the process of W&B's client, sends requests to it and ends it."""

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
    """W&B's client does not answer, or reports a failure."""


class Client:
    """A process that runs ``wandb_client``. ``kill``, called from any thread, ends a wait for an answer."""

    def __init__(self) -> None:
        # A path instead of -m, which would search the working folder first.
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
        """Send a request, and return the answer.

        Args:
            do: name of the client's method.
            until: function that returns the deadline, by the monotonic clock.
            content: the method's arguments.

        Raises:
            Lost: there is no answer, or it reports a failure.
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
        """Kill the process; W&B's service process ends with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
