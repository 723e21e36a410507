r"""TreeLoRA: one adapter, held near those of earlier tasks with similar gradients found by a bandit in a tree (ICML 2025).

Qian et al., *TreeLoRA: Efficient Continual Learning via Layer-Wise LoRAs Guided by a Hierarchical Gradient-Similarity Tree*,
arXiv 2506.10355. Of the paper only the abstract was available; PAPERS.md tells what is taken from the authors' code.

Letters: R rank, I size of a layer's input.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from see_lightning.config.checks import within
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

GRADIENT, WEIGHTS = "gradient ", "weights "  # begin the names of tensors in a task's state; a layer's name follows


@dataclass(frozen=True)
class Node:
    """Tasks whose gradients are similar in all layers above.

    Args:
        tasks: their numbers, ascending.
        children: the two halves into which their gradients at the node's layer split them; none in a leaf.
    """

    tasks: tuple[int, ...]
    children: tuple["Node", ...] = ()


def grow(tasks: Sequence[int], gradients: Sequence[Sequence[Tensor]], layer: int = 0) -> Node:
    r"""The tree of some tasks: a node at depth $k$ splits its tasks at the median of $\langle g_{i,k}, \bar g_k \rangle$.

    $\bar g_k$ is the mean of the node's gradients at layer $k$. The half with the larger products comes first; with an odd
    number it has one task more, and of equal products the earlier task comes first.

    Args:
        tasks: numbers of the tasks.
        gradients: of each task, its gradients at each layer, $g_{i,k}$.
        layer: at which the first split is made.

    >>> tree = grow([0, 1, 2], [[torch.tensor([1.0, 0.0])], [torch.tensor([0.0, -1.0])], [torch.tensor([1.0, 0.1])]])
    >>> [child.tasks for child in tree.children]
    [(0, 2), (1,)]
    """
    if len(tasks) == 1 or layer == len(gradients[0]):
        return Node(tuple(sorted(tasks)))
    rows = torch.stack([gradients[task][layer].flatten() for task in tasks])
    order = (rows @ rows.mean(0)).sort(descending=True, stable=True).indices.tolist()
    half = (len(tasks) + 1) // 2
    halves = ([tasks[place] for place in sorted(part)] for part in (order[:half], order[half:]))
    return Node(tuple(sorted(tasks)), tuple(grow(part, gradients, layer + 1) for part in halves))


def distance(gradients: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    r"""Half the cosine distance of two gradients, averaged over the layers, 0..1: $\frac1L \sum_k (1 - \cos(g_k, h_k)) / 2$.

    Args:
        gradients: $g_k$ of each of the L layers.
        others: $h_k$, of the same shapes. A cosine with zeros is 0.

    >>> distance([torch.tensor([2.0, 0.0]), torch.tensor([1.0])], [torch.tensor([1.0, 0.0]), torch.tensor([-3.0])])
    tensor(0.5000)
    """
    pairs = zip(gradients, others, strict=True)
    return (1 - torch.stack([cosine_similarity(g.flatten(), h.flatten(), dim=0) for g, h in pairs])).mean() / 2


def lower_bound(mean: float, pulls: int, step: int, steps: int) -> float:
    r"""$\hat\mu - \sqrt{\ln(2 S (s + 1)(s + 2)) / (2 n)}$, Hoeffding's bound for values in 0..1; $-\infty$ for $n = 0$.

    Args:
        mean: $\hat\mu$ of the observed values.
        pulls: n, their number.
        step: s, from 0.
        steps: S, of the task.

    >>> round(lower_bound(0.5, 8, 0, 1), 4)
    0.2056
    """
    return mean - math.sqrt(math.log(2 * steps * (step + 1) * (step + 2)) / (2 * pulls)) if pulls else -math.inf


class Search:
    """A bandit in the tree: each step goes from the root to a leaf, always to the child with the smallest lower bound.

    Args:
        root: of the tree.
        steps: S, see ``lower_bound``.
    """

    def __init__(self, root: Node, steps: int) -> None:
        self.root, self.steps = root, steps
        self.pulls: Counter[Node] = Counter()
        self.sums: dict[Node, float] = {}

    def path(self) -> list[Node]:
        """The nodes from the root to the leaf of this step; of equal bounds the first child's wins."""
        path = [self.root]
        while path[-1].children:
            path.append(min(path[-1].children, key=self._bound))
        return path

    def observe(self, path: Sequence[Node], value: float) -> None:
        """Takes up the distance that was found at the leaf of a path, for all nodes on it."""
        for node in path:
            self.pulls[node] += 1
            self.sums[node] = self.sums.get(node, 0.0) + value

    def _bound(self, node: Node) -> float:
        pulls = self.pulls[node]
        return lower_bound(self.sums.get(node, 0.0) / max(1, pulls), pulls, self.pulls[self.root], self.steps)


