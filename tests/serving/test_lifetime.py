"""A server over its lifetime: it takes up a grown run, bears a load, and answers what it has accepted before it ends."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from openai import APIConnectionError, InternalServerError, OpenAI

from see_lightning.engine.asking import Request
from see_lightning.engine.ensemble import load_ensemble
from tests.nightly import all_but
from tests.runs import toy
from tests.serving.server import MOST, served
from tests.serving.test_errors import Gate, error, until

QUERIES = ["skysky101?", "seasea111?", "nothing of the kind", "ice ice 7?", "iceice112?", "sea and sky?"]


@pytest.fixture
def growing(base, tmp_path):
    """A run of two tasks, and what makes a run of three of it."""
    data = toy.data_in(base)
    toy.run(toy.compose(data, tmp_path, "order.tasks=[sky,sea]"))
    return tmp_path / "jsonl" / "see" / "latest", lambda: toy.run(toy.compose(data, tmp_path))


@pytest.mark.parametrize("by", ["request", "signal"])
def test_a_grown_run_is_taken_up_and_what_was_begun_ends_as_it_began(growing, by, monkeypatch):
    path, grow = growing
    before = load_ensemble(path, max_new_tokens=MOST)
    gate = Gate(monkeypatch)
    with served(path) as one:
        assert one.run.names.experts == ["sky", "sea", "base"]
        found = []
        thread = threading.Thread(
            target=lambda: found.append(one.client.completions.create(model="toy", prompt="nothing of the kind"))
        )
        thread.start()
        assert gate.reached.wait(30)
        gate.open.set()  # the run that grows decodes too, so the gate is open from here on
        grow()
        if by == "request":
            assert one.raw.post("/v1/reload").json()["experts"] == ["sky", "sea", "ice", "base"]
        else:
            from see_lightning.cli.serve import _reload

            _reload(one.run, one.engine)
        thread.join(30)
        after = load_ensemble(path, max_new_tokens=MOST)
        (wanted,) = before.reply([Request("nothing of the kind")])
        assert found[0].choices[0].text == wanted.text
        assert "toy:ice" in [model.id for model in one.client.models.list().data]
        answers = [one.client.completions.create(model="toy", prompt=query) for query in QUERIES]
        replies = after.reply([Request(query) for query in QUERIES])
        assert [(a.choices[0].text, a.see["expert"]) for a in answers] == [(r.text, r.expert) for r in replies]
        assert "ice" in [reply.expert for reply in replies]


def test_a_run_that_cannot_be_loaded_leaves_the_one_that_is_served(growing):
    path, grow = growing
    with served(path) as one:
        before = one.client.completions.create(model="toy", prompt="skysky101?")
        grown = grow().directory
        expert = grown / "tasks" / "03-ice" / "expert" / "adapter_model.safetensors"
        expert.write_bytes(expert.read_bytes()[:-1] + b"!")
        assert "is damaged" in error(one.raw.post("/v1/reload"), 400)["message"]
        assert one.run.names.experts == ["sky", "sea", "base"]
        after = one.client.completions.create(model="toy", prompt="skysky101?")
        assert (after.choices, after.see) == (before.choices, before.see)


def rss(pid: int) -> int:
    """Resident memory of a process, bytes."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


@pytest.fixture
def command(growing):
    """A server as a command in a process of its own, and its client."""
    path, grow = growing
    words = ["serve", str(path), "--port", "0", "--name", "toy", f"--max-new-tokens={MOST}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "see_lightning", *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    line = process.stdout.readline()
    url = re.fullmatch(r"toy is served at (http://127\.0\.0\.1:\d+/v1)\n", line)
    assert url, line
    with OpenAI(base_url=url[1], api_key="none", max_retries=0, timeout=120) as client:
        yield process, client, path, grow
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", all_but([320], [320, 2000]))
def test_under_load_no_answer_is_lost_or_mixed_up_and_memory_does_not_grow(command, number):
    process, client, path, grow = command
    before = load_ensemble(path, max_new_tokens=MOST)
    requests = [
        Request(QUERIES[place % 6], temperature=(place % 5) / 4, seed=place, max_new_tokens=1 + place % MOST)
        for place in range(number + 12)
    ]
    measured = []

    def ask(place):
        if place == number // 2:  # in the middle of the load, a task is added
            grow()
            httpx.post(f"{client.base_url!s}reload", timeout=120).raise_for_status()
            measured.append(rss(process.pid))
        one = requests[place]
        how = {"temperature": one.temperature, "seed": one.seed, "max_tokens": one.max_new_tokens}
        if place % 4:
            found = client.completions.create(model="toy", prompt=one.query, **how)
            return found.choices[0].text, found.see["expert"]
        stream = list(client.completions.create(model="toy", prompt=one.query, stream=True, **how))
        return "".join(chunk.choices[0].text for chunk in stream), stream[0].see["expert"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(number)))
        found += pool.map(ask, range(number, number + 12))  # all of them after the task was added
    after = load_ensemble(path, max_new_tokens=MOST)
    told = [[(one.text, one.expert) for one in ensemble.reply(requests)] for ensemble in (before, after)]
    for place, answer in enumerate(found):
        # Those that ran while the task was added may have been answered by either ensemble.
        assert answer in {told[0][place], told[1][place]}, place
    assert found[: number // 2 - 8] == told[0][: number // 2 - 8]
    assert found[number:] == told[1][number:]
    assert any(expert == "ice" for _, expert in found)
    assert rss(process.pid) < 1.2 * measured[0] + 5e7


def test_sigterm_answers_all_that_was_accepted_and_then_ends(command):
    process, client, path, _ = command
    wanted = load_ensemble(path, max_new_tokens=MOST).reply([Request(query) for query in QUERIES])
    outcomes = []

    def ask(place):
        while True:
            try:
                found = client.completions.create(model="toy", prompt=QUERIES[place % 6])
            except APIConnectionError as refused:
                outcomes.append(refused.__cause__)
                return
            except InternalServerError as refused:
                outcomes.append(refused.status_code == 503)
                return
            outcomes.append(found.choices[0].text == wanted[place % 6].text)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(outcomes) >= 16)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert process.wait(60) in (0, -signal.SIGTERM)
    answers = [one for one in outcomes if isinstance(one, bool)]
    assert answers
    assert all(answers)
    # A connection that is refused, or closed before a request was sent on it, has lost nothing that was accepted.
    lost = [one for one in outcomes if isinstance(one, httpx.ReadError | httpx.ReadTimeout)]
    assert not lost


def test_the_command_reloads_on_sighup(command):
    process, client, _, grow = command
    grow()
    process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 60
    while "toy:ice" not in [one.id for one in client.models.list().data]:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_without_the_extra_the_command_says_what_to_install(growing, monkeypatch, capsys):
    from see_lightning.cli.serve import main

    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(SystemExit):
        main([str(growing[0])])
    assert 'pip install "see-lightning[serve]"' in capsys.readouterr().err
