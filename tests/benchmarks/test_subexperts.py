"""The benchmark of masked mixtures: all do the same work, and short cuts give what the formula says."""

import json

import pytest
import torch

from benchmarks import common, subexperts
from benchmarks.subexperts import Layer, OneTask
from benchmarks.timing import Clock
from see_lightning.methods.method import Method
from see_lightning.methods.subnetworks.mixture import LayerMask
from tests.benchmarks import tiny

MASKED = ("moses_weight", "moses_rank", "exssnet")


def setup_of(folder, name):
    return common.prepare([*tiny.settings(folder / "data"), *subexperts.CONTENDERS[name]])


def by_hand(x_TI, at, mask, k):
    """What a token is given, expert by expert: PAPERS.md's sum over the k experts that its router likes best."""
    rows = []
    ranks = len(at.down_UI) // len(at.router_NI)
    for x_I in x_TI:
        told = {
            e: float(row_I @ x_I)
            for e, row_I in enumerate(at.router_NI)
            if at.used_U[e * ranks : (e + 1) * ranks].any()
        }
        best = sorted(told, key=lambda e: -told[e])[:k]
        total = sum(torch.tensor(told[e]).exp() for e in best)
        added = torch.zeros(len(at.up_OU))
        for e in best:
            for rank in range(e * ranks, (e + 1) * ranks):
                low = (at.down_UI[rank] * mask.down.expand_as(at.down_UI)[rank]) @ x_I
                up_O = at.up_OU[:, rank] * mask.up.expand_as(at.up_OU)[:, rank]
                added += torch.tensor(told[e]).exp() / total * low * up_O
        rows.append(added)
    return torch.stack(rows)


@pytest.mark.parametrize("way", [subexperts.all_ranks, subexperts.formed_anew])
def test_the_plain_ways_are_the_sum_over_experts(way):
    draw = torch.Generator().manual_seed(0)
    x_TI, down_UI, up_OU, router_NI = (
        torch.randn(size, generator=draw) for size in ((7, 5), (6, 5), (4, 6), (3, 5))
    )  # fmt: skip
    used_U = torch.tensor([True, False, False, False, True, True])  # none of the second expert's
    mask = LayerMask(used_U[:, None], used_U[None])
    if way is subexperts.formed_anew:
        some = (torch.rand(size, generator=draw) < 0.6 for size in ((6, 5), (4, 6)))
        mask = LayerMask(*(part & of for part, of in zip(some, (mask.down, mask.up), strict=True)))
    at = Layer(down_UI, up_OU, LayerMask(mask.down.float(), mask.up.float()), router_NI, used_U)
    torch.testing.assert_close(way(x_TI, at, 2), by_hand(x_TI, at, mask, 2))


@pytest.mark.parametrize("name", ["moses rank", "moses weight"])
def test_short_cuts_give_what_the_plain_ways_give(name, tmp_path):
    task = OneTask(setup_of(tmp_path, name))
    assert subexperts.agreed(task, 2, 5) < 1e-5
    shapes = [tuple(x.shape) for x in task.short_cut(task.inputs(2, 5, torch.float32))]
    assert shapes == [(2, 5, task.pool.layers[layer].out_features) for layer in task.layers]
    chosen = [int(mask.ranks().sum()) for mask in task.masks]
    assert chosen == [9 if name == "moses rank" else 32] * len(task.layers)  # of 4 x 8 ranks, 30 %; or some of each


@pytest.mark.parametrize("name", ["moses rank", "moses weight"])
def test_nothing_is_timed_where_the_ways_differ(name, tmp_path):
    task = OneTask(setup_of(tmp_path, name))
    task.plain[torch.float32][-1].mask.down[0] = 1 - task.plain[torch.float32][-1].mask.down[0]
    with pytest.raises(RuntimeError, match=r"of the norm apart: they differ"):
        subexperts.agreed(task, 2, 5)


def test_nothing_but_its_length_ends_an_answer(tmp_path, monkeypatch):
    setup = setup_of(tmp_path, "stl")
    monkeypatch.setattr(Method, "eos_ids", lambda method: range(1000))  # whatever is written, an answer would end
    method = setup.method().eval()
    batches = subexperts.mixed_queries(setup, 3)
    assert [batch.tasks for batch in batches] == [["sky", "sky", "sea", "sea"]]
    for batch in batches:
        method.answer(batch)
    assert method.counts["new_tokens"] == 0
    subexperts.answer(method, batches, Clock(common.sync))
    assert method.counts == {"prefills": 4, "generations": 4, "new_tokens": 4 * 3}
    assert method.eos_ids()


def test_times_of_different_work_are_not_compared():
    assert subexperts.same({"a": {"prefills": 4}, "b": {"prefills": 4}}) == {"prefills": 4}
    with pytest.raises(RuntimeError, match=r"'b': \{'prefills': 5\}"):
        subexperts.same({"a": {"prefills": 4}, "b": {"prefills": 5}})


@pytest.mark.nightly
def test_the_last_line_holds_all_contenders_and_what_they_did(tmp_path, capsys, one_round, monkeypatch):
    fit, begun = common.fit, []

    def seen_fit(setup, method, task, data, clock):
        begun.append((task.name, len(data.rows), list(method.pool.names)))
        return fit(setup, method, task, data, clock)

    monkeypatch.setattr(common, "fit", seen_fit)
    monkeypatch.setattr(subexperts, "PASSES", {"reading": (2, 5, 1), "writing": (2, 1, 2)})
    monkeypatch.setattr(subexperts, "FEW", 2)
    options = ["--repeats", "1", "--force", "--new-tokens", "3"]
    subexperts.main([*options, *tiny.settings(tmp_path / "data"), "optim.epochs=2"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    ratios = [f"training_{name}_over_stl" for name in (*MASKED, "mora")]
    ratios += [f"answering_{name}_over_stl" for name in MASKED]
    ratios += [
        f"{kind}_{way}" for kind in subexperts.PASSES for way in ("all_ranks_over_used", "formed_anew_over_once")
    ]
    assert all(told[key] > 0 for key in ratios)
    assert set(told["spread"]) == set(ratios)
    assert told["training_steps"] == 2  # four rows, four a step, two epochs
    assert told["prefills"] == told["generations"] == 4  # two tasks' queries, two of each
    assert told["new_tokens"] == 4 * 3
    assert told["apart"] < 1e-5
    assert told["forced"] is True
    # Each learns both tasks from few rows; what is timed is the second task's stage, on all rows, with the first behind it.
    *taught, _, _, _, _, _ = begun
    assert [(name, rows) for name, rows, _ in taught] == [("sky", 2), ("sea", 2)] * 5
    assert begun[-5:] == [("sea", 4, ["sky"])] * 4 + [("sea", 4, ["shared"])]  # mora has one voice for all tasks
