"""What Lightning loads: one task's training examples, or one task's test queries."""

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
    """Any id serves for padding, since the mask hides it."""
    pad = template.tokenizer.pad_token_id
    return int(template.tokenizer.eos_token_id if pad is None else pad)


class TaskDataModule(L.LightningDataModule):
    """The training examples of one stage, in an order made from (run seed, task, epoch).

    Which examples make a step does not hang on the number of ranks; each rank gets its share of them.

    Args:
        name: of the task, for the order's seed.
        examples: what is trained on, with the targets as they are learned.
        template: prompt style and tokenizer.
        batch_size: examples per optimizer step, of all ranks together.
        run_seed: the run's seed.
        loss_reduction: what the loss is a mean over, see ``answer_loss``.
        max_tokens_per_microbatch: that a rank computes together, padding included.
        rank: whose share is loaded, from 0.
        ranks: how many there are.
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
        """One epoch; the Trainer asks again for each, so an epoch's order hangs on its number alone."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        draw = seed(self.run_seed, self.name, f"order of epoch {epoch}")
        plan = plan_batches([len(row) for row in self.rows], self.batch_size, draw)
        return DataLoader(plan, batch_size=None, collate_fn=partial(self.collator.batch, self.rows))  # type: ignore[arg-type]


WINDOW = 8  # times the queries written together; a method gets so many at once, to fill up places that become free


def query_batch(
    queries: Sequence[str], template: PromptTemplate, *, max_new_tokens: int, tasks: Sequence[str] = (), rows: int = 16
) -> Queries:
    """A user's queries, named by their numbers, ready to be answered; ``tasks`` is empty where the method is not told."""
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
    """The test queries of tasks in one stream, so that the last answers to one task are written beside those to the next.

    They are named by their numbers in the order of tasks and test splits. A task's longest prompts come first, so that rows
    read together are alike in length; which ones these are hangs on their task alone.

    Args:
        tasks: whose test splits are asked.
        template: prompt style and tokenizer.
        batch_size: queries written together.
        tell_task: whether the batch says which task its queries belong to; only an oracle may know.
        only_decide: whether experts shall say only if they accept.
    """
    numbers = count()
    chunks: list[list[tuple[int, Example, int]]] = []  # query by query: its number, itself, and its task's
    for place, task in enumerate(tasks):
        queries = [(next(numbers), example, place) for example in task.test]
        queries.sort(key=lambda query: (-len(template.prompt_ids(query[1].prompt)), query[1].id))
        chunks += cut(queries, max(1, batch_size // 2))
    windows: list[list[tuple[int, Example, int]]] = [[]]
    for portion in chunks:
        if len(windows[-1]) + len(portion) > max(len(portion), WINDOW * batch_size):
            windows.append([])
        windows[-1] += portion

    def to_batch(window: list[tuple[int, Example, int]]) -> Queries:
        prompts = [template.prompt_ids(example.prompt) for _, example, _ in window]
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
