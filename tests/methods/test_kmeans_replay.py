"""k-means against scikit-learn and against all partitions, and the rows that are kept."""

import math
import random
from itertools import product

import pytest
import torch
from sklearn.cluster import KMeans

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.methods.kmeans_replay import KMeansReplay, central_rows, kmeans, spread_starts
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small


def replay(*, seed: int = 0, ratio: float = 0.5, clusters: int = 3) -> KMeansReplay:
    setup = Setup(small.pool(rank=4, targets=["q_proj"]), small.TEMPLATE, OptimConfig(), seed)
    return KMeansReplay(setup, ratio=ratio, clusters=clusters)


def task_of(name: str, definition: str = "Say it.", rows: int = 12) -> Task:
    train = tuple(
        Example(f"{name}-{n}", f"{definition}\n\n{'abc'[n % 3] * (n // 3 + 3)} {n}", "a", name) for n in range(rows)
    )
    return Task(name, train, train[:1], "rouge_l", 8)


def blobs(number: int, *sizes: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(number)
    centres = 3 * torch.randn(len(sizes), 4, generator=draw, dtype=torch.float64)
    return torch.cat(
        [centre + torch.randn(size, 4, generator=draw).double() for centre, size in zip(centres, sizes, strict=True)]
    )


def inertia(points, centres, labels) -> float:
    return (points - centres[labels]).square().sum().item()


@pytest.mark.parametrize("number", range(5))
def test_from_the_same_centres_it_ends_where_scikit_learn_does(number):
    points = blobs(number, 20, 15, 5)
    start = spread_starts(points, 4, random.Random(number))
    theirs = KMeans(4, init=start.numpy(), n_init=1, tol=0, algorithm="lloyd").fit(points.numpy())
    centres, labels = kmeans(points, start)
    assert labels.tolist() == theirs.labels_.tolist()
    torch.testing.assert_close(centres, torch.from_numpy(theirs.cluster_centers_))
    assert len(set(labels.tolist())) == 4


@pytest.mark.parametrize("number", range(3))
def test_the_best_of_some_starts_is_the_best_of_all_partitions(number):
    points = blobs(number, 4, 3)
    best = min(
        sum((points[part] - points[part].mean(0)).square().sum().item() for part in parts if part)
        for labels in product(range(3), repeat=len(points))
        for parts in [[[n for n, label in enumerate(labels) if label == k] for k in range(3)]]
    )
    found = [inertia(points, *kmeans(points, spread_starts(points, 3, random.Random(n)))) for n in range(20)]
    assert min(found) == pytest.approx(best)


def test_starts_are_spread_and_no_point_is_a_start_twice():
    far = torch.cat([torch.zeros(50, 2), torch.full((1, 2), 1e6)]).double()
    for number in range(5):
        starts = spread_starts(far, 9, random.Random(number))
        assert sorted(starts[:, 0].tolist()) == [0, 1e6], "there are two different points"


def test_a_centre_without_points_stays_and_gets_no_row():
    points = torch.tensor([[0.0], [1.0], [2.0]]).double()
    centres, labels = kmeans(points, torch.tensor([[1.0], [99.0]]).double())
    assert centres.tolist() == [[1], [99]]
    assert central_rows(points, centres, labels, 2) == [0, 1]


@pytest.mark.parametrize("number", range(4))
def test_of_each_cluster_the_nearest_rows_are_kept_in_proportion_to_its_size(number):
    points = blobs(number, 20, 12, 8)
    centres, labels = kmeans(points, spread_starts(points, 3, random.Random(number)))
    kept = central_rows(points, centres, labels, 10)
    assert len(set(kept)) == 10
    assert kept == sorted(kept)
    for cluster in range(3):
        rows = (labels == cluster).nonzero()[:, 0].tolist()
        own = sorted(rows, key=lambda row: (points[row] - centres[cluster]).norm().item())
        taken = [row for row in own if row in kept]
        assert taken == own[: len(taken)]
        assert abs(len(taken) - 10 * len(rows) / len(points)) < 1


EQUAL = [3, 9, 12, 18, 21, 27, 30, 36, 42, 45, 51, 57, 62, 66, 72, 77, 83, 89, 92, 98]
FEWER = [1, 17, 19, 23, 25, 27, 28, 32, 35, 36, 37, 40, 43, 44, 47]
MORE = [0, 3, 4, 6, 7, 9, 10, 13, 16, *range(19, 39)]


def bundles(sizes: list[int]) -> torch.Tensor:
    """Points in 20 narrow bundles of directions, of unlike lengths."""
    points = []
    for k, size in enumerate(sizes):
        for n in range(size):
            angle, r = 2 * math.pi * k / 20 + 0.01 * math.sin(12.9898 * (n + 1) + 78.233 * k), 1 + (n + k) % 3
            points.append([r * math.cos(angle), r * math.sin(angle), r * 0.02 * math.sin(5.3 * n + k)])
    return torch.tensor(points)


@pytest.mark.parametrize(
    ("sizes", "authors", "kept"),
    [([5] * 20, EQUAL, 20), ([3, *[1] * 13, 3, 3, 4, 4, 7, 13], FEWER, 15), ([20, *[1] * 19], MORE, 29)],
)
def test_the_rows_are_those_of_the_authors_script_which_keeps_too_few_or_too_many_of_small_clusters(
    sizes, authors, kept, monkeypatch
):
    """custom/niv2-c012/kmeans_selection.py of DeepLearnXMU/SSR, commit 38d2a06: 20 rows are wanted, in 20 clusters."""
    points = bundles(sizes)
    monkeypatch.setattr("see_lightning.methods.kmeans_replay.embed_prompts", lambda pool, ids: points)
    found = replay(seed=1, clusters=20).choose(task_of("sky", rows=len(points)), 20)
    assert (len(found), len(authors)) == (20, kept)
    fewer, more = sorted((set(found), set(authors)), key=len)
    assert fewer <= more


def test_as_many_rows_as_of_replay_are_kept_once_for_all_later_tasks():
    method, memory = replay(ratio=0.3), Memory(0)
    sky, sea, ice = (task_of(name) for name in ("sky", "sea", "ice"))
    assert method.training_examples(sky, memory) == list(sky.train)
    method.end_task(sky, memory)
    memory.add(sky)
    second = method.training_examples(sea, memory)
    assert second[:12] == list(sea.train)
    assert len({row.id for row in second[12:]}) == len(memory.rehearse(sea, ratio=0.3, resample="once")) == 4
    assert {row.task for row in second[12:]} == {"sky"}
    method.end_task(sea, memory)
    memory.add(sea)
    third = method.training_examples(ice, memory)[12:]
    assert third[:4] == second[12:]
    assert [row.task for row in third] == ["sky"] * 4 + ["sea"] * 4


def test_the_choice_depends_on_inputs_seed_and_number_of_clusters_alone():
    chosen = [replay().choose(task_of("sky", words), 4) for words in ("Say it.", "Write it down, please.")]
    assert chosen[0] == chosen[1] == replay().choose(task_of("sky"), 4)
    others = [replay(clusters=clusters).choose(task_of("sky"), 4) for clusters in (1, 2, 12)]
    assert len({tuple(rows) for rows in [chosen[0], *others]}) > 1
    drawn = {tuple(replay(seed=number).choose(task_of("sky"), 4)) for number in range(6)}
    assert len(drawn) > 1


def test_a_restored_method_keeps_the_same_rows_and_without_a_ratio_none():
    method, fresh, memory = replay(), replay(), Memory(0)
    for name in ("sky", "sea"):
        method.end_task(task_of(name), memory)
        memory.add(task_of(name))
        fresh.load_state(name, method.state())
    ice = task_of("ice")
    assert fresh.training_examples(ice, memory) == method.training_examples(ice, memory) != list(ice.train)
    none = replay(ratio=0.0)
    for past in memory.past:
        none.end_task(past, memory)
    assert none.training_examples(ice, memory) == list(ice.train)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": -0.5}, r"method\.ratio is the share of past examples"),
        ({"clusters": 0}, r"method\.clusters must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        replay(**settings)
