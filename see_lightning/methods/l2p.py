r"""L2P: a pool of soft prompts; each query is answered behind those whose keys lie nearest to it (CVPR 2022).

Wang et al., *Learning to Prompt for Continual Learning*, arXiv 2112.08654. PAPERS.md lists the differences.

Letters: B rows, M prompts of the pool, N prompts of a row, P tokens of a prompt, H size of an embedding.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from see_lightning.adapters import files
from see_lightning.adapters.embeddings import Embedded, embed_once
from see_lightning.adapters.prompt_pool import PromptPool, nearest
from see_lightning.adapters.soft_prompt import SoftPrompt, random_tokens
from see_lightning.config.checks import within
from see_lightning.inference.answer_rows import answer_row
from see_lightning.inference.decoder import BatchDecoder
from see_lightning.methods.by_prompt import ByPrompt
from see_lightning.methods.loss import row_mean
from see_lightning.methods.method import Answer, OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.seeds import seed
from see_lightning.tasks.batches import Batch, Queries
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

KEYS, CHOSEN = "keys", "chosen"  # names of the state's tensors
UNUSED = 1e-3  # added to the frequencies: among prompts that no task has used, the nearest come first


class L2p(OneAdapterMethod):
    r"""Trains the prompts nearest to each row and their keys: the loss behind them, and $\lambda \sum_{i} 1 - \cos(q, k_i)$.

    The query $q$ is the mean over the prompt's tokens of the base model's last hidden states.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        prompts: M, prompts of the pool, at least 1.
        tokens: P, virtual tokens of a prompt, at least 1.
        top_k: N, prompts of a row, 1..M.
        pull: $\lambda$, at least 0; with 0 the keys stay as they were drawn.
        diversify: in training, distances are multiplied by the share of earlier tasks' rows that chose a prompt, so that
            a task prefers unused prompts.
        lr: peak learning rate of prompts and keys; it takes the place of ``optim.lr``.
    """

    traits = Traits(shardable=False, peft_loadable=False, takes_activated=False, router=ByPrompt)
    reads_per_query = 2

    def __init__(
        self, setup: Setup, *, prompts: int, tokens: int, top_k: int, pull: float, diversify: bool, lr: float
    ) -> None:
        within("method.prompts", prompts, 1)
        within("method.tokens", tokens, 1)
        within("method.top_k", top_k, 1, prompts)
        within("method.pull", pull, 0)
        within("method.lr", lr, 0)
        super().__init__(replace(setup, optim=replace(setup.optim, lr=lr)))
        self.size, self.tokens, self.top_k, self.pull, self.diversify = prompts, tokens, top_k, pull, diversify
        self.prompts: PromptPool | None = None
        #: How many rows of past tasks chose each prompt, (M,).
        self.chosen_M = torch.zeros(prompts, dtype=torch.float64)
        self._embedded: dict[Embedded, Tensor] = {}

    # ------------------------------------------------------------------------------------------ one task

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Draws prompts and keys in the first task; later tasks train them further."""
        if self.prompts is None:
            words_PH = random_tokens(self.pool.model, self.size * self.tokens, self.weights_seed(self.ADAPTER))
            draw = torch.Generator().manual_seed(seed(self.run_seed, "all tasks", "keys"))
            keys_MH = torch.randn(self.size, words_PH.shape[1], generator=draw)
            self._join(words_PH.view(self.size, self.tokens, -1), keys_MH)
        assert self.prompts is not None
        self.pool.train_only(self.ADAPTER)
        self.prompts.keys_MH.requires_grad_(self.pull > 0)
        self._embedded = {}

    def _join(self, prompts_MPH: Tensor, keys_MH: Tensor) -> None:
        self.prompts = PromptPool(prompts_MPH, keys_MH).to(self.pool.device())
        self.pool.register(self.ADAPTER, self.prompts)

    def logits(self, part: Batch) -> Tensor:
        """Logits of the answers, each row behind the prompts that are chosen for it."""
        assert self.prompts is not None
        with self.prompts.acting(self._nearest(self._distances(part), self.training)):
            return super().logits(part)

    def loss(self, part: Batch) -> Tensor:
        """The loss on the answers, and the distance of the chosen keys: a mean with each row's weight in that loss."""
        loss = super().loss(part)
        if not self.pull:
            return loss
        distance_BM = self._distances(part)
        chosen_BM = distance_BM.gather(1, self._nearest(distance_BM, self.training))
        return loss + self.pull * row_mean(chosen_BM.sum(1), part.labels_BS, self.optim.loss_reduction)

    def _distances(self, part: Batch) -> Tensor:
        assert self.prompts is not None
        return self.prompts.distances(embed_once(self.pool, part.prompts(), 0, self._embedded))

    def _nearest(self, distance_BM: Tensor, is_training: bool) -> Tensor:
        """The prompts of each row, (B, N); in training, if they are to be diversified, rather those that are unused."""
        if is_training and self.diversify:
            share_M = self.chosen_M / self.chosen_M.sum().clamp_min(1)
            distance_BM = distance_BM * (share_M + UNUSED).to(distance_BM)
        return nearest(distance_BM.detach(), self.top_k)

    def end_task(self, task: Task, memory: Memory) -> None:
        """Counts the prompts that the task's rows choose in training."""
        self._embedded = {}
        if self.diversify:
            rows = [self.template.prompt_ids(example) for example in task.train]
            chosen = Counter(self._choose(rows, is_training=True).flatten().tolist())
            self.chosen_M = self.chosen_M + torch.tensor([float(chosen[m]) for m in range(self.size)]).double()

    # ------------------------------------------------------------------------------------------ which prompts answer

    @torch.no_grad()
    def _choose(self, prompts: Sequence[Sequence[int]], *, is_training: bool = False) -> Tensor:
        """The prompts of the pool for each of some prompts, (B, N), nearest first."""
        assert self.prompts is not None
        queries_BH = embed_once(self.pool, prompts, 0, {})
        alone = [self.prompts.distances(query_H[None]) for query_H in queries_BH]  # whatever the batch
        return self._nearest(torch.cat(alone), is_training)

    def adapter_for(self, prompt: Sequence[int]) -> SoftPrompt:
        """The pool's prompts for a prompt, as an adapter; for passes outside ``answer``."""
        assert self.prompts is not None
        return SoftPrompt(self.prompts.prompts_MPH.detach()[self._choose([prompt])[0]].flatten(0, 1))

    def answer(self, queries: Queries) -> list[Answer]:
        """Answers, each behind the prompts of its query; rows are decoded together."""
        assert self.prompts is not None
        chosen_QN = self._choose(queries.prompts)
        decoder: BatchDecoder[int] = BatchDecoder(lambda rows: self.pool.use_adapter(None), self.eos_ids())
        for rows in queries.chunks(range(len(queries))):
            decoder.decode_until(queries.rows - len(rows))
            logits_BV, read = self.pool.prefill(
                self.prompts.of(chosen_QN[rows]), [queries.prompts[row] for row in rows]
            )
            begun = [answer_row(queries, row, row, None, self.template.text) for row in rows]
            decoder.start(logits_BV, read, begun)
        decoder.decode_until(0)
        done = [decoder.done[row] for row in range(len(queries))]
        self.counts.update(
            prefills=self.reads_per_query * len(done),
            generations=len(done),
            new_tokens=sum(len(one.ids) for one in done),
        )
        return [self.to_answer(id_, one, None) for id_, one in zip(queries.ids, done, strict=True)]

    # ------------------------------------------------------------------------------------------ what is kept

    def storage(self) -> dict[str, int]:
        """``weights`` and ``pool``: the prompts; ``state``: keys, and the counts of ``diversify``."""
        assert self.prompts is not None
        size = self.prompts.prompts_MPH.nbytes
        return {"pool": size, "weights": size, "state": sum(tensor.nbytes for tensor in self.state().values())}

    def state(self) -> dict[str, Tensor]:
        """Keys, and how often past tasks' rows chose each prompt."""
        if self.prompts is None:
            return {}
        return {KEYS: self.prompts.keys_MH, **({CHOSEN: self.chosen_M} if self.diversify else {})}

    def restore(self, task: str, folder: Path) -> None:
        """Loads prompts and state; those after a task replace those before it."""
        tensors = files.load_state(folder, self.pool.device())
        prompts_PH = files.read_tensors(folder / files.WEIGHTS)[files.PROMPTS].to(self.pool.device())
        self._join(prompts_PH.view(self.size, self.tokens, -1), tensors[KEYS])
        self.chosen_M = tensors.get(CHOSEN, self.chosen_M).cpu()
