"""Experience replay: past examples mixed into every new task. SSR's "RandSel" (arXiv 2403.01244, section 4)."""

from see_lightning.config import OptimConfig
from see_lightning.data.example import Example
from see_lightning.experts.pool import ExpertPool
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task


class Replay(OneAdapterMethod):
    """One adapter that sees a share of each past task again, with its answers.

    Args:
        pool: the base model and its adapter.
        template: how a query is put to the model.
        optim: how one task is trained.
        run_seed: the run's seed.
        ratio: share of each past task's examples mixed in, 0..1.
        draw: ``fresh`` draws them anew for every task, ``fixed`` once.
    """

    def __init__(
        self,
        *,
        pool: ExpertPool,
        template: PromptTemplate,
        optim: OptimConfig,
        run_seed: int,
        ratio: float,
        draw: str,
    ) -> None:
        super().__init__(pool=pool, template=template, optim=optim, run_seed=run_seed)
        self.ratio, self.draw = ratio, draw

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """All of the new, a share of the old."""
        return [*task.train, *memory.rehearse(task, ratio=self.ratio, draw=self.draw)]
