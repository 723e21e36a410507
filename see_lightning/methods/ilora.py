"""I-LoRA: a fast adapter is trained, with rehearsal; a slow one follows it as a moving average, and answers.

Ren et al., *Analyzing and Reducing Catastrophic Forgetting in Parameter Efficient Tuning*, arXiv 2402.18865. PAPERS.md lists
where this differs from the authors' code.

Letters: B rows, S tokens, L labels, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from see_lightning.config.checks import check_ratio, within
from see_lightning.data.example import Example
from see_lightning.methods.loss import answer_loss, label_mean
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.methods.training import copies
from see_lightning.models.sharding import in_step
from see_lightning.tasks.batches import IGNORED, Batch
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def kept_share(step: int, decay: float, *, is_first: bool) -> float:
    """The share of the slow weights that a step keeps.

    In the first task there is nothing to remember, so the slow weights begin as the mean of all that the fast ones have been.

    Args:
        step: of the task, from 1.
        decay: of the moving average, 0..1.
        is_first: whether this is the first task.

    >>> [round(kept_share(step, 0.7, is_first=True), 2) for step in (1, 2, 3)], kept_share(1, 0.7, is_first=False)
    ([0.5, 0.67, 0.7], 0.7)
    """
    return min(decay, step / (step + 1)) if is_first else decay


def interpolate(slow: Sequence[Tensor], fast: Sequence[Tensor], keep: float) -> None:
    r"""$\theta_{slow} \leftarrow k\,\theta_{slow} + (1 - k)\,\theta_{fast}$, in place.

    Args:
        slow: $\theta_{slow}$.
        fast: $\theta_{fast}$, of the same shapes.
        keep: $k$, 0..1.

    >>> slow = torch.tensor([4.0, 0.0])
    >>> interpolate([slow], [torch.tensor([0.0, 8.0])], 0.75)
    >>> slow
    tensor([3., 2.])
    """
    with torch.no_grad():
        torch._foreach_lerp_(list(slow), list(fast), 1 - keep)


def disagreement(fast_LV: Tensor, slow_LV: Tensor) -> Tensor:
    """Mean squared difference of two adapters' logits at each label, (L,).

    >>> disagreement(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    tensor([2., 0.])
    """
    return (fast_LV.float() - slow_LV.float()).square().mean(-1)


class ILora(OneAdapterMethod):
    """Cross entropy on new and rehearsed rows, and on rehearsed ones the squared distance of the fast from the slow adapter.

    The slow adapter is ``ADAPTER``: it answers and is saved. The fast one is kept in the state; later tasks go on from it.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's examples mixed in, 0..1.
        resample: ``per_task`` samples them for every task, ``once`` once for all.
        decay: share of the slow weights that each step keeps, 0..1.
        consistency: weight of the distance from the slow adapter, at least 0.
    """

    traits = Traits()
    FAST = "fast"

    def __init__(self, setup: Setup, *, ratio: float, resample: str, decay: float, consistency: float) -> None:
        super().__init__(setup)
        check_ratio("method.ratio", ratio)
        within("method.decay", decay, 0, 1)
        within("method.consistency", consistency, 0)
        self.ratio, self.resample, self.decay, self.consistency = ratio, resample, decay, consistency

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """All rows of the new task and a share of the past ones."""
        return [*task.train, *memory.rehearse(task, ratio=self.ratio, resample=self.resample)]

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Trains the fast adapter; in the first task both begin equal."""
        super().begin_task(task, memory)
        if not self.pool.has_adapter(self.FAST):
            self.pool.add_adapter(self.FAST, weights_seed=0)
            self.pool.load_weights(self.FAST, self.pool.pairs(self.ADAPTER))
        self.pool.train_only(self.FAST)
        self.task, self.is_first, self.step = task.name, not memory.past, 0

    def loss(self, part: Batch) -> Tensor:
        """Cross entropy of all answers, and the distance from the slow adapter at those of past tasks.

        A past token weighs the same in both, so the size of a micro-batch does not matter.
        """
        if self.is_first or not self.consistency or not self.ratio:
            return super().loss(part)
        rows = [row for row, task in enumerate(part.tasks) if task != self.task]
        fast_LV = self.pool(part.input_ids_BS, part.attention_mask_BS, part.labels_BS)
        loss = answer_loss(fast_LV, part.labels_BS, self.optim.loss_reduction)
        with torch.no_grad(), in_step(self.pool.model):  # ranks differ in whether they have past rows
            slow_LV = self.pool.logits(_selected(part, rows), self.ADAPTER) if rows else None
        if slow_LV is not None:
            chosen_BS = part.labels_BS != IGNORED
            is_past_B = torch.zeros(len(chosen_BS), dtype=torch.bool, device=chosen_BS.device)
            is_past_B[rows] = True
            is_past_L = is_past_B[:, None].expand_as(chosen_BS)[chosen_BS]
            apart_L = torch.zeros(len(fast_LV), device=fast_LV.device)
            apart_L = apart_L.masked_scatter(is_past_L, disagreement(fast_LV[is_past_L], slow_LV))
            loss = loss + self.consistency * label_mean(apart_L, part.labels_BS, self.optim.loss_reduction)
        return self.finite(loss, part)

    def after_step(self) -> None:
        """Moves the slow adapter towards the fast one."""
        self.step += 1
        slow, fast = (self.pool.weights_of([name]) for name in (self.ADAPTER, self.FAST))
        interpolate(slow, fast, kept_share(self.step, self.decay, is_first=self.is_first))

    def validation_logits(self, part: Batch) -> Tensor:
        """Logits under the slow adapter, which answers."""
        return self.pool.logits(part, self.ADAPTER)

    def snapshot(self) -> Callable[[], None]:
        """Both adapters."""
        return copies([*self.trained_weights(), *self.pool.weights_of([self.ADAPTER])])

    def state(self) -> dict[str, Tensor]:
        """The fast adapter: A and B of each layer."""
        return dict(self.pool.matrices(self.FAST))

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The fast adapter of the last task replaces those before it."""
        if not self.pool.has_adapter(self.FAST):
            self.pool.add_adapter(self.FAST, weights_seed=0)
        pairs = {layer: (tensors[f"{layer}.A"], tensors[f"{layer}.B"]) for layer in self.pool.layers}
        self.pool.load_weights(self.FAST, pairs)


def _selected(part: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch."""
    ids_BS, mask_BS, labels_BS = (
        whole_BS[list(rows)] for whole_BS in (part.input_ids_BS, part.attention_mask_BS, part.labels_BS)
    )
    return Batch(ids_BS, mask_BS, labels_BS, [part.ids[row] for row in rows])
