"""``see-lightning ask``: sampling, stop texts, a named expert, a file of prompts, and a conversation."""

import io
import json
import re

import pytest

from see_lightning.cli.ask import main as ask
from see_lightning.engine.asking import Request
from see_lightning.engine.ensemble import Ensemble, load_ensemble
from see_lightning.errors import ConfigError
from see_lightning.routing.sequential_router import SequentialRouter
from tests.runs import toy

QUERIES = ["skysky101?", "seasea111?", "nothing of the kind", "ice ice 7?", "x", "sea and sky?"]
LONG = "--max-new-tokens=9"


@pytest.fixture(
    scope="module", params=[(), toy.ACTIVATED, ("method=seqft",), ("method=base",)], ids=lambda one: one or "see"
)
def loaded(base, request) -> Ensemble:
    return load_ensemble(toy.whole(base, *request.param).directory, max_new_tokens=9)


@pytest.fixture
def directory(base):
    return toy.whole(base).directory


# ---------------------------------------------------------------------------------------------- how it is answered


def test_a_seed_gives_the_same_answer_alone_and_in_company_and_others_another(loaded):
    sampled = {"temperature": 1.5, "top_p": 0.9}
    together = loaded.answer(QUERIES, seed=5, **sampled)
    assert together == [loaded.answer([query], seed=5, **sampled)[0] for query in QUERIES]
    assert together == loaded.answer(QUERIES[::-1], seed=5, **sampled)[::-1]
    others = [loaded.answer(QUERIES, seed=seed, **sampled) for seed in range(6, 16)]
    assert any(len({one[row].text for one in others}) > 1 for row in range(len(QUERIES)))
    # Experts decide by the most probable verdict, whatever the sampling.
    greedy = loaded.answer(QUERIES)
    for one in others:
        assert [reply.verdicts for reply in one] == [reply.verdicts for reply in greedy]
        assert [reply.expert for reply in one] == [reply.expert for reply in greedy]


@pytest.mark.parametrize(
    "settings",
    [
        (),
        toy.ACTIVATED,
        ("method=see", "router=propose"),
        ("method=seqft",),
        ("method=gainlora",),
        ("method=stl", "router=lda"),
    ],
    ids=" ".join,
)
def test_in_bf16_too_an_answer_does_not_depend_on_the_other_queries(base, settings):
    """There the last digits of logits do, so that a random model's long answers differ where nothing is done about it."""
    ensemble = load_ensemble(toy.whole(base, *settings).directory, max_new_tokens=24, dtype="bf16")
    queries = [f"{query}{'?' * more}" for more in range(4) for query in QUERIES]
    greedy, sampled = {}, {"temperature": 1.0, "seed": 3}
    for how in (greedy, sampled):
        together = ensemble.answer(queries, **how)
        alone = [ensemble.answer([query], **how)[0] for query in queries]
        assert [(one.text, one.expert, one.verdicts) for one in together] == [
            (one.text, one.expert, one.verdicts) for one in alone
        ]


@pytest.mark.parametrize("settings", [(), toy.ACTIVATED, ("method=seqft",), ("method=gainlora",)], ids=" ".join)
def test_a_close_answer_is_generated_alone_also_if_its_company_ended_at_once(base, settings, monkeypatch):
    """Its prompt was read with others, on which the last digits of its keys and values depend."""
    ensemble = load_ensemble(toy.whole(base, *settings).directory, max_new_tokens=9, dtype="bf16")
    names = "see_lightning.routing.sequential_router.MIN_MARGIN", "see_lightning.methods.generation.MIN_MARGIN"
    for name in names:
        monkeypatch.setattr(name, float("inf"))  # every answer is close
    sizes, answer = [], ensemble.method.answer
    monkeypatch.setattr(ensemble.method, "answer", lambda batch: sizes.append(len(batch)) or answer(batch))
    (alone,) = ensemble.answer([QUERIES[0]])
    before = ensemble.method.counts["prefills"]
    ensemble.reply([Request(QUERIES[0]), Request(QUERIES[0], max_new_tokens=1)])
    read = ensemble.method.counts["prefills"] - before
    assert set(sizes) <= {1}, "a method with a decoder of its own answers one query at a time"
    assert sizes or read >= 4, "two prompts, and each again"
    assert ensemble.reply([Request(QUERIES[0]), Request(QUERIES[0], max_new_tokens=1)])[0].text == alone.text


