"""SEMA: Self-Expansion with Mixture of Adapters (Wang et al., CVPR 2025, arXiv 2403.18886), in the form of language models.

A new task trains an expert only if its prompts are far from those of every earlier expert; otherwise the nearest expert is
assigned to it. PAPERS.md lists the differences from the paper, which has adapters in each layer of a vision model.
"""

from functools import cached_property
from pathlib import Path

from torch import Tensor

from see_lightning.adapters.files import read_tensors, write_tensors
from see_lightning.config.checks import one_of, within
from see_lightning.errors import ConfigError
from see_lightning.methods.assignments import read_given, write_given
from see_lightning.methods.method import Assignment, ExpertMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.routing.density import Density
from see_lightning.routing.novelty import DESCRIPTORS, FEWEST, Descriptor
from see_lightning.routing.router import Router
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

FILE = "descriptor.safetensors"  # in an expert's folder


class Sema(ExpertMethod):
    """Trains an expert only for a new kind of prompt, by densities of the base model's last hidden states.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        threshold: a task trains an expert if the mean z of its prompts exceeds this under every density.
        descriptor: ``gaussian``, in closed form, or ``autoencoder``, as in the paper.
        reject_above: queries whose smallest z exceeds this go to the base model; 0 for none.
    """

    traits = Traits(has_experts=True, router=Density, may_reuse=True, after_training=frozenset({"reject_above"}))

    def __init__(
        self,
        setup: Setup,
        *,
        threshold: float,
        descriptor: str,
        reject_above: float,
    ) -> None:
        super().__init__(setup)
        within("method.reject_above", reject_above, 0)
        one_of("method.descriptor", descriptor, DESCRIPTORS)
        self.threshold, self.reject_above = threshold, reject_above
        #: Densities of all experts, which also decide whether a task is new.
        self.density = Density(self, descriptor=descriptor, reject_above=reject_above)
        #: By task, its expert.
        self.given: dict[str, Assignment] = {}
        self._states_PH: Tensor | None = None  # of the task in training

    def assign(self, task: Task) -> Assignment:
        """The nearest expert if it lies within ``threshold``, else a new one."""
        # Duplicates are removed: they would make own prompts seem nearer to each other than new queries are.
        prompts = list(dict.fromkeys(tuple(self.template.prompt_ids(example)) for example in task.train))
        if (different := len(prompts)) < FEWEST:
            raise ConfigError(
                f"method=sema knows a task by its prompts, of which it needs {FEWEST} different ones for training;"
                f" {task.name} has {different}. Give it more (train_size), or leave it out of order.tasks."
            )
        states_PH = self.density.embed(prompts)
        z = {name: round(float(known.z(states_PH).mean()), 4) for name, known in self.descriptors.items()}
        nearest = min(z, key=lambda name: z[name], default=None)
        is_new = nearest is None or z[nearest] > self.threshold
        self._states_PH = states_PH
        self.given[task.name] = Assignment(task.name if nearest is None or is_new else nearest, z)
        return self.given[task.name]

    def end_task(self, task: Task, memory: Memory) -> None:
        """Fits the new expert's density, which is frozen like the expert."""
        if self._states_PH is None:
            return  # its experts come from a run with another ``reject_above``, which has fitted the density
        self.density.fit(task.name, self._states_PH)
        self._states_PH = None

    @cached_property
    def own_router(self) -> Router:
        """The densities that also assign experts."""
        return self.density

    @property
    def descriptors(self) -> dict[str, Descriptor]:
        """Densities by expert, in the order of training."""
        return self.density.descriptors

    def expert_of(self, task: str) -> str | None:
        """A task's own expert, or the earlier one assigned to it."""
        return self.given[task].expert if task in self.given else None

    def storage(self) -> dict[str, int]:
        """Weights and densities of all experts."""
        return {**super().storage(), "descriptors": self.density.nbytes()}

    def save(self, task: str, folder: Path) -> None:
        """Saves the assignment, and a new expert with its density."""
        write_given(self.given[task], folder)
        if self.given[task].expert == task:
            super().save(task, folder)
            write_tensors(self.density.state(task), folder / FILE)

    def restore(self, task: str, folder: Path) -> None:
        """Loads the assignment, and a new expert with its density."""
        self.given[task] = read_given(folder)
        if self.given[task].expert == task:
            super().restore(task, folder)
            self.density.load_state(task, read_tensors(folder / FILE))
