"""SEMA: who gets an expert, who answers, and what is kept."""

import json

import pytest
import torch

from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.methods.method import Assignment
from see_lightning.methods.sema import Sema
from see_lightning.methods.setup import Setup
from see_lightning.routing.novelty import Gaussian
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def task(name: str, query: str, numbers: range = range(100, 108)) -> Task:
    rows = tuple(Example(f"{name}-{i}", query.format(i), "yes", name) for i in numbers)
    return Task(name, rows, rows[:1], "rouge_l", 8)


SKY, SEA = task("sky", "sky {} blue?"), task("sea", "How deep, {}, is the sea")
MIST = task("mist", "sky {} blue?", range(200, 206))  # the sky again


@pytest.fixture
def make(make_pool, template):
    """The method around a fresh pool, having learned some tasks; experts' weights are moved off their first ones."""

    def made(*tasks: Task, threshold: float = 2.0, descriptor: str = "gaussian", reject_above: float = 0.0) -> Sema:
        method = Sema(
            Setup(make_pool(), template, OptimConfig(), 0),
            threshold=threshold, descriptor=descriptor, reject_above=reject_above,
        ).eval()  # fmt: skip
        for one in tasks:
            learn(method, one)
        return method

    return made


def learn(method: Sema, one: Task) -> Assignment:
    """What a run does, without the training."""
    given = method.assign(one)
    if given.expert == one.name:
        method.begin_task(one, Memory(0))
        for parameter in method.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(one.name)))
        method.end_task(one, Memory(0))
    return given


def states(method: Sema, one: Task) -> torch.Tensor:
    return embed_prompts(method.pool, [method.template.prompt_ids(example.prompt) for example in one.train])


@pytest.mark.parametrize("descriptor", ["gaussian", "autoencoder"])
def test_only_a_task_that_nothing_explains_gets_an_expert(make, descriptor):
    method = make(descriptor=descriptor)
    given = [learn(method, one) for one in (SKY, SEA, MIST)]
    assert [one.expert for one in given] == ["sky", "sea", "sky"]
    assert [list(one.z) for one in given] == [[], ["sky"], ["sky", "sea"]]
    assert method.pool.names == list(method.descriptors) == ["sky", "sea"]


def test_a_task_is_as_new_as_its_prompts_are_on_average(make):
    method = make(SKY, SEA)
    assert method.assign(MIST).z == {
        name: pytest.approx(float(Gaussian.of(states(method, one), 0).z(states(method, MIST)).mean()), abs=1e-4)
        for name, one in (("sky", SKY), ("sea", SEA))
    }


@pytest.mark.parametrize("descriptor", ["gaussian", "autoencoder"])
def test_a_prompt_that_comes_twice_counts_once(make, descriptor):
    """Its twin would lie at the same place, and all distances among own prompts would seem small."""
    twice = Task("sky", tuple(row for row in SKY.train for _ in range(2)), SKY.test, "rouge_l", 8)
    once, doubled = (make(one, descriptor=descriptor).descriptors["sky"].tensors for one in (SKY, twice))
    assert all(torch.equal(once[name], doubled[name]) for name in once)


def test_the_threshold_itself_is_not_exceeded(make):
    z = make(SKY).assign(SEA).z["sky"]
    assert z > 2
    for threshold, expert in ((z, "sky"), (z - 0.001, "sea")):
        assert make(SKY, threshold=threshold).assign(SEA).expert == expert


def test_a_descriptor_does_not_move_when_others_come(make):
    method = make(SKY)
    before = {name: tensor.clone() for name, tensor in method.descriptors["sky"].tensors.items()}
    for one in (SEA, MIST):
        learn(method, one)
    assert all(torch.equal(before[name], tensor) for name, tensor in method.descriptors["sky"].tensors.items())


def test_each_query_goes_to_the_expert_to_which_it_is_least_new(make, ask):
    method = make(SKY, SEA)
    batch = ask(["sky 333 blue?", "How deep, 3, is the sea", "sky 4 blue?", "Sing!"])
    with torch.inference_mode():
        adapters, answers = method.route(batch), method.answer(batch)
        assert adapters[:3] == ["sky", "sea", "sky"]
        z = {name: known.z(embed_prompts(method.pool, batch.prompts)) for name, known in method.descriptors.items()}
        assert adapters == ["sky" if sky <= sea else "sea" for sky, sea in zip(z["sky"], z["sea"], strict=True)]
        for row, answer in enumerate(answers):
            (alone,) = method.generate_as(adapters[row], batch.select([row]))
            assert answer == alone
    assert {answer.expert for answer in answers} == {"sky", "sea"}


