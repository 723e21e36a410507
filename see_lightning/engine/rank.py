"""One of several processes of a run, started by the first command: ``python -m see_lightning.engine.rank CONFIG COMMAND``."""

import ctypes
import os
import signal
import sys
from pathlib import Path

from see_lightning.config.search_path import register
from see_lightning.config.validation import load_composed
from see_lightning.frame import frame

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run from a composed configuration; killed together with the parent process."""
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
    config, command = sys.argv[1:]
    register()
    from see_lightning.engine.launch import launch

    with frame(code=1, prefix="error: "):
        launch(load_composed(Path(config)), command)


if __name__ == "__main__":
    main()
