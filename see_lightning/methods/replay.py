"""Experience replay: past examples mixed into every new task. SSR's "RandSel" (arXiv 2403.01244, section 4)."""

from see_lightning.data.example import Example
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class Replay(OneAdapterMethod):
    """One adapter that sees a share of each past task again, with its answers.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's examples mixed in, 0..1.
        resample: ``per_task`` draws them for every task, ``once`` once for all.
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
        """All of the new, a share of the old."""
        return [*task.train, *memory.rehearse(task, ratio=self.ratio, resample=self.resample)]
