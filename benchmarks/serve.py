"""Requests a second and time to the first token of a served ensemble, beside the base model alone and ``transformers serve``.

    SEE_DATA=DIR python benchmarks/serve.py

All contenders are asked over HTTP by the same client: an ensemble of 1 and one of 8 activated experts, the base model by its
name through the same server, and the base model behind ``transformers serve``, continuous batching on, with the same
precision and number of threads. Prompts have the same number of tokens and none is asked twice; every answer has the same
number of tokens, since no end of sequence ends it. Of the ensemble the expert that is asked last accepts.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, instead of this folder

import httpx
import torch
import uvicorn

from benchmarks import common, timing
from benchmarks.common import Setup
from benchmarks.route import SETTINGS, Ours, Taught, prompt_of, teach
from benchmarks.timing import Clock
from see_lightning.engine.build import cache_folder
from see_lightning.engine.ensemble import Ensemble
from see_lightning.models.base import load_model
from see_lightning.routing.verdicts import Verdict
from see_lightning.serving.app import make_app
from see_lightning.serving.engine import Engine
from see_lightning.serving.served_run import ServedRun

EXPERTS = (1, 8)
TRANSFORMERS = "transformers serve"


class Prompts:
    """Different prompts of one length.

    Args:
        setup: with the tasks whose test queries they are made of.
        tokens: of a prompt.
    """

    def __init__(self, setup: Setup, tokens: int) -> None:
        rows = [example.prompt for task in setup.tasks for example in (*task.train, *task.test)]
        self.setup, self.tokens, self._texts, self._number = setup, tokens, cycle(rows), count()

    def take(self, number: int) -> list[str]:
        """New prompts."""
        return [
            prompt_of(self.setup.template, f"{next(self._number)} {text} ", self.tokens)
            for text in islice(self._texts, number)
        ]


class Asking:
    """A contender: a server's address, and the name of a model.

    Args:
        url: of the server.
        model: its name there.
        prompts: what is asked.
        requests: of a sample.
        at_once: requests at a time.
        tokens: of an answer.
        more: further fields of a request.
    """

    def __init__(
        self, url: str, model: str, prompts: Prompts, *, requests: int, at_once: int, tokens: int, more: dict[str, Any]
    ) -> None:
        self.url, self.model, self.prompts = url, model, prompts
        self.requests, self.at_once, self.tokens, self.more = requests, at_once, tokens, more
        #: Why answers ended, and who gave them. Usage does not count tokens without text, such as a repeated end of sequence.
        self.ended_by, self.answered_by = set[str](), set[str]()

    def _body(self, prompt: str, tokens: int) -> dict[str, Any]:
        message = {"role": "user", "content": prompt}
        return {"model": self.model, "messages": [message], "max_tokens": tokens, "temperature": 0, **self.more}

    def throughput(self, clock: Clock) -> None:
        """One sample: all requests, some at a time."""
        waiting = self.prompts.take(self.requests)

        async def work(client: httpx.AsyncClient) -> None:
            while waiting:
                body = self._body(waiting.pop(), self.tokens)
                response = await client.post("/v1/chat/completions", json=body)
                response.raise_for_status()
                found = response.json()
                self.ended_by.add(found["choices"][0]["finish_reason"])
                self.answered_by.add(str(found.get("see", {}).get("expert")))

        async def ask() -> None:
            async with httpx.AsyncClient(base_url=self.url, timeout=600) as client:
                with clock:
                    await asyncio.gather(*(work(client) for _ in range(self.at_once)))

        asyncio.run(ask())

    def first_token(self, clock: Clock) -> None:
        """One sample: the time to the first piece of each of a few answers, one request at a time."""
        with httpx.Client(base_url=self.url, timeout=600) as client:
            for prompt in self.prompts.take(max(1, self.requests // 8)):
                body = {**self._body(prompt, self.tokens), "stream": True}
                # Not two tokens: a first one may have no visible text.
                with clock, client.stream("POST", "/v1/chat/completions", json=body) as response:
                    next(line for line in response.iter_lines() if _has_text(line))


def _has_text(line: str) -> bool:
    """Whether an event of a stream has a piece of the answer."""
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
    return bool(choices[0].get("delta", {}).get("content"))


@contextmanager
def serve(ensemble: Ensemble, at_once: int) -> Iterator[str]:
    """The address of a server of this package, in a thread of this process."""
    run = ServedRun(Path("benchmark/see/0/seed=0"), lambda _: ensemble, name="run")
    engine = Engine(ensemble, max_rows=at_once, max_waiting=1024)
    server = uvicorn.Server(uvicorn.Config(make_app(run, engine), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@contextmanager
def transformers_serve(folder: Path, dtype: str, threads: int) -> Iterator[str]:
    """The address of ``transformers serve`` with a model's folder, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "serve",
        str(folder),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--device",
        "cpu",
        "--continuous-batching",
    ]
    words += ["--dtype", {"bf16": "bfloat16", "fp32": "float32"}[dtype]]
    command = [str(Path(sys.executable).with_name("transformers")), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                httpx.get(f"{url}/health").raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None:
                    raise RuntimeError("transformers serve ended; try it alone to see why") from None
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def make_ensemble(setup: Setup, taught: Taught, experts: int) -> Ensemble:
    """An ensemble whose last asked expert accepts every query; no answer ends before its limit."""
    ours = Ours(setup, taught, experts, [])
    ours.method.pool.names = ours.names(experts - 1)[::-1]
    ours.method.eos_ids = lambda: set()  # type: ignore[method-assign]
    return Ensemble(ours.method, max_new_tokens=1, batch_size=16)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = common.options(__doc__)
    parser.add_argument("--prompt-tokens", type=common.positive, default=300, help="tokens of a prompt")
    parser.add_argument("--answer-tokens", type=common.positive, default=32, help="tokens of an answer")
    parser.add_argument("--requests", type=common.positive, default=32, help="of a sample")
    parser.add_argument("--at-once", type=common.positive, default=8, help="requests at a time")
    parser.add_argument("--alone", action="store_true", help="without transformers serve")
    args = common.parse(parser, arguments)
    setup = common.prepare([*SETTINGS, *args.overrides, "adapter=activated_lora"])
    print(setup.conditions())
    prompts = Prompts(setup, args.prompt_tokens)
    sizes = {"requests": args.requests, "at_once": args.at_once, "tokens": args.answer_tokens}
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        folder = Path(name)
        taught = Taught(*(teach(setup, verdict, folder) for verdict in (Verdict.POS, Verdict.NEG)))
        asking: dict[str, Asking] = {}
        for experts in EXPERTS:
            url = servers.enter_context(serve(make_ensemble(setup, taught, experts), args.at_once))
            asking[f"{experts} experts"] = Asking(url, "run", prompts, **sizes, more={})
        asking["base"] = Asking(url, "run:base", prompts, **sizes, more={})
        if not args.alone:
            model = load_model(setup.config.model, cache_folder(setup.config), setup.dtype)
            model.generation_config.eos_token_id = None  # no end of sequence ends an answer here either
            model.save_pretrained(folder / "base")
            setup.template.tokenizer.save_pretrained(folder / "base")
            del model
            url = servers.enter_context(transformers_serve(folder / "base", setup.dtype, torch.get_num_threads()))
            asking[TRANSFORMERS] = Asking(url, str(folder / "base"), prompts, **sizes, more={})
        report(asking, args)


def report(asking: dict[str, Asking], args: Any) -> None:
    """Take samples in turn, and print times and ratios."""
    for one in asking.values():
        one.throughput(Clock(common.sync))  # warm
    runs = {}
    for kind in ("throughput", "first_token"):
        contenders = {name: getattr(one, kind) for name, one in asking.items()}
        runs[kind] = timing.alternate(contenders, repeats=args.repeats, sync=common.sync, tell=common.tell)
    title = f"Prompts of {args.prompt_tokens} tokens, answers of {args.answer_tokens}, {args.at_once} at once"
    timing.print_times(title, runs["throughput"], unit="requests", amount=args.requests)
    timing.print_times(
        "First token, one request at a time",
        runs["first_token"],
        unit="requests",
        amount=max(1, args.requests // 8),
        per_second=False,
    )
    pairs = {f"n{experts}_over_base": ("base", f"{experts} experts") for experts in EXPERTS}
    if TRANSFORMERS in asking:
        pairs |= {f"n{experts}_over_transformers": (TRANSFORMERS, f"{experts} experts") for experts in EXPERTS}
        pairs["base_over_transformers"] = (TRANSFORMERS, "base")
    # Requests a second, and speed to the first token, as multiples of the other's.
    ratios = {
        f"{kind}_{key}": timing.compare(rounds, other, ours, force=args.force)
        for kind, rounds in runs.items()
        for key, (other, ours) in pairs.items()
    }
    answered = {name: sorted(one.answered_by) for name, one in asking.items()}
    ended = {name: sorted(one.ended_by) for name, one in asking.items()}
    print(f"answered by {answered}; ended by {ended}")
    timing.print_ratios(ratios)
    print(timing.result_line({"answered_by": answered, "ended_by": ended}, ratios, forced=args.force))


if __name__ == "__main__":
    common.main(main)
