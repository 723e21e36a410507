"""Data for Lightning's Trainer: a task's training examples, and the test queries of tasks."""

from collections.abc import Sequence
from functools import partial
from itertools import count

import lightning as L
from torch.utils.data import DataLoader

from see_lightning.data.example import Example
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Batch, Collator, Queries, cut, encode, plan_batches
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task


def pad_id(template: PromptTemplate) -> int:
    """The id of the padding token; the end-of-sequence token if there is none, since the mask hides padding anyway."""
    pad = template.tokenizer.pad_token_id
    return int(template.tokenizer.eos_token_id if pad is None else pad)


class TaskDataModule(L.LightningDataModule):
    """The training examples of one task, in an order determined by the run's seed, the task and the epoch.

    The examples of a step are the same for any number of ranks; each rank gets its share of them.

    Args:
        name: of the task, for the seed of the order.
        examples: training examples, with the targets as they are learned.
        template: prompt style and tokenizer.
        batch_size: examples per optimizer step, of all ranks together.
        run_seed: the run's seed.
        loss_reduction: the loss is a mean over ``tokens`` or ``examples``.
        max_tokens_per_microbatch: most tokens of a micro-batch, padding included.
        rank: number of this rank, from 0.
        ranks: number of ranks.
    """

    def __init__(
        self,
        name: str,
        examples: Sequence[Example],
        template: PromptTemplate,
        *,
        batch_size: int,
        run_seed: int,
        loss_reduction: str = "tokens",
        max_tokens_per_microbatch: int = 4096,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__()
        self.name, self.batch_size, self.run_seed = name, batch_size, run_seed
        self.collator = Collator(pad_id(template), loss_reduction, max_tokens_per_microbatch, rank, ranks)
        self.rows = encode(examples, template)
        self.steps_per_epoch = -(-len(self.rows) // batch_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of one epoch. The Trainer calls this for each epoch, so its order depends only on its number."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        draw = seed(self.run_seed, self.name, f"order of epoch {epoch}")
        plan = plan_batches([len(row) for row in self.rows], self.batch_size, draw)
        return DataLoader(plan, batch_size=None, collate_fn=partial(self.collator.batch, self.rows))  # type: ignore[arg-type]


WINDOW = 8  # a method gets this many times the decoded queries at once, so that new rows replace those that end


def query_batch(
    queries: Sequence[str | Example],
    template: PromptTemplate,
    *,
    max_new_tokens: int,
    tasks: Sequence[str] = (),
    rows: int = 16,
) -> Queries:
    """A user's queries as one batch; their ids are their numbers.

    Args:
        queries: texts, or examples.
        template: prompt style and tokenizer.
        max_new_tokens: most tokens to generate for each.
        tasks: the queries' tasks, for a method that needs them.
        rows: most queries that are decoded together.
    """
    return Queries(
        prompts=[template.prompt_ids(query) for query in queries],
        ids=[str(number) for number in range(len(queries))],
        groups=[0] * len(queries),
        limits=[max_new_tokens] * len(queries),
        rows=rows,
        tasks=list(tasks),
    )


def query_loader(
    tasks: Sequence[Task], template: PromptTemplate, *, batch_size: int, tell_task: bool, only_decide: bool = False
) -> DataLoader[Queries]:
    """The test queries of tasks in one stream: a task's last answers are decoded together with the next task's first.

    A query's id is its number in the order of tasks and test splits. A task's longest prompts come first, so that rows that
    are prefilled together have similar lengths; these chunks depend on their task alone.

    Args:
        tasks: tasks whose test splits are answered.
        template: prompt style and tokenizer.
        batch_size: most queries that are decoded together.
        tell_task: whether a batch contains the tasks of its queries; only for methods with an oracle.
        only_decide: whether experts only decide on acceptance and generate no answer.
    """
    numbers = count()
    chunks: list[list[tuple[int, Example, int]]] = []  # of queries: number, example, and number of the task
    for place, task in enumerate(tasks):
        queries = [(next(numbers), example, place) for example in task.test]
        queries.sort(key=lambda query: (-len(template.prompt_ids(query[1])), query[1].id))
        chunks += cut(queries, max(1, batch_size // 2))
    windows: list[list[tuple[int, Example, int]]] = [[]]
    for chunk in chunks:
        if len(windows[-1]) + len(chunk) > max(len(chunk), WINDOW * batch_size):
            windows.append([])
        windows[-1] += chunk

    def to_batch(window: list[tuple[int, Example, int]]) -> Queries:
        prompts = [template.prompt_ids(example) for _, example, _ in window]
        return Queries(
            prompts=prompts,
            ids=[str(number) for number, _, _ in window],
            groups=[place for _, _, place in window],
            limits=[tasks[place].limit(len(ids)) for ids, (_, _, place) in zip(prompts, window, strict=True)],
            rows=batch_size,
            tasks=[tasks[place].name for _, _, place in window] if tell_task else [],
            only_decide=only_decide,
        )

    return DataLoader([w for w in windows if w], batch_size=None, collate_fn=to_batch)  # type: ignore[arg-type]
