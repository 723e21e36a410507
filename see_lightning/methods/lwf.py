"""Learning without forgetting: one adapter, held to what it predicted on the new task's rows before it was trained on them.

Li, Hoiem, *Learning without Forgetting*, ECCV 2016, arXiv 1606.09282. PAPERS.md lists what differs for language models.
"""

from torch import Tensor

from see_lightning.config.checks import within
from see_lightning.methods.distillation import divergence
from see_lightning.methods.loss import answer_loss, label_mean
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import Batch
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class LwF(OneAdapterMethod):
    r"""Adds $\lambda\, T^2\, \mathrm{KL}(p_{t-1} \Vert p_t)$ to the loss, the mean over the answers' tokens.

    $p_{t-1}$ are the predictions of the adapter as the previous task left it, $p_t$ those of the trained one; the temperature
    $T$ softens both. There is no such term in the first task.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        strength: $\lambda$, at least 0.
        temperature: $T$, 0.01 or more.
    """

    TEACHER = "teacher"

    def __init__(self, setup: Setup, *, strength: float, temperature: float) -> None:
        super().__init__(setup)
        within("method.strength", strength, 0)
        within("method.temperature", temperature, 0.01)
        self.strength, self.temperature = strength, temperature
        self.distils = False

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Keeps a frozen copy of the adapter as the teacher."""
        self.distils = bool(memory.past) and self.strength > 0
        if self.distils:
            if not self.pool.has_adapter(self.TEACHER):
                self.pool.add_adapter(self.TEACHER, weights_seed=0)
            self.pool.load_weights(self.TEACHER, self.pool.pairs(self.ADAPTER))
        super().begin_task(task, memory)

    def loss(self, part: Batch) -> Tensor:
        """Cross entropy of the answers, and their distance from the teacher's predictions; the teacher is without dropout."""
        if not self.distils:
            return super().loss(part)
        student_LV = self.pool(part.input_ids_BS, part.attention_mask_BS, part.labels_BS)
        old_L = divergence(self.pool.logits(part, self.TEACHER), student_LV, self.temperature)
        new = answer_loss(student_LV, part.labels_BS, self.optim.loss_reduction)
        old = self.temperature**2 * label_mean(old_L, part.labels_BS, self.optim.loss_reduction)
        return self.finite(new + self.strength * old, part)
