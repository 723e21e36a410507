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


def remembered(*tasks: str) -> Memory:
    """A memory of past tasks."""
    memory = Memory(0)
    for task in tasks:
        memory.add(task_named(task))
    return memory


def fit(
    method, task: str, past: tuple[str, ...] = (), steps: int = 3, lr: float = 0.1, answer: str = "answer"
) -> list[float]:
    """Begin a task with a memory and train it on all its rows by the method's own loss; the losses without the penalty."""
    memory, new = remembered(*past), task_named(task, answer)
    method.begin_task(new, memory)
    rows = method.training_examples(new, memory)
    (batch,) = method.batches(rows, len(rows))
    optimizer, losses = torch.optim.AdamW(method.trained_weights(), lr=lr, weight_decay=0.0), []
    method.pool.keep_prompts([[small.TEMPLATE.prompt_ids(row.prompt) for row in rows]])
    for _ in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for part in batch.split(method.optim.loss_reduction):
            loss = part.weight * method.loss(part)
            loss.backward()
            total += loss.item()
        if (penalty := method.penalty()) is not None:
            penalty.backward()
        method.edit_gradients()
        optimizer.step()
        method.after_step()
        losses.append(total)
    method.pool.prompt_cache.clear()
    method.eval()
    return losses


def task_named(name: str, answer: str = "answer") -> Task:
    """Rows of unlike length, whose prompts name the task."""
    rows = tuple(Example(f"{name}-{i}", f"{name} {'long ' * i}?", answer, name) for i in range(3))
    return Task(name, rows, rows[:1], "rouge_l", 8)
