"""The perplexity of a run is measured once, from what the run is made of, and refused where there is no finished run."""

import json
import shutil
from unittest.mock import patch

import pytest

from see_lightning.cli import perplexity
from see_lightning.engine import build
from see_lightning.engine.ledger import Ledger
from tests.runs import toy


@pytest.fixture
def run(base, tmp_path):
    """A copy of a finished run of SEE."""
    return shutil.copytree(toy.whole(base, "method=see").directory, tmp_path / "run=1")


def refused(capsys, *words):
    return toy.refused(capsys, perplexity.main, *words)


def test_it_is_measured_once_and_then_only_printed(run, capsys):
    perplexity.main([str(run)])
    text, printed = (run / "perplexity.json").read_text(), capsys.readouterr().out
    measured = json.loads(text)
    results = toy.read_results(run)
    assert {name: measured[name] for name in ("method", "ratio", "order", "seed")} == {
        name: results[name] for name in ("method", "ratio", "order", "seed")
    }
    assert measured["command"] == f"see-lightning perplexity {run}"
    assert measured["commit"]
    rows = [line.split() for line in printed.splitlines()]
    for name, task in measured["tasks"].items():
        tokens = sum(query["tokens"] for query in task["queries"])
        assert [name, str(toy.TESTED), str(tokens), f"{task['perplexity']:,.3f}"] in rows
    assert rows[-1] == [str(run / "perplexity.json")]
    with patch.object(build, "load_model", side_effect=AssertionError("a model was loaded")):
        perplexity.main([str(run)])
    assert capsys.readouterr().out == printed
    assert (run / "perplexity.json").read_text() == text


def test_what_belongs_to_another_state_of_the_run_or_is_damaged_is_measured_anew(run):
    perplexity.main([str(run)])
    path = run / "perplexity.json"
    text = path.read_text()
    for other in (text.replace('"belongs_to": "', '"belongs_to": "0'), text[:-9]):
        path.write_text(other)
        perplexity.main([str(run)])
        assert path.read_text() == text


def test_the_digest_changes_with_the_data_with_every_expert_and_with_the_last_answers(run):
    ledger = Ledger(run).read()
    found = {ledger.digest()}
    stages = ledger.content["stages"]
    *_, last = stages.values()
    changed = [
        (ledger.content["about"]["data"], "sky"),
        *((stage["trained"]["files"], "expert/adapter_model.safetensors") for stage in stages.values()),
        (last["answers"]["ice"], "sha256"),
    ]
    for where, what in changed:
        where[what] = "0" * 64
        found.add(ledger.digest())
    assert len(found) == len(changed) + 1
    ledger.content["about"]["command"] = "another"
    last["remembered"] = {}
    assert ledger.digest() in found, "what a study adds changes nothing"


def test_what_is_no_finished_run_is_refused_in_a_line(run, tmp_path, capsys):
    none = tmp_path / "none"
    assert refused(capsys, str(none)) == f"{none} holds no run; give the folder that has ledger.json in it."
    (run / "results.json").unlink()
    assert refused(capsys, str(run)) == (
        f"{run} is not finished, and perplexity is measured after the last task; go on with: test"
    )
    assert not (run / "perplexity.json").exists()


def test_other_data_and_damaged_experts_are_refused_and_leave_nothing(base, tmp_path, capsys):
    data = shutil.copytree(toy.data_in(base), tmp_path / "data")
    run = toy.run(toy.compose(data, tmp_path / "runs", "method=seqft", "optim.epochs=1")).directory
    rows = (data / "sea.test.jsonl").read_text()
    capsys.readouterr()
    (data / "sea.test.jsonl").write_text(rows.replace('"yy"', '"yx"', 1))
    assert refused(capsys, str(run)) == f"{run} was run on other data: sea changed since. Restore them."
    (data / "sea.test.jsonl").write_text(rows)
    expert = next((run / "tasks").glob("*-sky/expert/adapter_model.safetensors"))
    expert.write_bytes(expert.read_bytes()[:-1] + b"\1")
    assert f"{expert} is damaged" in refused(capsys, str(run))
    assert not (run / "perplexity.json").exists()
