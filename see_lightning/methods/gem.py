"""GEM: one adapter, whose gradients are projected so that the loss on the memory of no past task increases.

Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning*, NeurIPS 2017, arXiv 1706.08840. ``agem.py`` has one
constraint for all past tasks together, this module one for each.

Letters: K past tasks, N weights of one trained tensor.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from see_lightning.config.checks import check_ratio, within
from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def solve_dual(gram_KK: Tensor, products_K: Tensor) -> Tensor:
    r"""The minimum of $\frac12 v^\top P v + q^\top v$ over $v \ge 0$, by an active-set method.

    It is Lawson and Hanson's NNLS (*Solving Least Squares Problems*, 1974, chapter 23), written for the normal equations.

    Args:
        gram_KK: $P = G G^\top$ in fp64, positive semidefinite, with a diagonal of ones.
        products_K: $q = G g$ in fp64, of a $g$ of length 1.

    Returns:
        $v$, (K,). Where $P$ is singular several minima exist, and $G^\top v$ is the same for all of them.

    >>> solve_dual(torch.eye(2).double(), torch.tensor([-3.0, 2.0]).double())
    tensor([3., 0.], dtype=torch.float64)
    """
    v_K = torch.zeros_like(products_K)
    free_K = torch.zeros_like(products_K, dtype=torch.bool)  # the entries that may be above 0
    for _ in range(3 * len(v_K) + 1):
        descent_K = (-gram_KK @ v_K - products_K).masked_fill(free_K, -torch.inf)
        best = int(descent_K.argmax())
        if descent_K[best] <= 1e-12:
            break
        free_K[best] = True
        while free_K.any():
            inverse = torch.linalg.pinv(gram_KK[free_K][:, free_K], rtol=1e-12, hermitian=True)
            target_K = torch.zeros_like(v_K).masked_scatter(free_K, inverse @ -products_K[free_K])
            blocked_K = free_K & (target_K <= 0)
            if not blocked_K.any():
                v_K = target_K
                break
            # Go towards the target until the first entry reaches 0, and hold it there.
            steps_K = (v_K / (v_K - target_K).clamp_min(1e-300)).masked_fill(~blocked_K, torch.inf)
            first = int(steps_K.argmin())
            v_K = v_K + steps_K[first] * (target_K - v_K)
            free_K[first] = False
            v_K = v_K.clamp_min(0) * free_K
    return v_K


def project(gradients: Sequence[Tensor], references: Sequence[Sequence[Tensor]], strength: float) -> list[Tensor]:
    r"""$g + G^\top v$, the gradient nearest to $g$ that points against no row $g_k$ of $G$; $g$ itself if it is one.

    $v$ is the minimum of the dual problem $\frac12 v^\top G G^\top v + (G g)^\top v$ over $v_k \ge \gamma$ (equation 11).

    Args:
        gradients: $g$, in parts.
        references: $g_k$ of each past task, in parts of the same shapes.
        strength: $\gamma$, at least 0. Above 0, a gradient that is changed gets at least this multiple of every $g_k$.

    >>> project([torch.tensor([1.0, -2.0])], [[torch.tensor([0.0, 1.0])], [torch.tensor([1.0, 0.0])]], 0.0)
    [tensor([1., 0.])]
    """
    rows = zip(zip(*references, strict=True), gradients, strict=True)
    parts = [(torch.stack([one.flatten() for one in row_K]), part.flatten()) for row_K, part in rows]
    # The row of g below those of G: one product has all that the dual needs.
    stacked = (torch.cat([refs_KN, part_N[None]]).double() for refs_KN, part_N in parts)
    whole = torch.stack([one @ one.T for one in stacked]).sum(0).cpu()
    gram_KK, products_K, squared = whole[:-1, :-1], whole[:-1, -1], float(whole[-1, -1])
    if not (products_K < 0).any():
        return list(gradients)
    # With v = gamma + w, w is the dual of the projection of g + gamma * (g_1 + ... + g_K).
    products_K = products_K + strength * gram_KK.sum(1)
    squared += strength * float(2 * products_K.sum() - strength * gram_KK.sum())
    norms_K = gram_KK.diagonal().sqrt()
    used_K = norms_K > 0  # a gradient of zeros forbids nothing
    lengths_K, length = norms_K[used_K], max(squared, 0.0) ** 0.5 or 1.0
    scaled_KK = gram_KK[used_K][:, used_K] / torch.outer(lengths_K, lengths_K)
    v_K = torch.full_like(products_K, strength)
    v_K[used_K] += solve_dual(scaled_KK, products_K[used_K] / lengths_K / length) * length / lengths_K
    v_K = v_K.to(gradients[0])
    return [(part_N + v_K @ refs_KN).view_as(one) for (refs_KN, part_N), one in zip(parts, gradients, strict=True)]


class Gem(OneAdapterMethod):
    """Projects the gradient of each step by those of every past task's memory, at the current weights.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's examples in the memory, 0..1; they are drawn once.
        reference_batch: rows of each past task's memory drawn for each step, of all ranks together.
        memory_strength: gamma of ``project``.
    """

    def __init__(self, setup: Setup, *, ratio: float, reference_batch: int, memory_strength: float) -> None:
        super().__init__(setup)
        check_ratio("method.ratio", ratio)
        within("method.reference_batch", reference_batch, 1)
        within("method.memory_strength", memory_strength, 0)
        self.ratio, self.reference_batch, self.memory_strength = ratio, reference_batch, memory_strength
        #: Past task -> rows of its memory.
        self.past: dict[str, list[Example]] = {}

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Takes the memory of each past task, and seeds the draws from it."""
        super().begin_task(task, memory)
        rows = defaultdict(list)
        for example in memory.rehearse(task, ratio=self.ratio, resample="once"):
            rows[example.task].append(example)
        self.past = dict(rows)
        self.draw = random.Random(seed(self.run_seed, task.name, "reference batches"))

    def edit_gradients(self) -> None:
        """Projects where the step would increase the loss on a past task's drawn rows; nothing in the first task."""
        references = []
        for past in self.past.values():
            rows = self.draw.sample(past, min(self.reference_batch, len(past)))
            references += [self.gradients(batch) for batch in self.batches(rows, self.reference_batch)]
        if not references:
            return
        weights = self.trained_weights()
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        for weight, projected in zip(weights, project(gradients, references, self.memory_strength), strict=True):
            weight.grad = projected
