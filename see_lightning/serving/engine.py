"""The engine of a server: one thread answers the requests of all clients together.

Requests wait in a queue. Between two steps of decoding, waiting requests are routed and their rows join the batch; rows leave
it as they end. Routing and decoding are ``Ensemble.answering``, which ``ask`` uses too.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from see_lightning.engine.asking import Reply, Request
from see_lightning.engine.ensemble import Ensemble
from see_lightning.errors import Refusal
from see_lightning.inference.decoder import BatchDecoder

GATHER = 0.003  # seconds that an idle engine waits for more requests after the first


class QueueFull(Refusal):
    """As many requests wait as may."""


class Closed(Refusal):
    """The engine takes no more requests."""


@dataclass(eq=False)
class Job:
    """A request in the engine.

    Args:
        request: what is asked.
        listener: gets the reply without text as soon as it is known who answers, then the answer so far, each time it has
            grown; called in the engine's thread. None for a client that waits for the whole answer.
    """

    request: Request
    listener: Callable[[Reply | str], None] | None = None
    future: "Future[Reply]" = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    #: Seconds from the submission to the first token of the answer; None before it.
    first_token: float | None = None
    _is_routed: bool = False
    _text: str = ""

    def cancel(self) -> None:
        """End the request; its row leaves the batch with the next token."""
        self.future.cancel()

    def routed(self, reply: Reply) -> None:
        """Note that it is known who answers."""
        self._is_routed = True
        if self.listener and not self.future.cancelled():
            self.listener(reply)
            self._show()

    def watch(self, text: str) -> bool:
        """Note the answer so far; True if the request was cancelled."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.submitted
        self._text = self.request.certain(text)
        self._show()
        return self.future.cancelled()

    def finish(self, reply: Reply) -> None:
        """Deliver the reply."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.submitted
        if not self._is_routed:
            self.routed(reply)
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(reply)

    def fail(self, error: BaseException) -> None:
        """Deliver an error in place of the reply."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _show(self) -> None:
        if self.listener and self._is_routed and self._text and not self.future.cancelled():
            self.listener(self._text)


class Lane:
    """Rows that are decoded together, and the groups of requests to which they belong.

    Args:
        ensemble: answers them.
        alone: whether it holds a single request.
    """

    def __init__(self, ensemble: Ensemble, *, alone: bool) -> None:
        self.ensemble, self.alone = ensemble, alone
        self.decoder: BatchDecoder[Any] = ensemble.method.new_decoder()
        self.groups: list[tuple[list[Job], Iterator[dict[int, Reply]]]] = []

    def jobs(self) -> list[Job]:
        """The requests that have no reply yet."""
        return [job for jobs, _ in self.groups for job in jobs if not job.future.done()]

    def begin(self, jobs: list[Job]) -> None:
        """Route requests and let their rows join the batch; a request that cannot be answered fails alone."""
        prompts, able = [], []
        for job in jobs:
            try:
                prompts.append(self.ensemble.prompt_ids(job.request))
                able.append(job)
            except Refusal as error:
                job.fail(error)
        if able:
            requests = [job.request for job in able]
            answering = self.ensemble.answering(
                requests,
                prompts,
                self.decoder,
                [job.watch for job in able],
                lambda place, reply: able[place].routed(reply),
            )
            try:
                ended = next(answering)  # routes and prefills
            except Exception as error:  # rows of other requests are in the batch, and go on
                for job in able:
                    job.fail(error)
                return
            self.groups.append((able, answering))
            self._give(able, ended)

    def step(self) -> None:
        """Generate a token for every row, and give the replies that are complete."""
        if self.decoder.rows:
            self.decoder.step()
        self._collect()

    def _collect(self) -> None:
        for group in list(self.groups):
            jobs, answering = group
            replies = next(answering, None)
            if replies is None:
                self.groups.remove(group)
            self._give(jobs, replies or {})

    def _give(self, jobs: list[Job], replies: dict[int, Reply]) -> None:
        for place, reply in replies.items():
            jobs[place].finish(reply)

    def fail(self, error: BaseException) -> None:
        """Give an error to all requests, and drop them."""
        for job in self.jobs():
            job.fail(error)
        self.groups.clear()
        self.decoder = self.ensemble.method.new_decoder()


