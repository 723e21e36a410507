"""A server in a thread of the tests' process, and the official client before it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn
from openai import OpenAI

from see_lightning.engine.ensemble import Ensemble, load_ensemble
from see_lightning.serving.app import make_app
from see_lightning.serving.engine import Engine
from see_lightning.serving.served_run import ServedRun

MOST = 9  # tokens of an answer


class Served(NamedTuple):
    """A server that listens."""

    run: ServedRun
    engine: Engine
    server: uvicorn.Server
    url: str
    client: OpenAI
    raw: httpx.Client


@contextmanager
def served(
    path: Path,
    *,
    max_rows: int = 16,
    max_waiting: int = 256,
    api_key: str | None = None,
    name: str | None = "toy",
    load: Callable[[Path], Ensemble] | None = None,
    **given: Any,
) -> Iterator[Served]:
    """Serve a run until the end of the context."""
    run = ServedRun(path, load or (lambda directory: load_ensemble(directory, max_new_tokens=MOST, **given)), name)
    engine = Engine(run.ensemble, max_rows=max_rows, max_waiting=max_waiting)
    config = uvicorn.Config(make_app(run, engine, api_key=api_key), port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        thread.join(0.02)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    key = api_key or "none"
    with (
        OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client,
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) as raw,
    ):
        yield Served(run, engine, server, url, client, raw)
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()
