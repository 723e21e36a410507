"""What a mixture of sub-experts promises: old tasks stay bit by bit, the pool fills slowly, task ids are all that can err."""

import itertools
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from see_lightning import load_ensemble
from see_lightning.methods.moses import POOL, Moses
from see_lightning.routing.oracle import Oracle
from tests.nightly import all_but
from tests.runs import toy

MOSES = ("method=moses", "optim.weight_decay=0.1")
GRANULARITIES = pytest.mark.parametrize("granularity", all_but(["weight"], ["weight", "rank"]))
NAMES = list(toy.TASKS)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Where the toy's data and its undisturbed runs lie."""
    return tmp_path_factory.getbasetemp() / "toy"


def watched(base, runs, *settings):
    """A run; after each task the logits of every learned task's voice, and the pool; and steps that moved what is used."""
    logits, pools, moved = [], [], []
    end_task, batch_end = Moses.end_task, Moses.on_train_batch_end
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))

    def look(method, task, memory):
        end_task(method, task, memory)
        adapters = {}
        for name in method.parts.of:
            with method.pool.use_adapter(name) as model:
                adapters[name] = model(input_ids=ids).logits.clone()
        logits.append(adapters)
        adapter = method.parts.of[task.name].adapter
        pools.append(
            [tuple(w.detach().clone() for w in method.pool.pair(layer, adapter)) for layer in method.pool.layers]
        )

    def compare(method, outputs, batch, batch_idx):
        batch_end(method, outputs, batch, batch_idx)
        shared = method.shared[method.learning.adapter]
        for layer, used in shared.used.items():
            for weight, mask, rest in zip(shared.pair(layer), (used.down, used.up), shared.at_rest[layer], strict=True):
                if not torch.equal(weight[mask.expand_as(weight)], rest[mask.expand_as(rest)]):
                    moved.append(batch_idx)

    with patch.object(Moses, "end_task", look), patch.object(Moses, "on_train_batch_end", compare):
        run = toy.run(toy.compose(toy.data_in(base), runs, *MOSES, *settings))
    return run, logits, pools, moved


@GRANULARITIES
def test_what_a_task_says_is_the_same_bit_by_bit_after_every_later_task(base, tmp_path, granularity):
    run, logits, pools, moved = watched(base, tmp_path, f"method.granularity={granularity}")
    assert [list(adapters) for adapters in logits] == [NAMES[:1], NAMES[:2], NAMES]
    for earlier, later in itertools.pairwise(logits):
        for name, said in earlier.items():
            assert torch.equal(later[name], said)
    assert not torch.equal(logits[2]["sky"], logits[2]["sea"])
    assert not moved
    moves = [not all(map(torch.equal, one, two)) for one, two in zip(pools[0], pools[1], strict=True)]
    assert any(moves), "the second task took something of its own"
    results = toy.read_results(run.directory)
    assert results["metrics"]["BWT"] == results["metrics"]["forgetting"] == 0


