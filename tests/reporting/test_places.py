"""No text that is published names a place of a machine, and texts that name none stay as they are."""

import json
from pathlib import Path

import pytest

from see_lightning.config.search_path import CONF
from see_lightning.reporting.places import machine, without_places

KEPT = sorted((CONF.parent / "results").rglob("*.json"))


def test_known_places_have_names_in_all_their_forms(tmp_path, monkeypatch):
    real = tmp_path / "disk1"
    real.mkdir()
    (tmp_path / "data-link").symlink_to(real)
    monkeypatch.setenv("HOME", str(tmp_path / "home/me"))
    monkeypatch.chdir(real)
    config = {"paths": {"data": str(tmp_path / "data-link"), "runs": "r", "cache": "~/cached"}}
    places = machine(config, tmp_path / "big/runs")
    told = without_places(
        {
            "a": str(real / "x"),
            "b": f"{tmp_path}/data-link/x y",
            "c": f"{tmp_path}/big/runs/z",
            "d": f"see ~/cached, {tmp_path}/home/me/cached/z and {tmp_path}/home/me.",
            "e": "r out of r/three",
            "f": "r",
        },
        places,
    )
    assert told == {
        "a": "data/x",
        "b": "data/x y",
        "c": "runs/z",
        "d": "see ~/.cache/see_lightning, ~/.cache/see_lightning/z and ~.",
        "e": "r out of runs/three",
        "f": "runs",
    }


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("see-lightning perplexity /d/x 'r/superni 5'", "see-lightning perplexity data/x 'runs/superni 5'"),
        ("see-lightning run ood.dir=/d/x paths.runs=/q logger.entity=me", "see-lightning run ood.dir=data/x"),
        ("qg: /d/a.json is missing", "qg: data/a.json is missing"),
        ("/home/me", "~"),
        ("~me/x", ".../x"),
        ("/models/my llama", ".../my llama"),
        ("python run.py '+a=[/x y/z,{b: ~/c}]' --d=/e/f", "python run.py '+a=[.../z,{b: ~/c}]' --d=.../f"),
        ("x:/a/b", "x:.../b"),
        *((same, same) for same in (
            "https://host/d/x", "owner/name", "and/or", "say /s/ as in <s>/</s>", "./mine", "mine/a.json", "1/2", "a / b",
            "python run.py order.tasks=[a,b] 'x=y z'", "python is a language", "it's python - isn't it",
        )),
    ],
)  # fmt: skip
def test_places_are_left_out_of_texts_and_nothing_else(text, kept):
    assert without_places(text, {"/d": "data", "r": "runs"}) == kept


def test_names_of_hosts_are_left_out_if_they_can_be_told_from_words(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node17.cluster")
    assert without_places("held on node17.cluster by 3", machine({}, tmp_path)) == "held on host by 3"
    monkeypatch.setattr("socket.gethostname", lambda: "gpu")
    assert without_places("gpu", machine({}, tmp_path)) == "gpu"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: "/".join(path.parts[-5:]))
def test_results_that_are_kept_stay_as_they_are(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert without_places(content, machine(content.get("config", {}), Path("/big/runs"))) == content
