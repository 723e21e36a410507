"""Progressive Prompts: a soft prompt for each task, before the frozen prompts of all earlier tasks (ICLR 2023).

Razdaibiedina et al., *Progressive Prompts: Continual Learning for Language Models*, arXiv 2301.12314. PAPERS.md lists the
differences.

Letters: P virtual tokens, H size of an embedding.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from see_lightning.adapters.files import read_tensors, write_tensors
from see_lightning.adapters.soft_prompt import ResidualMlp, SoftPrompt, random_tokens
from see_lightning.config.checks import within
from see_lightning.methods.method import ExpertMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.routing.oracle import Oracle
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

FILE, PROMPT = "soft_prompt.safetensors", "prompt"  # in an expert's folder: the task's own prompt, (P, H)


class ProgPrompt(ExpertMethod):
    r"""Trains $P_t$ on $[P_t, P_{t-1}, \ldots, P_1, x]$; a query of task $t$ is answered behind the same prompts.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        tokens: virtual tokens of each task, at least 1.
        lr: peak learning rate of a prompt; it takes the place of ``optim.lr``.
        mlp: width of the residual MLP through which a prompt is trained, at least 1; 0 for none.
    """

    traits = Traits(has_experts=True, adds_updates=False, router=Oracle, shardable=False, takes_activated=False)

    def __init__(self, setup: Setup, *, tokens: int, lr: float, mlp: int) -> None:
        within("method.tokens", tokens, 1)
        within("method.lr", lr, 0)
        within("method.mlp", mlp, 0)
        super().__init__(replace(setup, optim=replace(setup.optim, lr=lr)))
        self.tokens, self.width = tokens, mlp
        #: By task, its own prompt, (P, H), the oldest task's first.
        self.prompts: dict[str, Tensor] = {}
        self.learning: SoftPrompt | None = None

    def begin_task(self, task: Task, memory: Memory) -> None:
        """A new prompt, of the embeddings of random tokens, before the earlier ones."""
        words_PH, mlp = self._draw(task.name)
        self.learning = SoftPrompt(self._earlier(), words_PH, mlp).to(self.pool.device())
        self.pool.register(task.name, self.learning)
        self.pool.train_only(task.name)

    def end_task(self, task: Task, memory: Memory) -> None:
        """Freezes the prompt; the MLP is dropped."""
        if self.learning is None:
            return  # its prompts come from a run with another router, which ended the task
        learned, self.learning = self.learning, None
        self._keep(task.name, learned.learned().detach().clone())

    def _draw(self, task: str) -> tuple[Tensor, ResidualMlp | None]:
        words_PH = random_tokens(self.pool.model, self.tokens, self.weights_seed(task))
        if not self.width:
            return words_PH, None
        with torch.random.fork_rng():
            torch.manual_seed(seed(self.run_seed, task, "residual MLP"))
            return words_PH, ResidualMlp(words_PH.shape[1], self.width)

    def _earlier(self) -> Tensor:
        """The prompts of all tasks so far, the newest first."""
        size = self.pool.model.get_input_embeddings().weight.shape[1]
        none_PH = torch.zeros(0, size, device=self.pool.device())
        return torch.cat([*reversed(self.prompts.values()), none_PH])

    def _keep(self, task: str, prompt_PH: Tensor) -> None:
        self.prompts[task] = prompt_PH
        self.pool.register(task, SoftPrompt(self._earlier()))

    def storage(self) -> dict[str, int]:
        """``weights``: the prompts of all tasks; ``pool``: one of them."""
        sizes = [prompt_PH.nbytes for prompt_PH in self.prompts.values()]
        return {"pool": sizes[0], "weights": sum(sizes)}

    def save(self, task: str, folder: Path) -> None:
        """Saves the task's prompts as PEFT's prefix tuning, and its own prompt beside it."""
        super().save(task, folder)
        write_tensors({PROMPT: self.prompts[task]}, folder / FILE)

    def restore(self, task: str, folder: Path) -> None:
        """Loads the task's own prompt; the earlier ones are loaded before."""
        self._keep(task, read_tensors(folder / FILE)[PROMPT].to(self.pool.device()))
