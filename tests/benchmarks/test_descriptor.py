"""Descriptors of tasks: distances by an oracle, and the experts' own figures as the run reported them."""

import json

import numpy as np
import pytest
import torch

from benchmarks import descriptor
from see_lightning.errors import Refusal
from tests.runs import toy


def test_distances_are_those_of_their_definitions():
    generator = torch.Generator().manual_seed(0)
    states_PH, means_TH = (torch.randn(n, 3, generator=generator) for n in (5, 2))
    covariance_HH = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    inverse = np.linalg.inv(covariance_HH.numpy())
    for p, state in enumerate(states_PH.numpy()):
        for t, mean in enumerate(means_TH.numpy()):
            expected = (state - mean) @ inverse @ (state - mean)
            found = float(descriptor.mahalanobis(states_PH, means_TH, covariance_HH)[p, t])
            assert found == pytest.approx(float(expected), rel=1e-4)
            cosine = state @ mean / np.linalg.norm(state) / np.linalg.norm(mean)
            assert float(descriptor.cosine(states_PH, means_TH)[p, t]) == pytest.approx(1 - float(cosine), abs=1e-5)


def test_the_covariance_is_that_within_the_tasks():
    some = [torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([[9.0, 5.0], [7.0, 5.0]])]
    torch.testing.assert_close(descriptor.within(some, shrinkage=0.0), torch.diag(torch.tensor([0.5, 0.5])))


def test_a_run_is_compared_on_the_queries_that_it_was_asked(tmp_path, capsys):
    rows = [{"id": str(n), "input": f"fog{n}?", "output": "q"} for n in range(10)]
    (tmp_path / "foreign").mkdir()
    whole = {"Definition": ["fog"], "Instances": rows, "Positive Examples": []}
    (tmp_path / "foreign" / "fog.json").write_text(json.dumps(whole))
    asked = ("ood=folder", f"ood.dir={tmp_path / 'foreign'}", "ood.size=2")
    plain = toy.run(toy.compose(toy.defined_in(tmp_path), tmp_path / "runs", *toy.DEFINED))
    with pytest.raises(Refusal, match="was asked no foreign queries"):
        descriptor.compare(plain.directory)
    run = toy.run(toy.compose(toy.defined_in(tmp_path), tmp_path / "runs", *toy.DEFINED, *asked))
    capsys.readouterr()
    descriptor.main([str(run.directory)])
    *_, last = capsys.readouterr().out.splitlines()
    found, told = json.loads(last), toy.read_results(run.directory)["ood"]
    ours = found["the experts' log-odds"]
    assert ours["auroc"] == pytest.approx(told["auroc"], abs=1e-4)
    assert ours["accepted at 95%"] == pytest.approx(told["fpr95"], abs=1e-4)
    assert len(found) == 5
    assert all(0 <= value <= 1 for values in found.values() for value in values.values())
