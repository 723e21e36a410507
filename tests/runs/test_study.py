"""A study is refused for runs whose queries find their experts without verdicts."""

import pytest

from see_lightning.cli.study import main
from tests.runs import toy

METHODS = (
    ["method=sema", *toy.ACTIVATED],
    pytest.param(["method=moses", "method.task_id=key"], marks=pytest.mark.nightly),
    pytest.param(["method=exssnet", "method.task_id=key"], marks=pytest.mark.nightly),
    pytest.param(["method=seqft"], marks=pytest.mark.nightly),
)


@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: settings[0])
def test_a_run_without_verdicts_is_refused_before_its_model_is_read(base, tmp_path, capsys, settings):
    run = toy.run(toy.compose(toy.data_in(base), tmp_path, *settings, "optim.epochs=1"))
    method = settings[0].removeprefix("method=")
    assert ("routing" in toy.read_results(run.directory)) == (method != "seqft")
    capsys.readouterr()
    for more in ([], ["--answer"], ["--thresholds", "0"]):
        with pytest.raises(SystemExit) as stopped:
            main([str(run.directory), *more])
        out, err = capsys.readouterr()
        assert (stopped.value.code, out) == (2, "")
        assert f"is a run of {method} without verdicts of experts" in err
        assert err.endswith("such as one of method=see.\n")
    assert not (run.directory / "study.json").exists()