def test_reading_queries_to_find_their_expert_is_counted(make, ask):
    method, batch = make(SKY, SEA), ask(["sky 1 blue?", "How deep, 3, is the sea", "Sing!"])
    with torch.inference_mode():
        method.route(batch)
        assert method.counts["prefills"] == 3
        method.answer(batch)
    assert method.counts["prefills"] == 9, "read to be dealt, and once more to be answered"


def test_a_query_that_is_too_new_to_all_goes_to_the_base_model(make, ask):
    batch = ask(["sky 333 blue?", "Sing!", "How deep, 3, is the sea", "one, two"])
    method = make(SKY, SEA)
    least = torch.stack(
        [known.z(embed_prompts(method.pool, batch.prompts)) for known in method.descriptors.values()]
    ).amin(0)
    near, far = sorted(least.tolist())[1:3]
    nearest = method.route(batch)
    method = make(SKY, SEA, reject_above=(near + far) / 2)
    with torch.inference_mode():
        expected = [
            adapter if z <= method.reject_above else None for adapter, z in zip(nearest, least.tolist(), strict=True)
        ]
        assert method.route(batch) == expected
        assert sorted(map(str, expected)).count("None") == 2
        assert [answer.expert for answer in method.answer(batch)] == [adapter or "base" for adapter in expected]


@pytest.mark.parametrize("descriptor", ["gaussian", "autoencoder"])
def test_what_was_saved_after_each_task_is_taken_up_again(make, ask, tmp_path, descriptor):
    tasks = (SKY, MIST, SEA)
    method = make(descriptor=descriptor)
    for one in tasks:
        learn(method, one)
        method.save(one.name, tmp_path / one.name)
    kept = {"adapter_config.json", "adapter_model.safetensors", "descriptor.safetensors", "given.json"}
    assert {path.name for path in (tmp_path / "sea").iterdir()} == kept
    assert [path.name for path in (tmp_path / "mist").iterdir()] == ["given.json"]
    assert json.loads((tmp_path / "mist" / "given.json").read_text())["expert"] == "sky"
    again = make(descriptor=descriptor)
    for one in tasks:
        again.restore(one.name, tmp_path / one.name)
        again.end_task(one, Memory(0))  # as a run does that refuses otherwise: nothing is found anew
        again.save(one.name, tmp_path / "again" / one.name)
        for path in (tmp_path / one.name).iterdir():
            assert (tmp_path / "again" / one.name / path.name).read_bytes() == path.read_bytes()
    batch = ask(["sky 1 blue?", "How deep, 3, is the sea", "Sing!"])
    with torch.inference_mode():
        assert again.answer(batch) == method.answer(batch)
    assert again.given == method.given
    assert again.assign(MIST) == method.assign(MIST)


def test_storage_counts_experts_and_descriptors(make):
    method = make(SKY)
    first = method.storage()
    hidden = method.pool.model.config.hidden_size
    assert first["pool"] == first["weights"] == method.pool.adapter_bytes("sky")
    assert first["descriptors"] == 4 * (hidden * hidden + hidden + 2)
    learn(method, MIST)
    assert method.storage() == first, "what is explained takes no room"
    learn(method, SEA)
    assert method.storage() == {"pool": first["pool"], **{part: 2 * first[part] for part in ("weights", "descriptors")}}


def test_a_task_of_fewer_than_four_different_prompts_is_refused_by_name(make):
    same = Task("same", SKY.train[:3] + SKY.train[:1] * 5, SKY.test, "rouge_l", 8)
    with pytest.raises(ConfigError, match="needs 4 different ones for training; same has 3"):
        make().assign(same)
    four = Task("four", SKY.train[:4], SKY.test, "rouge_l", 8)
    assert make().assign(four).expert == "four"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"descriptor": "gauss"}, "one of gaussian, autoencoder; got 'gauss'"),
        ({"reject_above": -1.0}, "method.reject_above must be"),
    ],
)
def test_an_unusable_setting_is_refused(make, setting, told):
    with pytest.raises(ConfigError, match=told):
        make(**setting)
