"""The benchmark of merge rules: each rule of the folder is measured beside the mean, and those left out are told."""

import json

from benchmarks import merge
from see_lightning.config.search_path import options
from tests.runs import toy


def test_every_rule_that_needs_no_rows_is_measured_beside_the_mean(tmp_path, capsys, one_round):
    run = toy.whole(tmp_path, "method=stl", "optim.epochs=1").directory
    capsys.readouterr()
    merge.main([str(run), "--repeats", "1", "--force"])
    shown = capsys.readouterr()
    *_, last = shown.out.splitlines()
    told = json.loads(last)
    rules = {path.stem for path in options("rule")}
    assert {name for name in told if name.endswith("_by_average")} == {
        f"{rule}_by_average" for rule in rules - {"average", "frank_wolfe"}
    }
    assert all(told[f"{rule}_by_average"] > 0 for rule in rules - {"average", "frank_wolfe"})
    assert "left out, since they need rows of the tasks: frank_wolfe" in shown.err
    assert told["adapters"] == len(toy.read_results(run)["tasks"])
