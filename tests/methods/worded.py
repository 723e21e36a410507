"""Tasks whose prompts share few words, so that a gate tells them apart, and a method that is trained as in a run."""

import torch

from see_lightning.data.example import Example
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small

WORDS = {"sky": "Name a colour: sky {}?", "sea": "How deep, {}, is it", "ice": "{}{} cold"}
ROWS = 4


def task(name: str) -> Task:
    """Rows of unlike length."""
    rows = tuple(Example(f"{name}-{n}", WORDS[name].format("ab" * n, n), f"yes {name}", name) for n in range(ROWS))
    return Task(name, rows, rows[:1], "rouge_l", 8)


def prompts(name: str) -> list[list[int]]:
    """Tokens of a task's prompts."""
    return [small.TEMPLATE.prompt_ids(row.prompt) for row in task(name).train]


def remembered(*names: str) -> Memory:
    """A memory of past tasks."""
    memory = Memory(0)
    for name in names:
        memory.add(task(name))
    return memory


def learn(method, name: str, *past: str, steps: int = 8) -> list[float]:
    """A whole task with weight decay and a high learning rate; the losses without the penalty."""
    method.begin_task(task(name), remembered(*past))
    optimizer, losses = torch.optim.AdamW(method.trained_weights(), lr=0.05, weight_decay=0.1), []
    for _ in range(steps):
        optimizer.zero_grad()
        (batch,) = method.batches(task(name).train, ROWS)
        loss, penalty = method.loss(batch), method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        method.after_step()
        losses.append(loss.item())
    method.eval()
    with torch.no_grad():
        method.end_task(task(name), remembered(*past))
    return losses