class Engine:
    """Answers requests, in one thread of its own.

    Args:
        ensemble: answers them; ``replace`` takes another one.
        max_rows: most requests that are answered at a time.
        max_waiting: most requests that wait.
    """

    def __init__(self, ensemble: Ensemble, *, max_rows: int, max_waiting: int) -> None:
        self.ensemble, self.max_rows, self.max_waiting = ensemble, max_rows, max_waiting
        self._waiting: deque[Job] = deque()
        self._lanes: list[Lane] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, listener: Callable[[Reply | str], None] | None = None) -> Job:
        """Queue a request; its ``future`` gets the reply, or the ``Refusal`` of a request that cannot be answered.

        Args:
            request: what is asked.
            listener: see ``Job``.

        Raises:
            QueueFull: too many requests wait.
            Closed: the engine takes no more requests.
        """
        job = Job(request, listener)
        with self._changed:
            if self._is_closing:
                raise Closed("the server is shutting down; ask again in a moment.")
            if len(self._waiting) >= self.max_waiting:  # those whose clients have left do not count
                self._waiting = deque(one for one in self._waiting if not one.future.cancelled())
            if len(self._waiting) >= self.max_waiting:
                raise QueueFull(f"{self.max_waiting} requests wait already; ask again in a moment.")
            self._waiting.append(job)
            self._changed.notify()
        return job

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(len(lane.jobs()) for lane in list(self._lanes))

    def replace(self, ensemble: Ensemble) -> None:
        """Answer further requests by another ensemble; those that are being answered end with the one they began with."""
        with self._changed:
            self.ensemble = ensemble

    def close(self) -> None:
        """Answer all requests that were accepted, then end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    # ------------------------------------------------------------------------------------------ in the engine's thread

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._changed:
                    while not self._waiting and not self._lanes:
                        if self._is_closing:
                            return
                        self._changed.wait()
                    if not self._lanes and not self._is_closing:
                        self._changed.wait(GATHER)
                    jobs, ensemble = self._take(), self.ensemble
                for lane, some in self._placed(jobs, ensemble):
                    _guarded(lane, partial(lane.begin, some))
                for lane in list(self._lanes):
                    _guarded(lane, lane.step)
                self._lanes = [lane for lane in self._lanes if lane.groups]

    def _take(self) -> list[Job]:
        jobs: list[Job] = []
        while self._waiting and self.running + len(jobs) < self.max_rows:
            job = self._waiting.popleft()
            if not job.future.cancelled():
                jobs.append(job)
        return jobs

    def _placed(self, jobs: Sequence[Job], ensemble: Ensemble) -> list[tuple[Lane, list[Job]]]:
        """Lanes for new requests.

        A piece of text that a client has got cannot be taken back. So where the last digits of logits depend on the other
        rows of a batch, as in bf16, an answer that is sent piece by piece is decoded alone.
        """
        is_exact = ensemble.method.pool.is_exact()
        together = [job for job in jobs if is_exact or job.listener is None]
        placed: list[tuple[Lane, list[Job]]] = []
        if together:
            shared = next((lane for lane in self._lanes if lane.ensemble is ensemble and not lane.alone), None)
            placed.append((shared or Lane(ensemble, alone=False), together))
        placed += [(Lane(ensemble, alone=True), [job]) for job in jobs if job not in together]
        self._lanes += [lane for lane, _ in placed if lane not in self._lanes]
        return placed


def _guarded(lane: Lane, act: Callable[[], None]) -> None:
    """Call a function; an error in it ends the requests of its lane, and not the server."""
    try:
        act()
    except Exception as error:  # whatever a model raises, the other requests go on
        lane.fail(error)
