"""Serve a finished run to clients of the OpenAI API: ``see-lightning serve RUN_DIR``."""

import argparse
import os
import signal
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from see_lightning.cli.ask import add_machine
from see_lightning.cli.command import Parser, at_least, command
from see_lightning.errors import ConfigError, Refusal

KEY = "SEE_API_KEY"
LOCAL = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, an address, and limits."""
    parser.add_run_dir()
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=at_least(0), default=8000, help="port (default 8000; 0: any that is free)")
    parser.add_argument("--name", help="name of the model for clients (default <order>-<method>)")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"that clients must send (default: of the variable {KEY}, or none)"
    )
    rows = "most requests that are answered at a time (default: the run's data.eval_batch_size)"
    parser.add_argument("--max-rows", type=at_least(1), help=rows)
    waiting = "most requests that wait; further ones get the status 429 (default 256)"
    parser.add_argument("--max-waiting", type=at_least(1), default=256, help=waiting)
    most = "longest answer of a request that sets no max_tokens (default 128)"
    parser.add_argument("--max-new-tokens", type=at_least(1), default=128, help=most)
    add_machine(parser)


@command("serve", "Serve a run to clients of the OpenAI API, which routes their queries.", add_arguments)
def main(given: argparse.Namespace) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those that were accepted are answered before the end."""
    for package in ("fastapi", "prometheus_client", "uvicorn"):
        if find_spec(package) is None:
            raise ConfigError(f'{package} is missing; type: pip install "see-lightning[serve]"')
    import uvicorn

    key = given.api_key or os.environ.get(KEY)
    if given.host not in LOCAL and not key:
        print(
            f"note: everybody who reaches {given.host} may ask; --api-key KEY, or {KEY}, asks for a key",
            file=sys.stderr,
        )
    run, engine, app = _build(given, key)
    config = uvicorn.Config(app, host=given.host, port=given.port, log_level="warning", access_log=False)
    server = _Server(config, run.names.run)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=_reload, args=(run, engine)).start())
    server.run()


def _build(given: argparse.Namespace, key: str | None) -> tuple[Any, Any, Any]:
    from see_lightning.engine.ensemble import Ensemble, load_ensemble
    from see_lightning.serving.app import make_app
    from see_lightning.serving.engine import Engine
    from see_lightning.serving.served_run import ServedRun

    def load(directory: Path) -> Ensemble:
        return load_ensemble(
            directory,
            max_new_tokens=given.max_new_tokens,
            device=given.device,
            dtype=given.dtype,
            trust=given.trust,
            trust_remote_code=given.trust_remote_code,
        )

    run = ServedRun(given.run_dir, load, given.name)
    engine = Engine(run.ensemble, max_rows=given.max_rows or run.ensemble.batch_size, max_waiting=given.max_waiting)
    return run, engine, make_app(run, engine, api_key=key)


def _reload(run: Any, engine: Any) -> None:
    try:
        run.reload(engine)
    except Refusal as error:
        print(f"not reloaded: {error}", file=sys.stderr)
    else:
        print(f"reloaded {run.directory}: {', '.join(run.names.experts)}", file=sys.stderr)


def _Server(config: Any, name: str) -> Any:
    """A server that prints its address once it listens."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            for one in self.servers:
                for socket in one.sockets:
                    host, port = socket.getsockname()[:2]
                    print(f"{name} is served at http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)

    return Server(config)