@pytest.mark.parametrize("settings", [(), toy.ACTIVATED], ids=" ".join)
def test_an_accepted_query_whose_neighbour_was_refused_was_in_company(base, settings, monkeypatch):
    ensemble = load_ensemble(toy.whole(base, *settings).directory, max_new_tokens=9, dtype="bf16")
    monkeypatch.setattr("see_lightning.routing.sequential_router.MIN_MARGIN", float("inf"))
    again, alone = [], SequentialRouter._alone
    monkeypatch.setattr(
        SequentialRouter, "_alone", lambda self, request: again.append(request[0]) or alone(self, request)
    )
    thresholds, names = ensemble.method.thresholds, ensemble.method.pool.names
    said = {one: reply for one, reply in zip(QUERIES, ensemble.answer(QUERIES), strict=True) if reply.expert in names}
    accepted = max(said, key=lambda one: said[one].log_odds[-1])
    expert, odds = said[accepted].expert, said[accepted].log_odds[-1]
    thresholds.update({**dict.fromkeys(names, 1e9), expert: odds})  # it accepts this query, and no expert another one
    refused = next(one for one, reply in zip(QUERIES, ensemble.answer(QUERIES), strict=True) if reply.expert == "base")
    again.clear()
    ensemble.reply([Request(accepted), Request(refused, max_new_tokens=1)])
    assert expert in again


def test_without_a_seed_two_answers_differ(loaded):
    texts = {tuple(one.text for one in loaded.answer(QUERIES, temperature=2.0)) for _ in range(4)}
    assert len(texts) > 1


def test_requests_of_one_batch_are_answered_each_in_its_own_way(loaded):
    requests = [
        Request(QUERIES[2]),
        Request(QUERIES[2], temperature=1.0, seed=3),
        Request(QUERIES[2], max_new_tokens=2),
        Request(QUERIES[0], temperature=1.0, seed=3),
    ]
    together = loaded.reply(requests)
    assert together == [loaded.reply([one])[0] for one in requests]
    assert together[2].truncated


def test_an_answer_ends_before_the_first_stop_text(loaded):
    (whole,) = loaded.answer(QUERIES[2:3])
    assert len(whole.text) > 4
    middle = whole.text[2:4]
    (cut,) = loaded.answer(QUERIES[2:3], stop=[middle, "never said"])
    assert cut.text == whole.text[: whole.text.index(middle)]
    assert not cut.truncated
    assert loaded.answer(QUERIES[2:3], stop=["never said"]) == [whole]


def test_what_is_shown_while_an_answer_is_generated_is_its_beginning(loaded):
    (whole,) = loaded.answer(QUERIES[2:3])
    request, shown = Request(QUERIES[2], stop=(whole.text[3:5],)), []
    (reply,) = loaded.reply([request], [lambda text: bool(shown.append(request.certain(text)))])
    assert len(shown) > 1
    assert all(reply.text.startswith(part) for part in shown)
    assert shown == sorted(shown, key=len)


def test_one_who_watches_may_end_an_answer(loaded):
    (whole,) = loaded.answer(QUERIES[2:3])
    (reply,) = loaded.reply([Request(QUERIES[2])], [lambda text: len(text) >= 2])
    assert whole.text.startswith(reply.text)
    assert len(reply.text) < len(whole.text)


