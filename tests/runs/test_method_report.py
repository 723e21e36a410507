"""What a method reports of itself stands in the results, a value for each task, and in the report."""

import pytest

from see_lightning.errors import ConfigError
from see_lightning.methods.seqft import SeqFt
from see_lightning.reporting.report.sections import per_task
from tests.runs import toy

SMALL = ("method=seqft", "order.tasks=[sky,sea]", "optim.epochs=1")


def test_reported_facts_have_a_value_for_each_task(base, tmp_path, monkeypatch):
    learned = []

    def report(method):
        learned.append(method)
        return {"tasks_learned": len(learned), **({"names": ["sea"]} if len(learned) == 2 else {})}

    monkeypatch.setattr(SeqFt, "report", report)
    run = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *SMALL))
    results = toy.read_results(run.directory)
    assert results["method_report"] == {"tasks_learned": [1, 2], "names": [None, ["sea"]]}
    assert per_task(results)["tasks learned"] == ["1", "2"]
    assert "tasks learned" in (run.directory / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_what_json_cannot_hold_is_refused(base, tmp_path, monkeypatch, value):
    monkeypatch.setattr(SeqFt, "report", lambda method: {"value": value})
    with pytest.raises(ConfigError, match=r"SeqFt\.report returns values that JSON cannot hold"):
        toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *SMALL))


def test_a_method_without_facts_adds_no_section(base):
    assert "method_report" not in toy.read_results(toy.whole(base, "method=seqft").directory)
