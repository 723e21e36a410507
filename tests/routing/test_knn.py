"""Nearest neighbours against a brute-force search."""

from collections import Counter

import numpy as np
import pytest
import torch

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.setup import Setup
from see_lightning.methods.stl import Stl
from see_lightning.routing.knn import Knn
from tests.adapters import small

SIZES = {"sky": 9, "sea": 14, "ice": 3}


@pytest.fixture
def method() -> Stl:
    return Stl(Setup(small.pool("sky"), small.TEMPLATE, OptimConfig(), 0)).eval()


def states(number: int, draw: int) -> torch.Tensor:
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(draw))


def by_hand(query: np.ndarray, kept: dict[str, np.ndarray], k: int, metric: str) -> str:
    """The task of the vote; of equal votes that of the nearest prompt."""
    found = []
    for name, rows in kept.items():
        for row in rows:
            cosine = float(query @ row / np.linalg.norm(query) / np.linalg.norm(row))
            found.append((-cosine if metric == "cosine" else float(np.linalg.norm(query - row)), name))
    found.sort()
    votes = Counter(name for _, name in found[:k])
    most = max(votes.values())
    return next(name for _, name in found if votes[name] == most)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 2, 5, 100])
def test_the_vote_is_that_of_a_brute_force_search(method, k, metric):
    router = Knn(method, k=k, metric=metric)
    for draw, (name, number) in enumerate(SIZES.items()):
        router.fit(name, states(number, draw))
    queries, kept = states(60, 9), {name: one["states"].numpy() for name, one in router.kept.items()}
    found = [list(SIZES)[place] for place in router.score(queries).argmax(1)]
    assert found == [by_hand(query, kept, k, metric) for query in queries.numpy()]
    assert len(set(found)) > (k < 100)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_of_equally_near_prompts_those_of_the_older_task_have_the_votes(method, k):
    router = Knn(method, k=k)
    for name in ("sky", "sea"):
        router.fit(name, torch.eye(4).repeat(5, 1))
    assert router.score(states(50, 9)).argmax(1).tolist() == [0] * 50


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_within_one_vote_a_farther_query_has_a_lower_score(method, metric):
    router = Knn(method, k=3, metric=metric)
    router.fit("sky", torch.eye(4)[:3])
    near, far = torch.tensor([[1.0, 0.1, 0.0, 0.0]]), torch.tensor([[1.0, 0.1, 0.0, 5.0]])
    assert 3 < float(router.score(far)) < float(router.score(near)) <= 3.5


def test_the_first_different_prompts_are_kept(method):
    prompts = [small.TEMPLATE.prompt_ids(text) for text in ("a", "b", "a", "c", "d")]
    router = Knn(method, prompts_per_task=3)
    router.learn("sky", prompts)
    assert torch.equal(router.kept["sky"]["states"], router.embed([prompts[n] for n in (0, 1, 3)], 1))
    assert router.nbytes() == 4 * 3 * method.pool.model.config.hidden_size


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"k": 0}, "router.k"),
        ({"metric": "manhattan"}, "cosine, euclidean"),
        ({"prompts_per_task": 0}, "prompts_per_task"),
    ],
)
def test_an_unusable_setting_is_refused(method, setting, told):
    with pytest.raises(ConfigError, match=told):
        Knn(method, **setting)
