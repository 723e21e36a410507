"""W&B's client in a process of its own, so that its failures do not affect the run; a script that ``wandb_process`` starts.

It imports nothing of this package. Each line of standard input is a request, ``{"do": NAME, ...}`` in JSON; the answer is a
line with the return value of the method of that name, or ``{"failed": REASON}``. The process ends when its input ends, at
once and without a message to the server.
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
    """The requests. ``check`` and ``open`` come first."""

    def check(self, mode: str) -> dict[str, Any]:
        """Check for credentials, without the server.

        Args:
            mode: W&B's, see ``WandbTracker``.

        Returns:
            ``refused``: the reason, if there are no credentials or their form is invalid.
        """
        import wandb

        try:
            from wandb.sdk import wandb_setup
            from wandb.sdk.lib.wbauth import authenticate_session
        except ImportError:
            mode = "unknown"  # a version with other modules; the server refuses a missing key
        if mode != "online":
            return {}
        host = wandb_setup.singleton().settings.base_url
        try:
            found = authenticate_session(host=host, source="logger=wandb", prompt=False, update_session=False)
        except wandb.Error as error:
            return {"refused": first_line(error)}
        return {} if found else {"refused": f"there is no API key for {host}"}

    def open(self, argv: list[str], settings: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Begin or resume a W&B run.

        Args:
            argv: of the run's own process.
            settings: of W&B's client.
            more: of ``wandb.init``.

        Returns:
            ``id`` of the W&B run, and ``folder`` with its files.
        """
        sys.argv = argv
        import wandb

        own = wandb.Settings(
            x_stats_pid=PARENT,  # the process whose memory is shown
            x_transaction_log_flush_interval=0.5,  # seconds; records in memory are lost when this process is killed
            console="off",  # this process prints nothing of interest
            stop_fn=lambda: os.kill(PARENT, signal.SIGTERM),  # the button on the run's page
            **settings,
        )
        self.run = wandb.init(settings=own, **more)
        return {"id": self.run.id, "folder": str(self.run.settings.sync_dir)}

    def metric(self, name: str, step: str) -> None:
        """Set the metric that is the x-axis of another one."""
        self.run.define_metric(name, step_metric=step)

    def log(self, row: dict[str, Any]) -> None:
        """Add a row to the history."""
        self.run.log(row)

    def results(
        self, numbers: dict[str, Any], pictures: dict[str, str], cells: dict[str, float], files: dict[str, str]
    ) -> None:
        """Report the end of the run.

        Args:
            numbers: of the history's last row.
            pictures: HTML pages by their names in that row.
            cells: of the summary, by name.
            files: contents of the artifact's files, by name.
        """
        import wandb

        drawn = {name: wandb.Html(page, inject=False, data_is_not_path=True) for name, page in pictures.items()}
        self.run.log(numbers | drawn)
        self.run.summary.update(cells)
        artifact = wandb.Artifact(f"report-{self.run.id}", type="report")
        for name, text in files.items():
            # Beside W&B's own files, until an offline run is sent; not among the files of the W&B run.
            kept = Path(self.run.dir) / f"report-{name}"
            kept.write_text(text, encoding="utf-8")
            artifact.add_file(str(kept), name=name, policy="immutable")
        artifact.finalize()
        # As log_artifact does, without its request to the server in online mode, for which it waits.
        self.run._interface.publish_artifact(
            self.run, artifact, ["latest"], None, finalize=True, is_user_created=False, use_after_commit=False
        )

    def preempting(self) -> None:
        """Mark the run as preempted."""
        self.run.mark_preempting()

    def close(self, code: int) -> dict[str, Any]:
        """End the run; returns when everything was sent, or when W&B has given up.

        Args:
            code: the exit code.

        Returns:
            ``unsent``: the reason, if the server did not accept everything.
        """
        log = Path(self.run.settings.log_internal)
        self.run.finish(exit_code=code)
        # W&B reports the error on the terminal only, and returns normally.
        fatal = [line for line in log.read_text(encoding="utf-8").splitlines() if "fatal error" in line]
        return {"unsent": json.loads(fatal[0])["msg"]} if fatal else {}


def first_line(error: BaseException) -> str:
    """An error in one line."""
    kind, reason = type(error).__name__, next(iter(str(error).strip().splitlines()), "")
    return f"{kind}: {reason}" if reason and reason != kind else kind


def end_with(parent: int) -> None:
    """End this process when the run's process has ended, even while W&B waits."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Answer requests until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a scheduler sends them to every process; the run ends this one
    threading.Thread(target=end_with, args=(PARENT,), daemon=True).start()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of W&B goes to the terminal
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
