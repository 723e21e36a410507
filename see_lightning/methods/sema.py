"""SEMA: Self-Expansion with Mixture of Adapters (Wang et al., CVPR 2025, arXiv 2403.18886), in the form of language models.

A new task gets an expert only if no expert's descriptor explains its prompts; otherwise the nearest expert answers for it,
and nothing is trained. PAPERS.md lists what differs from the paper, whose adapters stand in each layer of a vision model.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.adapters.files import read_tensors, write_tensors
from see_lightning.config.checks import one_of, within
from see_lightning.errors import ConfigError
from see_lightning.files.run_files import read_file
from see_lightning.files.writing import write_text
from see_lightning.methods.method import Assignment, ExpertMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.routing.novelty import DESCRIPTORS, FEWEST, Descriptor
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

FILE, GIVEN = "descriptor.safetensors", "given.json"  # beside an expert's weights, or in their place


class Sema(ExpertMethod):
    """Experts only for what is new, found by where prompts lie in the base model's last hidden states.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        threshold: a task gets an expert of its own if its prompts' mean z exceeds this under every descriptor there is.
        descriptor: ``gaussian``, in closed form, or ``autoencoder``, as in the paper.
        reject_above: queries whose smallest z exceeds this go to the base model; 0 for none.
    """

    traits = Traits(has_experts=True, may_reuse=True, after_training=frozenset({"reject_above"}))

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
        self.threshold, self.reject_above, self.kind = threshold, reject_above, DESCRIPTORS[descriptor]
        #: Of each expert, in order of birth.
        self.descriptors: dict[str, Descriptor] = {}
        #: Of each task so far.
        self.given: dict[str, Assignment] = {}
        self._states_PH: Tensor | None = None  # of a task that is being learned

    def assign(self, task: Task) -> Assignment:
        """The nearest expert, if the task is explained by it; else one of its own."""
        # Each once: of two that are alike, either would make the other seem nearer to the rest than a new query is.
        prompts = list(dict.fromkeys(tuple(self.template.prompt_ids(example.prompt)) for example in task.train))
        if (different := len(prompts)) < FEWEST:
            raise ConfigError(
                f"method=sema knows a task by its prompts, of which it needs {FEWEST} different ones for training;"
                f" {task.name} has {different}. Give it more (train_size), or leave it out of order.tasks."
            )
        states_PH = embed_prompts(self.pool, prompts)
        z = {name: round(float(known.z(states_PH).mean()), 4) for name, known in self.descriptors.items()}
        nearest = min(z, key=lambda name: z[name], default=None)
        is_new = nearest is None or z[nearest] > self.threshold
        self._states_PH = states_PH
        self.given[task.name] = Assignment(task.name if nearest is None or is_new else nearest, z)
        return self.given[task.name]

    def end_task(self, task: Task, memory: Memory) -> None:
        """The new expert's descriptor; like the expert it stays as it is from now on."""
        if self._states_PH is None:
            return  # taken over from a run that refused otherwise: it was ended there
        weights_seed = seed(self.run_seed, task.name, "descriptor")
        self.descriptors[task.name] = self.kind.of(self._states_PH, weights_seed)
        self._states_PH = None

    def route(self, queries: Queries) -> list[str | None]:
        """The expert to which each query is least new, unless it is too new to all."""
        if not self.descriptors:
            return [None] * len(queries)
        states_PH = embed_prompts(self.pool, queries.prompts)
        self.counts["prefills"] += len(queries)
        least_P, nearest_P = torch.stack([known.z(states_PH) for known in self.descriptors.values()]).min(0)
        names = list(self.descriptors)
        return [
            None if self.reject_above and least > self.reject_above else names[nearest]
            for least, nearest in zip(least_P.tolist(), nearest_P.tolist(), strict=True)
        ]

    def storage(self) -> dict[str, int]:
        """Weights and descriptors of the experts there are."""
        kept = [tensor for known in self.descriptors.values() for tensor in known.tensors.values()]
        return {**super().storage(), "descriptors": sum(tensor.nbytes for tensor in kept)}

    def save(self, task: str, folder: Path) -> None:
        """Which expert the task was given, and that expert and its descriptor if it is new."""
        folder.mkdir(parents=True, exist_ok=True)
        given = self.given[task]
        write_text(folder / GIVEN, json.dumps(asdict(given)) + "\n")
        if given.expert == task:
            super().save(task, folder)
            write_tensors(self.descriptors[task].tensors, folder / FILE)

    def restore(self, task: str, folder: Path) -> None:
        """An expert comes back with its descriptor; where a task was given an earlier one, there is nothing more."""
        self.given[task] = Assignment(**read_file(folder / GIVEN))
        if self.given[task].expert == task:
            super().restore(task, folder)
            self.descriptors[task] = self.kind(read_tensors(folder / FILE))
