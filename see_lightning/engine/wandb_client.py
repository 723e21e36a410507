"""W&B's client in a process of its own, so that whatever befalls it befalls no run: the script that ``wandb_process`` starts.

It imports nothing of this package. Each line of standard input is a request, ``{"do": NAME, ...}`` in JSON; each is answered
by a line: what the method of that name returns, or ``{"failed": REASON}``. It ends with its input, at once and without a
word to the server, as a run that was killed does.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

PARENT = os.getppid()


class Client:
    """What may be asked. ``check`` and ``open`` come first."""

    def check(self, mode: str) -> dict[str, Any]:
        """Whether there are credentials, as far as that is known without the server.

        Args:
            mode: of W&B.

        Returns:
            ``refused``, if there are none or they have no valid form.
        """
        import wandb

        try:
            from wandb.sdk import wandb_setup
            from wandb.sdk.lib.wbauth import authenticate_session
        except ImportError:
            mode = "unknown"  # of a version that keeps them elsewhere, where a missing key is the server's to tell
        if mode != "online":
            return {}
        host = wandb_setup.singleton().settings.base_url
        try:
            found = authenticate_session(host=host, source="logger=wandb", prompt=False, update_session=False)
        except wandb.Error as error:
            return {"refused": first_line(error)}
        return {} if found else {"refused": f"there is no API key for {host}"}

    def open(self, argv: list[str], settings: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Begin a run of W&B's, or go on with it.

        Args:
            argv: of the process whose run it is.
            settings: of W&B's client.
            more: of ``wandb.init``.

        Returns:
            its id, and the folder that keeps all of it.
        """
        sys.argv = argv
        import wandb

        own = wandb.Settings(
            x_stats_pid=PARENT,  # whose memory is shown
            x_transaction_log_flush_interval=0.5,  # seconds; what is not on the disk is lost when this process is killed
            console="off",  # of this process, where there is nothing to see
            stop_fn=lambda: os.kill(PARENT, signal.SIGTERM),  # the button on the run's page
            **settings,
        )
        self.run = wandb.init(settings=own, **more)
        return {"id": self.run.id, "folder": str(self.run.settings.sync_dir)}

    def metric(self, name: str, step: str) -> None:
        """Draw a metric over another one."""
        self.run.define_metric(name, step_metric=step)

    def log(self, row: dict[str, Any]) -> None:
        """One row of the history."""
        self.run.log(row)

    def results(
        self, numbers: dict[str, Any], pictures: dict[str, str], cells: dict[str, float], files: dict[str, str]
    ) -> None:
        """What there is at the end.

        Args:
            numbers: of the history's last row.
            pictures: pages by their names in that row.
            cells: of the summary.
            files: contents by name, of the artifact.
        """
        import wandb

        drawn = {name: wandb.Html(page, inject=False, data_is_not_path=True) for name, page in pictures.items()}
        self.run.log(numbers | drawn)
        self.run.summary.update(cells)
        artifact = wandb.Artifact(f"report-{self.run.id}", type="report")
        for name, text in files.items():
            # Beside W&B's own files, where it lies until an offline run is sent, and is not taken for the run's.
            kept = Path(self.run.dir) / f"report-{name}"
            kept.write_text(text, encoding="utf-8")
            artifact.add_file(str(kept), name=name, policy="immutable")
        artifact.finalize()
        # As log_artifact does, which first asks the server in online mode, and waits for it.
        self.run._interface.publish_artifact(
            self.run, artifact, ["latest"], None, finalize=True, is_user_created=False, use_after_commit=False
        )

    def preempting(self) -> None:
        """The run is about to stop, and goes on later."""
        self.run.mark_preempting()

    def close(self, code: int) -> dict[str, Any]:
        """End the run; returns when all was sent, or when W&B has given up on that.

        Args:
            code: the exit code.

        Returns:
            ``unsent``, why the server did not take everything.
        """
        log = Path(self.run.settings.log_internal)
        self.run.finish(exit_code=code)
        # The client tells of it on the terminal alone, and returns as if all were well.
        fatal = [line for line in log.read_text(encoding="utf-8").splitlines() if "fatal error" in line]
        return {"unsent": json.loads(fatal[0])["msg"]} if fatal else {}


def first_line(error: BaseException) -> str:
    """An error in one line."""
    kind, told = type(error).__name__, next(iter(str(error).strip().splitlines()), "")
    return f"{kind}: {told}" if told and told != kind else kind


def end_with(parent: int) -> None:
    """End when the run's process has, whatever W&B is waiting for."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Answer requests as long as there are any."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a scheduler sends them to every process; the run has the last word
    threading.Thread(target=end_with, args=(PARENT,), daemon=True).start()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what W&B prints is for the terminal
    client = Client()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(client, request.pop("do"))(**request)
        except Exception as error:
            reply = {"failed": first_line(error)}
        print(json.dumps(reply or {}), file=replies, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
