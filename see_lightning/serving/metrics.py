"""What a server counts, in the form of Prometheus."""

from functools import partial
from time import monotonic
from typing import Any, ClassVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from see_lightning.serving.engine import Engine, Job

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server.

    Args:
        engine: whose queue is measured.
    """

    TYPE: ClassVar[str] = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()

        to: dict[str, Any] = {"registry": self.registry, "namespace": "see"}
        Gauge("requests_waiting", "Requests that wait.", **to).set_function(lambda: engine.waiting)
        Gauge("requests_running", "Requests that are being answered.", **to).set_function(lambda: engine.running)
        self.requests = Counter("requests", "Requests by model name and outcome.", ("model", "outcome"), **to)
        self.answers = Counter("answers", "Answers by the expert that gave them.", ("expert",), **to)
        self.verdicts = Counter("verdicts", "Verdicts of experts on queries.", ("expert", "verdict"), **to)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of answered prompts.", **to)
        first = "Time from a request to the first token of its answer."
        self.first_token = Histogram("first_token_seconds", first, buckets=SECONDS, **to)
        whole = "Time from a request to the end of its answer."
        self.request_seconds = Histogram("request_seconds", whole, buckets=SECONDS, **to)

    def following(self, jobs: list[Job], model: str) -> list[Job]:
        """The same jobs, which are counted when they end."""
        for job in jobs:
            job.future.add_done_callback(partial(self._ended, job, model))
        return jobs

    def _ended(self, job: Job, model: str, _: object) -> None:
        if job.future.cancelled():
            self.requests.labels(model, "cancelled").inc()
            return
        if job.future.exception():
            self.requests.labels(model, "error").inc()
            return
        reply = job.future.result()
        self.requests.labels(model, "answered").inc()
        self.answers.labels(reply.expert or "").inc()
        for expert, verdict in reply.verdicts.items():
            self.verdicts.labels(expert, str(verdict)).inc()
        self.prompt_tokens.inc(reply.prompt_tokens)
        self.request_seconds.observe(monotonic() - job.submitted)
        if job.first_token is not None:
            self.first_token.observe(job.first_token)

    def text(self) -> bytes:
        """All counters, in the text form of Prometheus."""
        return generate_latest(self.registry)