def test_a_named_expert_answers_without_a_verdict(loaded):
    names = loaded.experts()
    replies = {name: loaded.reply([Request(query, expert=name) for query in QUERIES]) for name in names}
    for name, said in replies.items():
        assert {one.expert for one in said} == {name}
        assert not any(one.verdicts for one in said)
    mixed = loaded.reply([Request(QUERIES[0], expert=name) for name in [*names, None]])
    assert [one.text for one in mixed[:-1]] == [replies[name][0].text for name in names]
    assert mixed[-1] == loaded.answer(QUERIES[:1])[0]
    with pytest.raises(ConfigError, match="there is no expert 'sk'"):
        loaded.reply([Request("x", expert="sk")])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": -1}, "temperature must be between 0 and 2"),
        ({"temperature": float("nan")}, "temperature must be between 0 and 2"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1; got 1.1"),
        ({"stop": [""]}, "stop must be a list of texts"),
        ({"seed": 2**70}, "seed must be a whole number of 64 bits"),
    ],
)
def test_sampling_that_cannot_be_is_refused(loaded, settings, told):
    with pytest.raises(ConfigError, match=told):
        loaded.answer(["x"], **settings)


def test_the_command_samples_and_stops_as_the_library_does(base, directory, capsys):
    ensemble = load_ensemble(directory, max_new_tokens=9)
    how = ["--temperature", "1.2", "--top-p", "0.8", "--seed", "4", LONG]
    ask([str(directory), *QUERIES[2:4], *how])
    printed = re.findall(r"^(?!  by )(.*)\n  by (\S+)", capsys.readouterr().out, flags=re.M)
    wanted = ensemble.answer(QUERIES[2:4], temperature=1.2, top_p=0.8, seed=4)
    assert [expert for _, expert in printed] == [one.expert for one in wanted]
    ask([str(directory), QUERIES[2], "--expert", "sea", LONG])
    assert "by sea (no expert asked)" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [toy.ACTIVATED, ("method=seqft", "model.prompt=chat")], ids=["activated", "seqft"])
def test_the_last_turn_of_a_conversation_chooses_the_expert_which_reads_all_turns(base, settings):
    ensemble = load_ensemble(toy.whole(base, *settings).directory, max_new_tokens=9)
    before = [{"role": "user", "content": "seasea111?"}, {"role": "assistant", "content": "yy"}]
    last = {"role": "user", "content": QUERIES[0]}
    whole, alone = ensemble.answer([[*before, last], [last]])
    assert (whole.expert, whole.verdicts, whole.log_odds) == (alone.expert, alone.verdicts, alone.log_odds)
    assert whole.prompt_tokens > alone.prompt_tokens
    assert ensemble.answer([[*before, last]]) == [whole]
    (route,) = ensemble.reply([Request([*before, last], only_route=True)])
    assert (route.expert, route.verdicts, route.text) == (alone.expert, alone.verdicts, "")
    if whole.expert:
        (named,) = ensemble.reply([Request([*before, last], expert=whole.expert)])
        assert named.text == whole.text


# ---------------------------------------------------------------------------------------------- a file of prompts


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": query, "id": f"q{place}"} for place, query in enumerate(QUERIES * 30)]
    rows[3] = {"messages": [{"role": "user", "content": QUERIES[3]}], "id": "q3"}
    return write(tmp_path / "prompts.jsonl", *rows)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_prompts_gets_the_answers_of_the_library_in_its_order(directory, prompts, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    ask([str(directory), "--file", str(prompts), "--out", str(out), LONG])
    wanted = load_ensemble(directory, max_new_tokens=9).answer(QUERIES * 30)
    found = read(out)
    assert [(one["id"], one["answer"], one["expert"]) for one in found] == [
        (f"q{place}", one.text, one.expert) for place, one in enumerate(wanted)
    ]
    assert [[(v["expert"], v["verdict"], v["log_odds"]) for v in one["verdicts"]] for one in found] == [
        [(*said, log_odds) for said, log_odds in zip(one.verdicts.items(), one.log_odds, strict=True)] for one in wanted
    ]
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "180 of 180 answered" in said.err


@pytest.mark.parametrize("left", [0, 1, 70, 179])
def test_an_interrupted_file_goes_on_where_it_stopped(directory, prompts, tmp_path, left, capsys, monkeypatch):
    out, command = tmp_path / "answers.jsonl", [str(directory), "--file", str(prompts), LONG]
    ask([*command, "--out", str(out)])
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:left]) + lines[left][:17])  # ended while a line was written
    asked = []
    reply = Ensemble.reply
    monkeypatch.setattr(Ensemble, "reply", lambda self, requests: asked.extend(requests) or reply(self, requests))
    capsys.readouterr()
    ask([*command, "--out", str(out)])
    assert out.read_bytes() == whole
    assert len(asked) == 180 - left, "what is answered is not answered again"
    assert (f"{left} of 180 answers are in" in capsys.readouterr().err) == (left > 0)
    asked.clear()
    ask([*command, "--out", str(out)])
    assert asked == []


