"""What exclusive supermasks promise: two phases, nothing overwritten, and a mask a task that is all there is to route to."""

import itertools
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from see_lightning.methods.exssnet import ADAPTER, ExSSNeT
from see_lightning.methods.warm_start import WarmStart
from tests.runs import toy

EXSSNET = ("method=exssnet", "method.density=0.3", "optim.weight_decay=0.1")
NAMES = list(toy.TASKS)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Where the toy's data and its undisturbed runs lie."""
    return tmp_path_factory.getbasetemp() / "toy"


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def watched(base, runs, *settings):
    """A run; of each task its first masks, its last ones, and of each of its steps what it moved; and all tasks' logits."""
    first, masks, moved, logits = {}, {}, {}, []
    begin, step_end, end = ExSSNeT.begin_task, ExSSNeT.on_train_batch_end, ExSSNeT.end_task
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    seen = {}

    def state(method):
        weights = [weight for layer in method.pool.layers for weight in method.pool.pair(layer, ADAPTER)]
        return copies(method.learning.parameters()), copies(weights)

    def flat(method):
        chosen = [method.learning.mask(layer).fixed() for layer in method.pool.layers]
        return [part for mask in chosen for part in (mask.down, mask.up)]

    def look_first(method, task, memory):
        begin(method, task, memory)
        first[task.name], moved[task.name], seen["task"], seen["state"] = flat(method), [], task.name, state(method)

    def look_on(method, outputs, batch, batch_idx):
        step_end(method, outputs, batch, batch_idx)
        now = state(method)
        moved[seen["task"]].append(
            [[one != other for one, other in zip(*pair, strict=True)] for pair in zip(now, seen["state"], strict=True)]
        )
        seen["state"] = now

    def look_last(method, task, memory):
        masks[task.name] = flat(method)
        end(method, task, memory)
        adapters = {}
        for name in method.parts.of:
            with method.pool.use_adapter(name) as model:
                adapters[name] = model(input_ids=ids).logits.clone()
        logits.append(adapters)

    with (
        patch.object(ExSSNeT, "begin_task", look_first),
        patch.object(ExSSNeT, "on_train_batch_end", look_on),
        patch.object(ExSSNeT, "end_task", look_last),
    ):
        run = toy.run(toy.compose(toy.data_in(base), runs, *EXSSNET, *settings))
    return run, first, masks, moved, logits