class TreeLora(OneAdapterMethod):
    r"""Adds $\lambda \frac sS \cdot \frac1L \sum_k 1 - \cos(A_k, \bar A_k)$ to the loss of step $s$ of $S$.

    $\bar A_k$ is the mean of the earlier tasks' A in layer $k$ over the tasks of a node: of the path's node at depth $k$, and
    of its leaf in the layers below. So the first layers are held near those of many tasks, and the others near those of the
    most similar one.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        strength: $\lambda$.
    """

    def __init__(self, setup: Setup, *, strength: float) -> None:
        super().__init__(setup)
        within("method.strength", strength, 0)
        self.strength, self.step, self.steps = strength, 0, 1
        #: Of each past task, by layer: the gradient of A at the end of the task, and A itself, (R, I).
        self.gradients_of: dict[str, dict[str, Tensor]] = {}
        self.weights_of: dict[str, dict[str, Tensor]] = {}
        self.search: Search | None = None
        self.path: list[Node] = []
        self._targets: list[Tensor] = []

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Grows the tree of all past tasks."""
        super().begin_task(task, memory)
        self._begin_search(steps=1)

    def on_train_start(self) -> None:
        """Tells the search the number of steps."""
        super().on_train_start()
        self._begin_search(int(self.trainer.estimated_stepping_batches))

    def _begin_search(self, steps: int) -> None:
        gradients = [list(of.values()) for of in self.gradients_of.values()]
        self.step, self.steps, self.path = 0, steps, []
        self.search = Search(grow(range(len(gradients)), gradients), steps) if gradients else None
        self._choose()

    def _choose(self) -> None:
        """Sets the path of the next step, and the weights that it holds the adapter near to."""
        before, self.path = self.path, self.search.path() if self.search else []
        if self.path and self.path != before:
            earlier = list(self.weights_of.values())
            self._targets = [
                torch.stack([earlier[task][layer] for task in self._node(depth).tasks]).mean(0)
                for depth, layer in enumerate(self.pool.layers)
            ]

    def _node(self, depth: int) -> Node:
        return self.path[min(depth, len(self.path) - 1)]

    def penalty(self) -> Tensor | None:
        """The distance from the adapters that the path names; None in the first task."""
        if self.search is None:
            return None
        share = min(1.0, self.step / self.steps)
        return self.strength * share * 2 * distance(self._a(), self._targets)

    def edit_gradients(self) -> None:
        """Observes the distance between the gradient of the task's loss and that of the path's leaf."""
        if self.search is None:
            return
        with torch.enable_grad():
            penalty = self.penalty()
            assert penalty is not None
            of_penalty = torch.autograd.grad(penalty, self._a())
        own = [
            (torch.zeros_like(a) if a.grad is None else a.grad) - part
            for a, part in zip(self._a(), of_penalty, strict=True)
        ]
        past = [list(of.values()) for of in self.gradients_of.values()]
        leaf = [torch.stack(layer).mean(0) for layer in zip(*(past[t] for t in self.path[-1].tasks), strict=True)]
        self.search.observe(self.path, distance(own, leaf).item())

    def after_step(self) -> None:
        """Chooses the path of the next step."""
        self.step += 1
        self._choose()

    def end_task(self, task: Task, memory: Memory) -> None:
        """Keeps the adapter's A, and the gradient of A on all training rows."""
        size = self.optim.global_batch_size
        total = {layer: torch.zeros_like(a) for layer, a in zip(self.pool.layers, self._a(), strict=True)}
        weights = {id(weight): place for place, weight in enumerate(self.trained_weights())}
        for number, batch in enumerate(self.batches(task.train, size)):
            found, rows = self.gradients(batch), min(size, len(task.train) - number * size)
            for layer, a in zip(self.pool.layers, self._a(), strict=True):
                total[layer] += rows / len(task.train) * found[weights[id(a)]]
        self._keep(task.name, total, dict(zip(self.pool.layers, self._a(), strict=True)))

    def _a(self) -> list[Tensor]:
        return [a_RI for a_RI, _ in self.pool.pairs(self.ADAPTER).values()]

    def _keep(self, task: str, gradients: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
        self.gradients_of[task] = gradients
        self.weights_of[task] = {layer: a_RI.detach().clone() for layer, a_RI in weights.items()}

    def state(self) -> dict[str, Tensor]:
        """Gradients and A of the newest task; those of earlier tasks are in their own states."""
        *_, task = self.weights_of or [""]
        kept = ((GRADIENT, self.gradients_of.get(task, {})), (WEIGHTS, self.weights_of.get(task, {})))
        return {begin + layer: tensor for begin, of in kept for layer, tensor in of.items()}

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """Adds a task's gradients and A."""
        self._keep(
            task, *({layer: tensors[begin + layer] for layer in self.pool.layers} for begin in (GRADIENT, WEIGHTS))
        )

    def storage(self) -> dict[str, int]:
        """``weights``: the adapter; ``state``: gradients and A of all tasks."""
        kept = [*self.gradients_of.values(), *self.weights_of.values()]
        one = self.pool.adapter_bytes(self.ADAPTER)
        return {"pool": one, "weights": one, "state": sum(tensor.nbytes for of in kept for tensor in of.values())}

    def report(self) -> dict[str, Any]:
        """``similar``: how often each earlier task, or group of them in a leaf, was the end of the path."""
        names = list(self.weights_of)
        pulls = self.search.pulls if self.search else Counter()
        leaves = {node: number for node, number in pulls.items() if not node.children}
        return {"similar": {"+".join(names[task] for task in node.tasks): number for node, number in leaves.items()}}
