"""A task of three rows, a method that is trained on it a little without a Trainer, and what tests of methods compare."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
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


def ended(method, task: str, steps: int = 3, past: tuple[str, ...] = ()):
    """The method after a task."""
    learn(method, task, steps)
    with torch.no_grad():
        method.end_task(task_named(task), remembered(*past))
    return method


def weights(method, adapter: str = "shared") -> list[Tensor]:
    """A and B of every layer, as they are now."""
    return [weight.detach().clone() for weight in method.pool.weights_of([adapter])]


def equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether tensors are pairwise equal, bit for bit."""
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def flat(parts: Iterable[Tensor]) -> Tensor:
    """All numbers in a row, in fp64."""
    return torch.cat([part.flatten() for part in parts]).double()


def assert_trains_as_seqft(method, targets: Sequence[str], rank: int = 4) -> None:
    """Its first task is sequential fine-tuning, bit for bit."""
    plain = SeqFt(Setup(small.pool(rank=rank, targets=list(targets)), small.TEMPLATE, OptimConfig(), 0))
    assert learn(method, "sky") == learn(plain, "sky")
    assert equal(weights(method), weights(plain))


def after_two_tasks(make: Callable[[], Any], folder: Path) -> tuple[Any, Any]:
    """A method after two tasks, and another one that has loaded what it saved."""
    method, fresh = make(), make()
    for number, task in enumerate(("sky", "sea")):
        ended(method, task, past=("sky",) * number).save(task, folder / task)
        fresh.restore(task, folder / task)
    return method, fresh


def assert_goes_on_when_restored(make: Callable[[], Any], folder: Path) -> None:
    """A method that has loaded the first task trains the second as the one that has trained both, bit for bit."""
    method, fresh = make(), make()
    fit(method, "sky")
    method.save("sky", folder)
    fresh.restore("sky", folder)
    assert fit(method, "sea", ("sky",)) == fit(fresh, "sea", ("sky",))
    assert equal(weights(method), weights(fresh))


def rows_of_steps(method, steps: int) -> list[list[str]]:
    """The ids of the rows that ``edit_gradients`` draws in each of some steps after the tasks sky and sea."""
    seen, batches = [], method.batches

    def noted(examples, size):
        seen.append([example.id for example in examples])
        return batches(examples, size)

    method.batches = noted
    method.begin_task(task_named("ice"), remembered("sky", "sea"))
    for _ in range(steps):
        method.edit_gradients()
    return seen


def task_named(name: str, answer: str = "answer") -> Task:
    """Rows of unlike length, whose prompts name the task."""
    rows = tuple(Example(f"{name}-{i}", f"{name} {'long ' * i}?", answer, name) for i in range(3))
    return Task(name, rows, rows[:1], "rouge_l", 8)
