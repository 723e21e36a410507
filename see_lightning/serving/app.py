"""The web application of a server: the OpenAI API, routes without answers, health, metrics and reloading."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from time import time
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from see_lightning.engine.asking import Reply
from see_lightning.engine.asking import Request as Query
from see_lightning.errors import Refusal
from see_lightning.serving.engine import Closed, Engine, Job, QueueFull
from see_lightning.serving.metrics import Metrics
from see_lightning.serving.openai_form import (
    BadRequest,
    Form,
    check_fields,
    error_body,
    includes_usage,
    read_messages,
    read_prompts,
    read_request,
    see_field,
)
from see_lightning.serving.served_run import ServedRun

GONE = 499  # status of a request whose client has left; nobody gets it
LOOK = 0.2  # seconds between two looks whether a client that waits for a whole answer is still there
OPEN = ("/health", "/metrics")  # paths that need no key


class ClientGone(Exception):
    """A client has left before its answer was complete."""


def make_app(run: ServedRun, engine: Engine, *, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        run: the run that is served.
        engine: answers its queries; closed when the application ends.
        api_key: that clients must send; None: everybody may ask.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if api_key and request.url.path not in OPEN and not hmac.compare_digest(given, f"Bearer {api_key}".encode()):
            message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'."
            raise BadRequest(message, status=401, code="invalid_api_key")

    app = FastAPI(
        title="see_lightning",
        lifespan=lifespan,
        dependencies=[Depends(check_key)],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(ClientGone, lambda request, error: Response(status_code=GONE))
    app.add_exception_handler(404, _unknown_path)
    app.add_exception_handler(405, _unknown_path)
    app.add_exception_handler(Exception, _failed)
    api = Api(run, engine)
    for method, path, act in (
        ("GET", "/health", api.health),
        ("GET", "/metrics", api.show_metrics),
        ("GET", "/v1/models", api.models),
        ("GET", "/v1/models/{name:path}", api.model),
        ("POST", "/v1/chat/completions", api.chat),
        ("POST", "/v1/completions", api.completions),
        ("POST", "/v1/route", api.route),
        ("POST", "/v1/reload", api.reload),
    ):
        app.add_api_route(path, act, methods=[method], response_model=None)
    return app


class Api:
    """What the paths of the application do.

    Args:
        run: the run that is served.
        engine: answers its queries.
    """

    def __init__(self, run: ServedRun, engine: Engine) -> None:
        self.run, self.engine = run, engine
        self.metrics, self.created = Metrics(engine), int(time())

    async def health(self) -> dict[str, Any]:
        """That the server listens, and what it serves."""
        return {"status": "ok", "model": self.run.names.run, "experts": self.run.names.experts}

    async def show_metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(self.metrics.text(), media_type=self.metrics.TYPE)

    async def models(self) -> dict[str, Any]:
        """All models."""
        return {"object": "list", "data": self.run.names.records(self.created)}

    async def model(self, name: str) -> dict[str, Any]:
        """One model."""
        self.run.names.expert(name)
        return next(one for one in self.run.names.records(self.created) if one["id"] == name)

    async def chat(self, request: Request) -> Response:
        """Answers messages."""
        body = check_fields(await _json(request), "chat")
        query = read_request(body, read_messages(body), self.run.names)
        return await self._answer(request, Form("chat", body["model"], self.run.count_tokens), body, [query])

    async def completions(self, request: Request) -> Response:
        """Answers prompts."""
        body = check_fields(await _json(request), "completion")
        queries = [read_request(body, prompt, self.run.names) for prompt in read_prompts(body)]
        return await self._answer(request, Form("completion", body["model"], self.run.count_tokens), body, queries)

    async def route(self, request: Request) -> Response:
        """Who would answer, and the verdicts."""
        body = await _json(request)
        kind = "chat" if isinstance(body, dict) and "messages" in body else "completion"
        body = check_fields({"model": self.run.names.run, **body} if isinstance(body, dict) else body, kind)
        asked = [read_messages(body)] if kind == "chat" else read_prompts(body)
        queries = [replace(read_request(body, one, self.run.names), only_route=True) for one in asked]
        replies = await self._whole(request, queries, body["model"])
        return JSONResponse({"object": "list", "data": [see_field(reply) for reply in replies]})

    async def reload(self) -> dict[str, Any]:
        """Takes up the run that the server's path names now."""
        await asyncio.to_thread(self.run.reload, self.engine)
        return {"status": "ok", "run_dir": str(self.run.directory), "experts": self.run.names.experts}

    async def _whole(self, request: Request, queries: list[Query], model: str) -> list[Reply]:
        return await _wait(request, self.metrics.following(_submitted(self.engine, queries), model))

    async def _answer(self, request: Request, form: Form, body: dict[str, Any], queries: list[Query]) -> Response:
        with_usage = includes_usage(body)
        if not body.get("stream"):
            replies = await self._whole(request, queries, form.model)
            return JSONResponse(form.whole(replies), headers=_answered_by(replies))
        if len(queries) > 1:
            raise BadRequest("a stream has one prompt; send the others as requests of their own.", "prompt")
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Reply | str | None]()

        def listen(event: Reply | str) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        (job,) = self.metrics.following([self.engine.submit(queries[0], listen)], form.model)
        job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(events.put_nowait, None))
        first = await events.get()  # who answers, or the end of a request that cannot be answered
        if not isinstance(first, Reply):
            job.future.result()  # raises
        assert isinstance(first, Reply)
        stream = _stream(job, form, first, events, with_usage=with_usage)
        return StreamingResponse(stream, media_type="text/event-stream", headers=_answered_by([first]))


