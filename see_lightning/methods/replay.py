"""Experience replay: past examples mixed into the data of every new task. SSR's "RandSel" (arXiv 2403.01244, section 4)."""

from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class Replay(OneAdapterMethod):
    """One adapter, trained on the new task and a share of each past one.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's examples mixed in, 0..1.
        resample: ``per_task`` samples them for every task, ``once`` once for all.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        ratio: float,
        resample: str,
    ) -> None:
        super().__init__(setup)
        self.ratio, self.resample = ratio, resample

    def training_examples(self, task: Task, memory: Memory) -> list[Example]:
        """All rows of the new task and a share of the past ones."""
        return [*task.train, *memory.rehearse(task, ratio=self.ratio, resample=self.resample)]
