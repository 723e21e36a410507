"""The part that methods with one LoRA adapter for each task share, where the sum of all adapters answers."""

from pathlib import Path

from see_lightning.adapters import files
from see_lightning.adapters.composites import GrowingSum
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class SummedMethod(OneAdapterMethod):
    """Adds an adapter for each task; those of earlier tasks are frozen.

    Args:
        setup: model, template, optimizer settings and seed of the run.
    """

    traits = Traits()

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        #: Adapters, the oldest task's first.
        self.tasks: list[str] = []

    def begin_task(self, task: Task, memory: Memory) -> None:
        """A new adapter beside the earlier ones, which are frozen."""
        self._add(task.name, self.weights_seed(task.name))
        self.pool.train_only(self.ADAPTER, task.name)

    def _add(self, task: str, weights_seed: int) -> None:
        self.pool.add_adapter(task, weights_seed)
        self.tasks.append(task)
        self.pool.register(self.ADAPTER, GrowingSum(self.pool, self.tasks))

    def storage(self) -> dict[str, int]:
        """``weights``: the adapters of all tasks; the measure is one of them; ``state`` if there is one."""
        sizes = [self.pool.adapter_bytes(task) for task in self.tasks]
        state = sum(tensor.nbytes for tensor in self.state().values())
        return {"pool": sizes[0], "weights": sum(sizes), **({"state": state} if state else {})}

    def restore(self, task: str, folder: Path) -> None:
        """The folder holds the adapters of all tasks so far side by side: the last ranks are this task's."""
        self._add(task, weights_seed=0)
        pairs, rank = files.read(self.pool, self.ADAPTER, folder), self.pool.adapter.rank
        self.pool.load_weights(task, {layer: (a_RI[-rank:], b_OR[:, -rank:]) for layer, (a_RI, b_OR) in pairs.items()})
        if tensors := files.load_state(folder, self.pool.device()):
            self.load_state(task, tensors)
