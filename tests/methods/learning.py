"""A task of three rows, and a method that is trained on it a little without a Trainer."""

import torch
from torch.nn.functional import cross_entropy

from see_lightning.data.example import Example
from see_lightning.tasks.batches import IGNORED, collate
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small


def learn(method, task: str, steps: int = 3) -> list[float]:
    """Begin a task and train it a little; the losses without the penalty."""
    method.begin_task(task_named(task), Memory(0))
    batch = collate([small.TEMPLATE.prompt_ids("sky?")], [small.TEMPLATE.target_ids(f"blue {task}")], pad=0)
    wanted = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(wanted, lr=0.1, weight_decay=0.1), []
    method.pool.keep_prompts([[small.TEMPLATE.prompt_ids("sky?")]])
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(method.pool(*batch), batch[2][batch[2] != IGNORED])
        penalty = method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        method.edit_gradients()
        optimizer.step()
        method.after_step()
        losses.append(loss.item())
    method.pool.prompt_cache.clear()
    method.eval()
    return losses


def task_named(name: str) -> Task:
    """Rows of unlike length, whose prompts name the task."""
    rows = tuple(Example(f"{name}-{i}", f"{name} {'long ' * i}?", "answer", name) for i in range(3))
    return Task(name, rows, rows[:1], "rouge_l", 8)
