"""What a server refuses, each with the status and the form of the API; and what a failure leaves alone."""

import json
import threading
import time

import httpx
import pytest
from openai import APIStatusError, AuthenticationError, BadRequestError, NotFoundError, RateLimitError

from see_lightning.engine.asking import Request
from see_lightning.engine.ensemble import load_ensemble
from see_lightning.inference.decoder import BatchDecoder
from see_lightning.methods.deciding import DecidingExperts
from see_lightning.serving.engine import Closed, Engine, QueueFull
from tests.serving.server import served

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "sky?"}]}


def error(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return body


def test_an_unknown_model_is_404_and_never_the_base_model(see_server):
    with pytest.raises(NotFoundError) as refused:
        see_server.client.chat.completions.create(model="toy:skt", messages=CHAT["messages"])
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert "toy:sky" in refused.value.message


@pytest.mark.parametrize(
    ("more", "field", "told"),
    [
        ({"n": 2}, "n", "n=2 is not honoured; leave it out, or give 1"),
        ({"n": True}, "n", "is not honoured"),
        ({"tools": [{"type": "function"}]}, "tools", "is not honoured"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "is not honoured"),
        ({"logprobs": True}, "logprobs", "is not honoured"),
        ({"presence_penalty": 0.5}, "presence_penalty", "is not honoured"),
        ({"response_format": {"type": "json_object"}}, "response_format", "is not honoured"),
        ({"temprature": 1}, "temprature", "Did you mean 'temperature'?"),
        ({"temperature": 3}, "temperature", "between 0 and 2; got 3"),
        ({"temperature": "hot"}, "temperature", "is a number"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 1.5}, "max_tokens", "a whole number"),
        ({"seed": "x"}, "seed", "a whole number"),
        ({"stop": [""]}, "stop", "not empty"),
        ({"stop": 3}, "stop", "a text or a list"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "for stream=true"),
        ({"messages": []}, "messages", "must be a list of messages"),
        ({"messages": [{"role": "user"}]}, "messages", "message 1 has no 'content'"),
        ({"messages": [{"content": "x"}]}, "messages", "message 1 has no 'role'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "the role assistant as the first turn"),
        ({"messages": "x"}, "messages", "at least one"),
        ({"temperature": 10**400}, "temperature", "between 0 and 2; got 1000"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "must be a string, found a list",
        ),
        ({"model": None}, "model", "model is missing"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_400_with_its_name(see_server, more, field, told):
    body = error(see_server.raw.post("/v1/chat/completions", json={**CHAT, **more}), 400)
    assert body["param"] == field
    assert told in body["message"]
    assert body["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", [None, [], 3, [1, 2], [["x"]]])
def test_a_prompt_that_is_no_text_is_400(see_server, prompt):
    body = error(see_server.raw.post("/v1/completions", json={"model": "toy", "prompt": prompt}), 400)
    assert body["param"] == "prompt"


@pytest.mark.parametrize("stream", [False, True])
def test_a_query_that_is_too_long_is_400_with_the_numbers(see_server, stream):
    with pytest.raises(BadRequestError, match=r"a query has \d+ tokens, so model.max_length=\d+ leaves 0"):
        see_server.client.completions.create(model="toy", prompt="long " * 3000, stream=stream)


@pytest.mark.parametrize("content", [b"{", b"[1]", b'"x"', b"\xff", b'{"a": NaN}'])
def test_a_body_that_is_no_object_is_400(see_server, content):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/route"):
        error(see_server.raw.post(path, content=content), 400)


def test_an_unknown_path_or_method_has_the_form_of_an_error(see_server):
    error(see_server.raw.get("/v1/nothing"), 404)
    error(see_server.raw.get("/v1/chat/completions"), 405)


def test_a_wrong_key_is_401_and_health_needs_none(see):
    with served(see, api_key="right") as one:
        assert one.client.models.list().data
        for headers in ({"authorization": "Bearer wrong"}, {"authorization": "right"}, {}):
            error(httpx.get(f"{one.url}/v1/models", headers=headers), 401)
        error(httpx.post(f"{one.url}/v1/reload"), 401)
        with pytest.raises(AuthenticationError):
            one.client.with_options(api_key="wrong").chat.completions.create(**CHAT)
        assert httpx.get(f"{one.url}/health").status_code == 200


class Gate:
    """Holds the engine's thread between two steps until it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.reached = threading.Event(), threading.Event()
        step = BatchDecoder.step

        def held(decoder):
            self.reached.set()
            assert self.open.wait(30)
            step(decoder)

        monkeypatch.setattr(BatchDecoder, "step", held)


def test_a_full_queue_is_429_with_the_time_to_wait(see, monkeypatch):
    gate = Gate(monkeypatch)
    with served(see, max_rows=1, max_waiting=2) as one:
        found = []

        def ask():
            found.append(one.client.completions.create(model="toy", prompt="nothing of the kind"))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        threads[0].start()
        assert gate.reached.wait(30)
        for thread in threads[1:]:
            thread.start()
        until(lambda: one.engine.waiting == 2)
        response = one.raw.post("/v1/completions", json={"model": "toy", "prompt": "x"})
        assert error(response, 429)["code"] == "queue_full"
        assert response.headers["retry-after"] == "1"
        with pytest.raises(RateLimitError):
            one.client.completions.create(model="toy", prompt=["x", "y"], stream=False)
        assert one.engine.waiting == 2, "of several prompts none stays, if there is no room for all"
        gate.open.set()
        for thread in threads:
            thread.join(30)
        assert len({one.choices[0].text for one in found}) == 1
        assert len(found) == 3


def test_a_request_whose_client_has_left_takes_no_place_in_the_queue(see, monkeypatch):
    gate = Gate(monkeypatch)
    with served(see, max_rows=1, max_waiting=2) as one:
        jobs = [one.engine.submit(Request("nothing of the kind"))]
        assert gate.reached.wait(30)
        jobs += [one.engine.submit(Request("x")), one.engine.submit(Request("y"))]
        with pytest.raises(QueueFull):
            one.engine.submit(Request("z"))
        jobs[1].cancel()
        jobs.append(one.engine.submit(Request("z")))
        gate.open.set()
        assert all(job.future.result(30) for job in (jobs[0], *jobs[2:]))


def test_a_closed_engine_has_answered_what_it_had_accepted_and_takes_no_more(see):
    engine = Engine(load_ensemble(see, max_new_tokens=9), max_rows=2, max_waiting=9)
    jobs = [engine.submit(Request(query)) for query in ("skysky101?", "x", "nothing of the kind", "seasea111?")]
    engine.close()
    assert all(job.future.done() and job.future.result() for job in jobs)
    with pytest.raises(Closed, match="shutting down"):
        engine.submit(Request("x"))


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(see, monkeypatch, stream):
    gate = Gate(monkeypatch)
    with served(see) as one:
        body = {"model": "toy", "prompt": "nothing of the kind", "stream": stream}
        with httpx.Client(base_url=one.url, timeout=30) as client:
            if stream:
                with client.stream("POST", "/v1/completions", json=body) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/completions", json=body, timeout=1)
        assert gate.reached.wait(30)
        (lane,) = one.engine._lanes
        ((jobs, _),) = lane.groups
        until(lambda: jobs[0].future.cancelled())
        decoded = len(lane.decoder.rows[0].ids)
        row = lane.decoder.rows[0]
        gate.open.set()
        until(lambda: one.engine.running == 0 and not one.engine._lanes)
        assert len(row.ids) <= decoded + 1 < row.limit, "the row was decoded to its end"
        assert one.client.completions.create(model="toy", prompt="x").choices[0].text is not None
        assert 'outcome="cancelled"} 1.0' in one.raw.get("/metrics").text


def test_an_error_of_the_model_is_500_and_the_server_goes_on(see, monkeypatch):
    with served(see) as one:
        with monkeypatch.context() as patch:
            patch.setattr(DecidingExperts, "answering", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
            with pytest.raises(APIStatusError, match="out of memory") as failed:
                one.client.chat.completions.create(**CHAT)
            assert failed.value.status_code == 500
        with monkeypatch.context() as patch:
            patch.setattr(BatchDecoder, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("no step")))
            response = one.raw.post("/v1/chat/completions", json={**CHAT, "stream": True})
            events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
            assert "no step" in json.loads(events[-1])["error"]["message"]
        assert one.client.chat.completions.create(**CHAT).choices[0].finish_reason
