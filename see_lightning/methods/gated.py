"""Methods with one adapter a task that act together, each with a weight that depends on the whole prompt.

Letters: B rows, S tokens, Q queries, T tasks, H size of a token's embedding.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding

from see_lightning.adapters import files
from see_lightning.adapters.gated_sum import GatedSum, Weights
from see_lightning.adapters.mixture import FixedMixture
from see_lightning.inference.answer_rows import answer_row
from see_lightning.inference.decoder import BatchDecoder
from see_lightning.methods.by_prompt import ByPrompt
from see_lightning.methods.method import Answer, OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.tasks.batches import IGNORED, Batch, Queries
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


class GatedMethod(OneAdapterMethod):
    """A frozen adapter for each past task and one in training; all act on every row, with weights of its prompt.

    The weights depend on one vector that stands for the prompt: by default the mean of its tokens' embeddings. A subclass
    computes the weights, and trains what it computes them by.

    Args:
        setup: model, template, optimizer settings and seed of the run.
    """

    traits = Traits(shardable=False, peft_loadable=False, router=ByPrompt)  # sharded was not tried

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        #: Adapters, the newest task's first.
        self.tasks: list[str] = []
        self.sum: GatedSum

    @abstractmethod
    def weights_of(self, pooled_BH: Tensor) -> Tensor:
        """The weight of each task's adapter for each prompt, (B, T), the newest task's first; with gradients.

        Args:
            pooled_BH: of the prompts, from ``pooled``.
        """

    @abstractmethod
    def rule(self) -> Iterable[Tensor]:
        """The tensors that ``weights_of`` depends on."""

    def begin_task(self, task: Task, memory: Memory) -> None:
        """A new adapter beside the earlier ones, which are frozen."""
        self._join(task.name, self.weights_seed(task.name))
        self.pool.train_only(self.ADAPTER, task.name)

    def _join(self, task: str, weights_seed: int) -> None:
        self.pool.add_adapter(task, weights_seed)
        self.tasks.insert(0, task)
        self.sum = GatedSum(self.pool, self.tasks, self.rule)
        self.pool.register(self.ADAPTER, self.sum)

    def pool_tokens(self, embeddings_SH: Tensor) -> Tensor:
        """The vector that stands for a prompt, (H,); by default the mean of its tokens' embeddings."""
        return embeddings_SH.mean(0)

    def pooled(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """One vector for each prompt, (B, H), in fp32; padding takes no part.

        Args:
            prompts: token ids.
        """
        table = self.pool.model.get_input_embeddings().weight.detach()
        rows = [embedding(torch.tensor(list(prompt), device=table.device), table).float() for prompt in prompts]
        return torch.stack([self.pool_tokens(row_SH) for row_SH in rows])

    @torch.no_grad()
    def prompt_weights(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The weights of prompts, (B, T), the newest task's first, without gradients."""
        return torch.cat([self.weights_of(self.pooled([prompt])) for prompt in prompts])  # alone, whatever the batch

    def adapter_for(self, prompt: Sequence[int]) -> FixedMixture:
        """The sum of the adapters with the weights of a prompt; for passes outside ``answer``."""
        return FixedMixture(self.pool, self.tasks, self.prompt_weights([prompt])[0])

    def logits(self, part: Batch) -> Tensor:
        """Logits of the answers under the sum, with the weights of each row's prompt."""
        with self.sum.weighted(
            Weights(self.weights_of(self.pooled(part.prompts())), (part.labels_BS != IGNORED).sum(1))
        ):
            return super().logits(part)

    def answer(self, queries: Queries) -> list[Answer]:
        """Answers, each under the sum with the weights of its prompt; rows are decoded together."""
        weights_QT = self.prompt_weights(queries.prompts)
        decoder: BatchDecoder[int] = BatchDecoder(
            lambda rows: self.pool.use_adapter(self.sum.of(weights_QT[[int(row or 0) for row in rows]])), self.eos_ids()
        )
        for rows in queries.chunks(range(len(queries))):
            decoder.decode_until(queries.rows - len(rows))
            logits_BV, read = self.pool.prefill(self.sum.of(weights_QT[rows]), [queries.prompts[row] for row in rows])
            begun = [answer_row(queries, row, row, str(row), self.template.text) for row in rows]
            decoder.start(logits_BV, read, begun)
        decoder.decode_until(0)
        done = [decoder.done[row] for row in range(len(queries))]
        self.counts.update(prefills=len(done), generations=len(done), new_tokens=sum(len(one.ids) for one in done))
        return [self.to_answer(id_, one, None) for id_, one in zip(queries.ids, done, strict=True)]

    def storage(self) -> dict[str, int]:
        """``weights``: the adapters of all tasks; ``pool``: one of them; ``state``: what weighs them."""
        sizes = [self.pool.adapter_bytes(task) for task in self.tasks]
        return {"pool": sizes[0], "weights": sum(sizes), "state": self.state_bytes()}

    def state_bytes(self) -> int:
        """Bytes that are kept beside the adapters, of all tasks."""
        return sum(tensor.nbytes for tensor in self.state().values())

    def restore(self, task: str, folder: Path) -> None:
        """Adds a task's adapter, and loads its state."""
        self._join(task, weights_seed=0)
        self.pool.load_weights(task, files.read(self.pool, task, folder))
        self.load_state(task, files.load_state(folder, self.pool.device()))
