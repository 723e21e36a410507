"""The routing benchmark: what is asked of whom, and that ours and its peers say the same."""

import csv
import json

import pytest

from benchmarks import route
from see_lightning.models.tiny import tiny_tokenizer
from see_lightning.tasks.prompts import PromptTemplate
from tests.benchmarks import tiny


@pytest.fixture(scope="module")
def template():
    return PromptTemplate(tiny_tokenizer(), style="chat", max_length=2048)


def test_accepting_places_go_evenly_through_all_experts_and_nobody():
    assert route.spread_places(8, 9) == list(range(9))
    assert route.spread_places(1, 4) == [0, 0, 1, 1]
    for experts in range(1, 20):
        for queries in range(1, 20):
            places = route.spread_places(experts, queries)
            assert places == sorted(places)
            assert set(places) <= set(range(experts + 1))
            each = [places.count(place) for place in range(experts + 1)]
            assert max(each) - min(each) <= 1


@pytest.mark.parametrize("tokens", [50, 300, 1000])
def test_prompts_have_the_length_asked_for(template, tokens):
    text = route.prompt_of(template, "Is the sky blue over the sea? ", tokens)
    assert len(template.prompt_ids(text)) == tokens
    assert text.startswith("Is the sky blue")


def test_the_accepting_expert_stands_where_it_should():
    contender = route.Contender.__new__(route.Contender)
    contender.experts = 3
    assert [contender.names(place) for place in range(4)] == [
        ["yes", "no1", "no2"],
        ["no0", "yes", "no2"],
        ["no0", "no1", "yes"],
        ["no0", "no1", "no2"],
    ]


@pytest.mark.nightly
def test_ours_and_the_peers_find_the_same_experts_and_first_tokens(tmp_path, capsys, one_round, monkeypatch):
    """In fp32 on the tiny model; the oracle is Hugging Face's generate in either of PEFT's ways, and the plan."""
    for name, number in {"EXPERTS": 3, "MANY": 2, "TOKENS": 60}.items():
        monkeypatch.setattr(route, name, number)
    files = ["--csv", str(tmp_path / "route.csv"), "--plot", str(tmp_path / "route.svg")]
    small = ["--experts", "2", "--lengths", "50", "--queries", "2", "--repeats", "1", "--force"]
    route.main([*files, *small, *tiny.settings(tmp_path / "data"), "optim.epochs=30"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    for adapter in ("lora", "activated_lora"):
        assert told["agreement"][adapter] == {"queries": 4, "as_planned": 4, "same_expert": 4, "same_token": 4}
    # Places 0 to 2 ask one to three experts; nobody's query asks all three, and the base model.
    assert told["prefills"] == told["pairs_asked"] == 1 + 2 + 3 + 3 + 1
    assert told["activated_prefills"] == 4
    assert told["decided_again"] == 0
    keys = {"activated_over_peft_n8", "lora_over_peft_n8", "activated_n16_over_n1", "prefills", "pairs_asked"}
    assert keys <= set(told)
    assert told["forced"] is True
    with (tmp_path / "route.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["sweep"], row["experts"], row["tokens"]) for row in rows} == {
        ("experts", "2", "60"),
        ("tokens", "3", "50"),
    }
    assert len(rows) == 2 * 6
    assert all(float(row["min_ms"]) <= float(row["median_ms"]) <= float(row["max_ms"]) for row in rows)
    assert "<svg" in (tmp_path / "route.svg").read_text()
