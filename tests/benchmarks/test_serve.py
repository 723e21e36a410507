"""The benchmark of serving: every contender answers with as many tokens, and the right expert."""

import json

import pytest

from benchmarks import serve
from tests.benchmarks import tiny


@pytest.mark.nightly
def test_all_are_asked_alike_and_the_expert_that_accepts_answers(tmp_path, capsys, one_round):
    words = ["--requests", "8", "--at-once", "4", "--answer-tokens", "4", "--prompt-tokens", "60", "--repeats", "1"]
    serve.main([*words, "--force", "--alone", *tiny.settings(tmp_path / "data"), "model.prompt=chat"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["answered_by"] == {"1 experts": ["yes"], "8 experts": ["yes"], "base": ["base"]}
    assert told["ended_by"] == {"1 experts": ["length"], "8 experts": ["length"], "base": ["length"]}
    assert told["throughput_n8_over_base"] > 0
    assert told["first_token_n1_over_base"] > 0