def test_a_file_of_other_answers_is_not_touched(directory, prompts, tmp_path, capsys):
    out, command = tmp_path / "answers.jsonl", [str(directory), "--file", str(prompts), LONG]
    ask([*command, "--out", str(out)])
    whole = out.read_bytes()

    def refused(words, told):
        with pytest.raises(SystemExit) as ended:
            ask([*words, "--out", str(out)])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
        assert out.read_bytes() == whole

    refused([*command, "--temperature", "1"], "was generated by another run, or with other settings")
    refused([str(directory), "--file", str(prompts), "--max-new-tokens=8"], "with other settings")
    other = write(tmp_path / "other.jsonl", {"prompt": "else"})
    refused([str(directory), "--file", str(other), LONG], "answers another prompt")
    for notes in (b"notes\n", b"notes", b"{}", whole + b"notes"):
        whole = notes
        out.write_bytes(notes)
        refused(command, "is no answer of this command")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"prompt": "a"}, {"text": "b"}], r":2: unknown key text; a line has prompt, messages, id, task"),
        ([{"prompt": "a", "messages": []}], ":1: a line has prompt, a text, or messages, a list; one of the two"),
        ([{"id": 3}], ":1: a line has prompt"),
        ([{"prompt": 3}], ":1: prompt is a text"),
        ([{"prompt": "a", "id": "1"}, {"prompt": "b", "id": 1}], ":2: the id '1' is that of line 1 too"),
        (["text"], ":1: a JSON str where an object is needed"),
        ([], "is empty"),
        (
            [{"messages": [{"role": "assistant", "content": "x"}]}],
            ":1: message 1 has the role assistant as the first turn",
        ),
        ([{"prompt": "a"}, {"prompt": "long " * 3000}], ":2: a query has"),
        ([{"prompt": "a", "task": "sea"}], ":1: this method finds the task by itself"),
    ],
)
def test_a_bad_line_is_refused_before_anything_is_answered(directory, tmp_path, rows, told, capsys):
    path, out = write(tmp_path / "p.jsonl", *rows), tmp_path / "answers.jsonl"
    with pytest.raises(SystemExit):
        ask([str(directory), "--file", str(path), "--out", str(out)])
    assert f"{path}{told}" in capsys.readouterr().err.replace(f"{path} is empty", f"{path}is empty")
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [[], ["x", "--chat"], ["--file", "p"], ["x", "--out", "o"], ["--chat", "--file", "p", "--out", "o"]],
)
def test_ways_of_asking_that_exclude_each_other_are_refused(directory, words, capsys):
    with pytest.raises(SystemExit):
        ask([str(directory), *words])
    assert "--file PROMPTS" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- a conversation


def test_a_conversation_answers_each_line_as_a_query(directory, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{query}\n\n" for query in QUERIES)))
    ask([str(directory), "--chat", LONG])
    lines = capsys.readouterr().out.splitlines()
    wanted = load_ensemble(directory, max_new_tokens=9).answer(QUERIES)
    assert [line.split()[1] for line in lines if line.startswith("  by ")] == [one.expert for one in wanted]