def test_a_task_chooses_then_trains_what_nobody_uses_and_no_other_task_ever_speaks_otherwise(base, tmp_path):
    run, first, masks, moved, logits = watched(base, tmp_path)
    used = [torch.zeros_like(part) for part in masks["sky"]]
    for task, size in toy.TASKS.items():
        steps = 10 * size // 4
        assert len(moved[task]) == steps
        for number, (scores, weights) in enumerate(moved[task]):
            choosing = number < round(steps / 2)
            assert any(part.any() for part in scores) == choosing
            if choosing:
                assert not any(part.any() for part in weights)
        trained = [torch.stack(parts).any(0) for parts in zip(*(weights for _, weights in moved[task]), strict=True)]
        for part, mask, taken in zip(trained, masks[task], used, strict=True):
            assert not (part & taken).any(), "what an earlier task uses moved"
            # The rest decays on its way, and is put back where it was drawn when the task ends.
            assert part[mask & ~taken].float().mean() > 0.8
        used = [taken | mask for taken, mask in zip(used, masks[task], strict=True)]
        assert not all(map(torch.equal, first[task], masks[task])), "the scores chose nothing"
    for earlier, later in itertools.pairwise(logits):
        for name, said in earlier.items():
            assert torch.equal(later[name], said)
    assert not torch.equal(logits[2]["sky"], logits[2]["sea"])
    results, (method,) = toy.read_results(run.directory), run.methods
    assert results["metrics"]["BWT"] == results["metrics"]["forgetting"] == 0
    weights = [w for layer in method.pool.layers for w in method.pool.pair(layer, ADAPTER)]
    drawn = [w for layer in method.pool.layers for w in method.shared.first[layer]]
    for weight, taken, start in zip(weights, used, drawn, strict=True):
        assert torch.equal(weight[~taken], start[~taken])
    storage, numbers = results["storage"], sum(weight.numel() for weight in weights)
    assert storage["pool"] == [4 * numbers] * 3
    assert storage["weights"][-1] == 4 * sum(int(taken.sum()) for taken in used)
    assert storage["weights"][0] == 4 * sum(int(mask.sum()) for mask in masks["sky"])
    assert storage["masks"] == [stage * numbers // 8 for stage in (1, 2, 3)]


def test_where_one_task_uses_all_later_ones_say_what_it_says(base, tmp_path):
    run = toy.run(toy.compose(toy.data_in(base), tmp_path, *EXSSNET, "method.density=1"))
    files = [
        (run.directory / "tasks" / stage / "expert" / "adapter_model.safetensors").read_bytes()
        for stage in ("01-sky", "02-sea", "03-ice")
    ]
    assert files[0] == files[1] == files[2]
    results = toy.read_results(run.directory)
    assert results["storage"]["weights"] == results["storage"]["pool"]


@pytest.mark.parametrize("share", [0, 1])
def test_a_share_of_all_or_no_steps_leaves_one_phase_out(base, tmp_path, share):
    _, first, masks, moved, _ = watched(base, tmp_path, f"method.score_share={share}")
    for task in NAMES:
        assert all(map(torch.equal, first[task], masks[task])) == (share == 0)
        assert any(part.any() for _, weights in moved[task] for part in weights) == (share == 0)


def test_inferring_tasks_trains_nothing_anew_and_finds_prompts_that_begin_with_their_tasks_name(base, tmp_path):
    told = toy.run(toy.compose(toy.data_in(base), tmp_path, *EXSSNET))
    inferred = toy.run(toy.compose(toy.data_in(base), tmp_path, *EXSSNET, "method.task_id=key"))
    assert (told.fits, inferred.fits) == (3, 0)
    results = toy.read_results(inferred.directory)
    assert "task_id_accuracy" not in toy.read_results(told.directory)
    said = {record["id"]: record["text"] for record in toy.read_answers(told.directory)["03-ice"]}
    records = toy.read_answers(inferred.directory)["03-ice"]
    assert results["task_id_accuracy"] == 1.0
    assert [record["text"] for record in records] == [said[record["id"]] for record in records]


def test_a_warm_start_begins_with_the_mask_of_the_task_that_was_chosen(base, tmp_path):
    def choose(start, method, task):
        return {"sky": None, "sea": "sky", "ice": "sky"}[task.name]

    with patch.object(WarmStart, "choose", choose):
        run, first, masks, *_ = watched(base, tmp_path, "method.warm_start=loss")
    for task in ("sea", "ice"):
        assert all(map(torch.equal, first[task], masks["sky"]))
        assert not all(map(torch.equal, masks[task], masks["sky"]))
    assert toy.read_results(run.directory)["warm_start"] == [None, "sky", "sky"]
    packed = load_file(run.directory / "tasks" / "01-sky" / "expert" / "subexpert.safetensors")
    assert {tensor.dtype for name, tensor in packed.items() if name != "key"} == {torch.uint8}


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("method.density=0", "method.density"),
        ("method.score_share=1.5", "method.score_share"),
        ("method.score_lr=-1", "method.score_lr"),
        ("method.task_id=entropy", "given, key"),
        ("method.warm_start=best", "none, loss, knn"),
        ("method.probe=1", "method.probe"),
    ],
)
def test_an_unusable_setting_is_refused_before_anything_is_trained(base, tmp_path, setting, told):
    with (
        pytest.raises(Exception, match=told) as refused,
        patch.object(ExSSNeT, "begin_task", side_effect=AssertionError),
    ):
        toy.run(toy.compose(toy.data_in(base), tmp_path, *EXSSNET, setting))
    assert "ConfigError" in type(refused.value).__name__
