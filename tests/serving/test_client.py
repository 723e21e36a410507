"""The official client before the server: answers, streams, models, and who answered."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import NotFoundError

from see_lightning.engine.asking import Request
from see_lightning.engine.ensemble import load_ensemble
from tests.serving.server import MOST

QUERIES = ["skysky101?", "seasea111?", "nothing of the kind", "ice ice 7?", "x", "sea and sky?"]


@pytest.fixture(scope="module")
def asked(directory):
    """The library's replies to requests."""
    ensemble = load_ensemble(directory, max_new_tokens=MOST)
    return lambda *requests: [ensemble.reply([one])[0] for one in requests]


def messages(query, system=None):
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": query}]


def see(reply):
    return {"expert": reply.expert, "verdicts": reply.said()}


def test_chat_and_completions_are_the_answers_of_the_library_byte_for_byte(server, asked):
    for query in QUERIES:
        (wanted,) = asked(Request(query))
        chat = server.client.chat.completions.create(model="toy", messages=messages(query))
        plain = server.client.completions.create(model="toy", prompt=query)
        assert chat.choices[0].message.content == plain.choices[0].text == wanted.text
        assert chat.choices[0].finish_reason == plain.choices[0].finish_reason
        assert chat.choices[0].finish_reason == ("length" if wanted.truncated else "stop")
        assert chat.see == plain.see == chat.choices[0].see == see(wanted)
        assert chat.usage.prompt_tokens == wanted.prompt_tokens
        assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
        assert (chat.object, plain.object, chat.model) == ("chat.completion", "text_completion", "toy")


def test_several_prompts_are_several_choices_in_their_order(server, asked):
    found = server.client.completions.create(model="toy", prompt=QUERIES)
    assert [choice.text for choice in found.choices] == [one.text for one in asked(*map(Request, QUERIES))]
    assert [choice.index for choice in found.choices] == list(range(len(QUERIES)))


def test_sixteen_at_once_get_what_each_gets_alone(server, asked):
    requests = [
        Request(query, temperature=1.3 if place % 3 else 0.0, top_p=0.9, seed=place, max_new_tokens=2 + place % 8)
        for place, query in enumerate((QUERIES * 3)[:16])
    ]

    def ask(request):
        return server.client.chat.completions.create(
            model="toy",
            messages=messages(request.query),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            max_tokens=request.max_new_tokens,
        )

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, requests))
    for one, wanted in zip(found, asked(*requests), strict=True):
        assert (one.choices[0].message.content, one.see) == (wanted.text, see(wanted))


def test_the_pieces_of_a_stream_are_the_answer_and_the_first_says_who_gives_it(server, asked):
    for query in QUERIES:
        (wanted,) = asked(Request(query))
        chunks = list(
            server.client.chat.completions.create(
                model="toy", messages=messages(query), stream=True, stream_options={"include_usage": True}
            )
        )
        first, *parts, last, usage = chunks
        assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
        assert first.see["expert"] == wanted.expert
        assert first.see == see(wanted)
        assert "".join(part.choices[0].delta.content for part in parts) == wanted.text
        assert last.choices[0].finish_reason == ("length" if wanted.truncated else "stop")
        assert (usage.choices, usage.usage.prompt_tokens) == ([], wanted.prompt_tokens)
        plain = list(server.client.completions.create(model="toy", prompt=query, stream=True))
        assert "".join(one.choices[0].text for one in plain) == wanted.text
        assert plain[-1].choices[0].finish_reason is not None


def test_streams_at_once_are_not_mixed_up(server, asked):
    def ask(place):
        stream = server.client.completions.create(
            model="toy", prompt=QUERIES[place % 6], temperature=1.0, seed=place, stream=True
        )
        return "".join(one.choices[0].text for one in stream)

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(12)))
    assert found == [
        one.text for one in asked(*(Request(QUERIES[place % 6], temperature=1.0, seed=place) for place in range(12)))
    ]


def test_a_stop_text_ends_an_answer_and_no_piece_of_it_is_sent(server, asked):
    (whole,) = asked(Request(QUERIES[2]))
    stop = whole.text[2:5]
    wanted = whole.text[: whole.text.index(stop)]
    plain = server.client.completions.create(model="toy", prompt=QUERIES[2], stop=[stop, "never"])
    assert (plain.choices[0].text, plain.choices[0].finish_reason) == (wanted, "stop")
    stream = list(server.client.completions.create(model="toy", prompt=QUERIES[2], stop=stop, stream=True))
    assert "".join(one.choices[0].text for one in stream) == wanted
    assert stream[-1].choices[0].finish_reason == "stop"


def test_models_are_the_run_its_experts_and_the_base_model(server, directory):
    experts = load_ensemble(directory).experts()
    models = server.client.models.list().data
    assert [one.id for one in models] == ["toy", *(f"toy:{expert}" for expert in experts)]
    assert experts[-1] == "base"
    assert {one.parent for one in models[1:-1]} <= {"toy:base"}
    assert server.client.models.retrieve("toy:base").id == "toy:base"
    with pytest.raises(NotFoundError, match="there is no model 'toi'. Did you mean 'toy'?"):
        server.client.models.retrieve("toi")


def test_a_model_name_with_an_expert_is_answered_by_it(server, asked, directory):
    for expert in load_ensemble(directory).experts():
        (wanted,) = asked(Request(QUERIES[0], expert=expert))
        found = server.client.chat.completions.create(model=f"toy:{expert}", messages=messages(QUERIES[0]))
        assert (found.choices[0].message.content, found.see) == (wanted.text, {"expert": expert, "verdicts": []})


def test_a_route_has_the_verdicts_without_an_answer(server, asked):
    for query in QUERIES:
        wanted = see(asked(Request(query))[0])
        for body in ({"messages": messages(query)}, {"prompt": query, "model": "toy"}):
            assert server.raw.post("/v1/route", json=body).json()["data"] == [wanted]
    several = server.raw.post("/v1/route", json={"prompt": QUERIES}).json()["data"]
    assert several == [see(one) for one in asked(*map(Request, QUERIES))]


def test_the_header_names_the_expert(server, asked):
    (wanted,) = asked(Request(QUERIES[0]))
    for more in ({}, {"stream": True}):
        response = server.raw.post("/v1/completions", json={"model": "toy", "prompt": QUERIES[0], **more})
        assert response.headers["x-see-expert"] == (wanted.expert or "")


def test_fields_that_ask_for_nothing_are_taken(server, asked):
    found = server.client.chat.completions.create(
        model="toy",
        messages=[{"role": "user", "content": [{"type": "text", "text": QUERIES[0]}]}],
        n=1,
        logprobs=False,
        presence_penalty=0,
        frequency_penalty=0,
        response_format={"type": "text"},
        tools=[],
        user="me",
        metadata={"a": "b"},
        store=False,
        stop=None,
        temperature=None,
    )
    assert found.choices[0].message.content == asked(Request(QUERIES[0]))[0].text


def test_health_and_metrics(server):
    assert server.raw.get("/health").json()["status"] == "ok"
    before = server.raw.get("/metrics").text
    server.client.completions.create(model="toy", prompt=QUERIES)
    after = server.raw.get("/metrics").text

    def count(text):
        lines = [
            line for line in text.splitlines() if line.startswith('see_requests_total{model="toy",outcome="answered"}')
        ]
        return float(lines[0].split()[-1]) if lines else 0.0

    assert count(after) == count(before) + len(QUERIES)
    assert "see_first_token_seconds_bucket" in after
    assert "see_requests_waiting 0.0" in after
