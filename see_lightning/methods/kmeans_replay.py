"""Replay of the rows nearest to the centres of clusters of a task's inputs. SSR's "KMeansSel" (arXiv 2403.01244, section 4).

Letters: P rows of a task, K clusters, H hidden states.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.checks import check_ratio, within
from see_lightning.data.example import Example
from see_lightning.methods.inscl import deal
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory, num_rehearsed
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task
from see_lightning.tasks.variants import definition, input_only

MOST_STEPS = 300  # of Lloyd's algorithm, which ends by itself in far fewer


def spread_starts(points_PH: Tensor, clusters: int, draw: random.Random) -> Tensor:
    """Points drawn as start centres, (K, H), each in proportion to its squared distance from those before it (k-means++).

    Arthur and Vassilvitskii, *k-means++: The Advantages of Careful Seeding*, SODA 2007.

    Args:
        points_PH: at least one.
        clusters: number of centres; fewer are drawn if there are fewer different points.
        draw: random numbers.
    """
    chosen = [draw.randrange(len(points_PH))]
    squared_P = torch.full((len(points_PH),), float("inf"), dtype=points_PH.dtype)
    while len(chosen) < clusters:
        squared_P = squared_P.minimum((points_PH - points_PH[chosen[-1]]).square().sum(1))
        if not squared_P.any():
            break
        chosen += draw.choices(range(len(points_PH)), squared_P.tolist())
    return points_PH[chosen]


def kmeans(points_PH: Tensor, start_KH: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm: points go to their nearest centre, centres to the mean of their points, until no point changes.

    Args:
        points_PH: the points.
        start_KH: the centres before the first step; one that loses all points stays where it is.

    Returns:
        The centres, (K, H), and the number of each point's centre, (P,).

    >>> kmeans(torch.tensor([[0.0], [1.0], [8.0], [9.0]]), torch.tensor([[0.0], [1.0]]))
    (tensor([[0.5000],
            [8.5000]]), tensor([0, 0, 1, 1]))
    """
    centres_KH, labels_P = start_KH, torch.full((len(points_PH),), -1)
    for _ in range(MOST_STEPS):
        new_P = torch.cdist(points_PH, centres_KH, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        if torch.equal(new_P, labels_P):
            break
        labels_P, member_PK = new_P, one_hot(new_P, len(centres_KH)).to(points_PH)
        size_K1 = member_PK.sum(0)[:, None]
        centres_KH = torch.where(size_K1 > 0, member_PK.T @ points_PH / size_K1.clamp_min(1), centres_KH)
    return centres_KH, labels_P


def central_rows(points_PH: Tensor, centres_KH: Tensor, labels_P: Tensor, number: int) -> list[int]:
    """The rows nearest to their own centre: of each cluster a share of ``number`` in proportion to its size.

    Args:
        points_PH: a point for each row.
        centres_KH: of the clusters.
        labels_P: the cluster of each point.
        number: of rows, at most P.

    Returns:
        Their numbers, in increasing order.

    >>> points, labels = torch.tensor([[0.0], [1.0], [5.0], [9.0]]), torch.tensor([0, 0, 0, 1])
    >>> central_rows(points, torch.tensor([[2.0], [9.0]]), labels, 3)
    [0, 1, 3]
    """
    distance_P = (points_PH - centres_KH[labels_P]).norm(dim=1)
    clusters = [(labels_P == cluster).nonzero()[:, 0] for cluster in range(len(centres_KH))]
    sizes = [len(rows) for rows in clusters]
    rows = []
    for members, share in zip(clusters, deal(number, sizes, sizes), strict=True):
        rows += members[distance_P[members].argsort(stable=True)[:share]].tolist()
    return sorted(rows)


def typical(
    pool: ExpertPool,
    template: PromptTemplate,
    inputs: Sequence[str],
    number: int,
    *,
    clusters: int,
    draw: random.Random,
) -> list[int]:
    """The numbers of the inputs nearest to the centres of clusters of the base model's normalised features.

    Args:
        pool: has the base model.
        template: turns a text into token ids.
        inputs: texts, at least one.
        number: of inputs to choose, at most all.
        clusters: number of clusters.
        draw: for the start centres.
    """
    ids = [template.text_ids(text) or template.prompt_ids(text) for text in inputs]
    points_PH = normalize(embed_prompts(pool, ids), dim=1).double().cpu()
    return central_rows(points_PH, *kmeans(points_PH, spread_starts(points_PH, clusters, draw)), number)


class KMeansReplay(OneAdapterMethod):
    """One adapter, trained on the new task and on the most typical rows of each past one, which are chosen once.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's rows that is kept and mixed in, 0..1.
        clusters: number of clusters of a task's inputs, at least 1.
    """

    def __init__(self, setup: Setup, *, ratio: float, clusters: int) -> None:
        super().__init__(setup)
        check_ratio("method.ratio", ratio)
        within("method.clusters", clusters, 1)
        self.ratio, self.clusters = ratio, clusters
        #: By past task, the places of its kept rows among its training rows.
        self.kept: dict[str, Tensor] = {}

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """All rows of the new task and the kept ones of the past."""
        return [*task.train, *(past.train[place] for past in memory.past for place in self.kept[past.name].tolist())]

    def end_task(self, task: Task, memory: Memory) -> None:
        """Chooses the rows of the task that are kept."""
        number = num_rehearsed(self.ratio, len(task.train))
        rows = self.choose(task, number) if number else []
        self.kept[task.name] = torch.tensor(rows, dtype=torch.long, device=self.pool.device())

    def choose(self, task: Task, number: int) -> list[int]:
        """The places of a task's most typical rows.

        Args:
            task: the task.
            number: of rows, at most all.
        """
        inputs = input_only(task.train, definition(task.train)) if definition(task.train).strip() else task.train
        draw = random.Random(seed(self.run_seed, task.name, "clusters"))
        texts = [one.prompt for one in inputs]
        return typical(self.pool, self.template, texts, number, clusters=self.clusters, draw=draw)

    def state(self) -> dict[str, Tensor]:
        """The places of the kept rows of all past tasks."""
        return {f"rows {task}": places for task, places in self.kept.items()}

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The places kept after a task, those of earlier tasks included."""
        self.kept = {name.removeprefix("rows "): places for name, places in tensors.items()}