@GRANULARITIES
def test_the_pool_fills_by_at_most_a_share_a_task(base, granularity):
    run = toy.whole(base, *MOSES, f"method.granularity={granularity}")
    results, (method,) = toy.read_results(run.directory), run.methods
    storage, pool = results["storage"], results["storage"]["pool"][0]
    weights = [size / pool for size in storage["weights"]]
    assert weights == sorted(weights)
    slack = 0.01 if granularity == "weight" else 0.05  # a share of few ranks is rounded down, but one is taken
    assert all(share <= min(1, number * 0.3) + slack for number, share in enumerate(weights, start=1))
    by_chance = 1 - (1 - weights[0]) ** 3
    assert weights[-1] < 0.95 * by_chance, "tasks use again what others have, more than masks drawn by chance would"
    layers = list(method.pool.layers)
    numbers = sum(w.numel() for layer in layers for w in method.pool.pair(layer, POOL))
    assert pool == 4 * numbers
    ranks = len(method.pool.pair(layers[0], POOL)[0])
    bits = numbers if granularity == "weight" else ranks * len(layers)
    assert storage["masks"] == [stage * bits // 8 for stage in (1, 2, 3)]
    routers = 4 * sum(4 * method.pool.layers[layer].in_features for layer in layers)
    assert storage["routers"] == [stage * routers for stage in (1, 2, 3)]
    hidden = method.pool.model.config.hidden_size
    assert storage["keys"] == [stage * 4 * hidden for stage in (1, 2, 3)]
    parts = ("weights", "masks", "routers", "keys")
    expected = [sum(storage[part][stage] for part in parts) / pool for stage in range(3)]
    assert results["capacity"] == pytest.approx(expected, abs=1e-6)


@GRANULARITIES
def test_with_one_whole_expert_only_the_router_and_scores_are_left_to_later_tasks(base, tmp_path, granularity):
    settings = ("method.experts=1", "method.top_k=1", "method.density=1.0", f"method.granularity={granularity}")
    run, _, pools, moved = watched(base, tmp_path, *settings)
    assert not moved
    for later in pools[1:]:
        assert all(
            torch.equal(a, b) for one, two in zip(pools[0], later, strict=True) for a, b in zip(one, two, strict=True)
        )
    weights = toy.read_results(run.directory)["storage"]["weights"]
    assert weights == [toy.read_results(run.directory)["storage"]["pool"][0]] * 3


@GRANULARITIES
def test_whole_experts_of_ones_own_are_those_of_single_task_learning(base, granularity):
    """The oracle is another method: one LoRA for each task."""
    settings = ("method.experts=1", "method.top_k=1", "method.density=1.0", "method.own_pool=true")
    alike = ("optim.grad_clip=0",)  # scores and router have gradients too, which would count towards the norm
    ours = toy.whole(base, "method=moses", *settings, f"method.granularity={granularity}", *alike)
    theirs = toy.whole(base, "method=stl", *alike)
    for stage, answers in toy.read_answers(theirs.directory).items():
        assert answers == toy.read_answers(ours.directory)[stage]
        one, two = (
            load_file(run.directory / "tasks" / stage / "expert" / "adapter_model.safetensors")
            for run in (ours, theirs)
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    size, *_ = toy.read_results(ours.directory)["storage"]["pool"]
    assert toy.read_results(ours.directory)["storage"]["weights"] == [size, 2 * size, 3 * size]


@pytest.mark.parametrize("task_id", ["key", "entropy"])
def test_inferring_tasks_trains_nothing_anew_and_errs_in_nothing_but_the_task(base, tmp_path, task_id):
    told = toy.run(toy.compose(toy.data_in(base), tmp_path, *MOSES))
    inferred = toy.run(toy.compose(toy.data_in(base), tmp_path, *MOSES, f"method.task_id={task_id}"))
    assert (told.fits, inferred.fits) == (3, 0)
    results = toy.read_results(inferred.directory)
    assert "task_id_accuracy" not in toy.read_results(told.directory)
    right = 0
    by_task = {record["id"]: record for record in toy.read_answers(told.directory)["03-ice"]}
    records = toy.read_answers(inferred.directory)["03-ice"]
    for record in records:
        if record["expert"] == record["task"]:
            right += 1
            assert record["text"] == by_task[record["id"]]["text"]
    assert results["task_id_accuracy"] == right / len(records) > 1 / 3
    if task_id == "key":
        assert right == len(records), "prompts that begin with their task's name lie near its others"
    ensemble = load_ensemble(inferred.directory, max_new_tokens=4)
    ensemble.method.chosen_router = Oracle(ensemble.method)
    prompts = toy.prompts(base)
    for task in NAMES:
        asked = [id_ for id_ in prompts if id_.startswith(f"{task}-")]
        replies = ensemble.answer([prompts[id_] for id_ in asked], task=task)
        assert [reply.text for reply in replies] == [by_task[id_]["text"] for id_ in asked]


@pytest.mark.parametrize(
    ("setting", "goes_on"),
    [("scores=kept", True), ("scores=fresh", False), ("router=copied", True), ("router=fresh", False)],
)
def test_scores_and_router_go_on_from_the_task_before_or_are_drawn_anew(base, tmp_path, setting, goes_on):
    began, ended, begin_task, end_task = [], [], Moses.begin_task, Moses.end_task
    part = setting.split("=")[0]

    def state(learning):
        parameters = learning.scores.parameters() if part == "scores" else learning.routers
        return [parameter.detach().clone() for parameter in parameters]

    def begin(method, task, memory):
        begin_task(method, task, memory)
        began.append(state(method.learning))

    def end(method, task, memory):
        ended.append(state(method.learning))
        end_task(method, task, memory)

    with patch.object(Moses, "begin_task", begin), patch.object(Moses, "end_task", end):
        toy.run(toy.compose(toy.data_in(base), tmp_path, *MOSES, f"method.{setting}"))
    assert not all(map(torch.equal, began[0], ended[0])), "it is learned"
    for before, after in zip(ended, began[1:], strict=False):
        assert all(map(torch.equal, before, after)) == goes_on


@pytest.mark.nightly
@pytest.mark.parametrize("settings", [("method.task_id=key",), ("method.own_pool=true", "method.granularity=rank")])
def test_other_settings_too_end_the_same_after_every_interruption(base, tmp_path, settings):
    whole = toy.whole(base, *MOSES, *settings)
    cfg = toy.compose(toy.data_in(base), tmp_path, *MOSES, *settings)
    resumed, _ = toy.broken_off(cfg)
    assert toy.kept(resumed.directory) == toy.kept(whole.directory)


def test_a_layer_of_which_a_task_uses_no_whole_rank_is_left_as_it_is(base, tmp_path):
    run = toy.run(toy.compose(toy.data_in(base), tmp_path, *MOSES, "method.density=0.001"))
    (method,) = run.methods
    unused = [
        (part, layer)
        for part in method.parts.of.values()
        for layer, mask in part.masks.items()
        if not mask.ranks().any()
    ]
    assert unused, "the case is met"
    for part, layer in unused:
        assert not part.add(layer, torch.ones(2, method.pool.layers[layer].in_features)).any()


def test_what_a_task_moved_and_does_not_use_goes_back_to_the_first_draw(base):
    (method,) = toy.whole(base, *MOSES).methods
    shared = method.shared[POOL]
    for layer, used in shared.used.items():
        for weight, mask, first in zip(
            method.pool.pair(layer, POOL), (used.down, used.up), shared.first[layer], strict=True
        ):
            assert torch.equal(weight[~mask], first[~mask])
            assert not torch.equal(weight[mask], first[mask])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("method.top_k=5", "method.top_k"),
        ("method.density=0", "method.density"),
        ("method.granularity=ranks", "weight, rank"),
        ("method.task_id=keys", "given, key, entropy"),
        ("method.scores=old", "kept, fresh"),
        ("method.router=old", "copied, fresh"),
        ("method.own_pool=no", "own_pool of .*Moses must be true or false; got 'no'"),
        ("method.density=abc", "density of .* must be a number; got 'abc'"),
        ("method.top_k=1.5", "top_k of .* must be a whole number; got 1.5"),
    ],
)
def test_an_unusable_setting_is_refused_before_anything_is_trained(base, tmp_path, setting, told):
    with pytest.raises(Exception, match=told) as refused, patch.object(Moses, "begin_task", side_effect=AssertionError):
        toy.run(toy.compose(toy.data_in(base), tmp_path, *MOSES, setting))
    assert "ConfigError" in type(refused.value).__name__
    assert not list(tmp_path.rglob("ledger.json")), "no run is left that could never end"