def _submitted(engine: Engine, queries: list[Query]) -> list[Job]:
    """The queries in the engine; all, or none if there is no room for all."""
    jobs: list[Job] = []
    try:
        jobs.extend(map(engine.submit, queries))  # those before a refused one are in the list
    except Refusal:
        for job in jobs:
            job.cancel()
        raise
    return jobs


async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except ValueError as error:
        raise BadRequest(f"the body is no JSON: {error}") from error


async def _wait(request: Request, jobs: list[Job]) -> list[Reply]:
    """The replies of requests; they are cancelled if the client leaves."""
    waiting = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
    try:
        while True:
            with suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(waiting), LOOK)
            if await request.is_disconnected():
                raise ClientGone
    except BaseException:
        waiting.cancel()
        for job in jobs:
            job.cancel()
        with suppress(BaseException):
            await waiting
        raise


async def _stream(
    job: Job, form: Form, first: Reply, events: "asyncio.Queue[Reply | str | None]", *, with_usage: bool
) -> AsyncIterator[str]:
    """The events of a stream; the request is cancelled if the client leaves."""
    try:
        sent = ""
        yield _event(form.begin(first))
        while (event := await events.get()) is not None:
            if isinstance(event, str) and len(event) > len(sent):
                yield _event(form.part(event[len(sent) :]))
                sent = event
        try:
            reply = job.future.result()
        except Exception as error:
            yield _event(error_body(f"the answer could not be finished: {error}", kind="server_error"))
            return
        if len(reply.text) > len(sent):
            yield _event(form.part(reply.text[len(sent) :]))
        yield _event(form.end(reply))
        if with_usage:
            yield _event(form.usage_chunk(reply))
        yield "data: [DONE]\n\n"
    finally:
        job.cancel()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _answered_by(replies: list[Reply]) -> dict[str, str]:
    """The header that names the experts; a name may have characters that a header has not."""
    names = ",".join(reply.expert or "" for reply in replies)
    return {"x-see-expert": names.encode("ascii", "backslashreplace").decode()}


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, BadRequest):
        return JSONResponse(error.body(), error.status)
    if isinstance(error, QueueFull):
        return JSONResponse(
            error_body(str(error), kind="rate_limit_error", code="queue_full"), 429, {"Retry-After": "1"}
        )
    if isinstance(error, Closed):
        return JSONResponse(
            error_body(str(error), kind="server_error", code="shutting_down"), 503, {"Retry-After": "5"}
        )
    return JSONResponse(error_body(str(error)), 400)


async def _unknown_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    message = f"there is no {request.method} {request.url.path}; see docs/serve.md for what there is."
    return JSONResponse(error_body(message), status)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(f"the server failed: {type(error).__name__}: {error}", kind="server_error"), 500)
