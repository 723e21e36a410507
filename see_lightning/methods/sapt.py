r"""SAPT: an adapter and a key for each task; the attention of a prompt to the keys weighs the adapters (ACL 2024).

Zhao et al., *SAPT: A Shared Attention Framework for Parameter-Efficient Continual Learning of Large Language Models*, arXiv
2401.08295, with stored prompts in place of generated ones. PAPERS.md lists the differences.

Letters: B prompts, T tasks, H size of a token's embedding, W width of the query's hidden layer, S tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, pad

from see_lightning.config.checks import check_ratio, within
from see_lightning.methods.gated import GatedMethod
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

KEYS, QUERY, TARGET = "keys", "query ", "target "  # names of a state's tensors; the latter two are followed by a name


def attention(keys_TH: Tensor, queries_BH: Tensor) -> Tensor:
    r"""Log-probabilities $\log\mathrm{softmax}_t(k_t^\top q / \sqrt H)$, (B, T).

    >>> attention(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 2.0]])).exp()
    tensor([[0.5000, 0.5000]])
    """
    scores_BT: Tensor = queries_BH @ keys_TH.T / keys_TH.shape[1] ** 0.5
    return scores_BT.log_softmax(-1)


def drift(target_T: Tensor, log_p_BT: Tensor) -> Tensor:
    r"""$\frac1B \sum_b \mathrm{KL}(p^* \,\Vert\, p_b)$, in nats: how far attention has moved from what it was.

    Args:
        target_T: $p^*$ over the newest tasks first; tasks that came later are missing at its beginning, and count as 0.
        log_p_BT: $\log p_b$ over all tasks, the newest first.

    >>> drift(torch.tensor([1.0]), torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log())
    tensor(0.4904)
    """
    later = log_p_BT.shape[1] - len(target_T)
    return kl_div(log_p_BT, pad(target_T, (later, 0)).expand_as(log_p_BT), reduction="batchmean")


class Sapt(GatedMethod):
    r"""The sum of all tasks' adapters, by attention; adds $\lambda \sum_{i<t} \mathrm{KL}(p^*_i \Vert p_i)$ to the loss.

    The query of a prompt is $q = \mathrm{LN}(\mathrm{silu}(Q_2 Q_1 e))$, where $e$ has the largest value of each component
    over the embeddings of its tokens. $Q$ is shared by all tasks and trained in each; keys of earlier tasks are frozen.
    $p^*_i$ is the mean attention of task $i$'s training prompts at its end, $p_i$ that of its stored prompts now.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        ratio: share of each past task's rows whose prompts are stored, 0..1; they are drawn once.
        strength: $\lambda$.
        width: of the query's hidden layer, at least 1.
    """

    def __init__(self, setup: Setup, *, ratio: float, strength: float, width: int) -> None:
        super().__init__(setup)
        check_ratio("method.ratio", ratio)
        within("method.strength", strength, 0)
        within("method.width", width, 1)
        self.ratio, self.strength, self.width = ratio, strength, width
        #: Of all tasks, the newest first: the first is trained, the others are frozen.
        self.key_H: nn.Parameter | None = None
        self.old_keys: list[Tensor] = []
        self.query: nn.Sequential | None = None
        #: By task, its mean attention at its end, (T,), over the tasks that there were, the newest first.
        self.targets: dict[str, Tensor] = {}
        self._stored: dict[str, Tensor] = {}  # by past task, the pooled embeddings of its stored prompts, (B, H)

    # ------------------------------------------------------------------------------------------ one task

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Adds an adapter and a key, and reads the stored prompts."""
        super().begin_task(task, memory)
        size, device = self.pool.model.get_input_embeddings().weight.shape[1], self.pool.device()
        if self.key_H is not None:
            self.old_keys.insert(0, self.key_H.detach())
        draw = torch.Generator().manual_seed(seed(self.run_seed, task.name, "key"))
        self.key_H = nn.Parameter((2 * torch.rand(size, generator=draw) - 1).to(device))
        if self.query is None:
            self.query = self._new_query(size)
        self.query.requires_grad_(True)
        rows = memory.rehearse(task, ratio=self.ratio, resample="once")
        for _ in self.batches(rows, self.optim.global_batch_size):
            pass  # so they are counted as rehearsed, once a task; every step has the attention of all of them
        prompts: dict[str, list[list[int]]] = {}
        for row in rows:
            prompts.setdefault(row.task, []).append(self.template.prompt_ids(row))
        self._stored = {past: self.pooled(of) for past, of in prompts.items()}

    def _new_query(self, size: int) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed(self.run_seed, "all tasks", "query"))
            down, up = nn.Linear(size, self.width, bias=False), nn.Linear(self.width, size, bias=False)
        return nn.Sequential(down, up, nn.SiLU(), nn.LayerNorm(size)).to(self.pool.device())

    def penalty(self) -> Tensor | None:
        """The drift of attention on the stored prompts of each past task; None without any."""
        if not (self._stored and self.strength):
            return None
        drifts = [drift(self.targets[past], self._log_weights(pooled)) for past, pooled in self._stored.items()]
        return self.strength * torch.stack(drifts).sum()

    def end_task(self, task: Task, memory: Memory) -> None:
        """Keeps the mean attention of the task's training prompts."""
        prompts = [self.template.prompt_ids(example) for example in task.train]
        self.targets[task.name] = self.weights_of(self.pooled(prompts)).mean(0).detach()

    # ------------------------------------------------------------------------------------------ weights, and what is kept

    def pool_tokens(self, embeddings_SH: Tensor) -> Tensor:
        """The largest value of each component, (H,)."""
        return embeddings_SH.amax(0)

    def weights_of(self, pooled_BH: Tensor) -> Tensor:
        """The attention of each prompt to each task's key, (B, T), the newest task's first; each row adds up to 1."""
        return self._log_weights(pooled_BH).exp()

    def _log_weights(self, pooled_BH: Tensor) -> Tensor:
        assert self.query is not None
        return attention(torch.stack(self._keys()), self.query(pooled_BH))

    def _keys(self) -> list[Tensor]:
        return [] if self.key_H is None else [self.key_H, *self.old_keys]

    def rule(self) -> Iterator[Tensor]:
        """The keys and the weights of the query."""
        yield from self._keys()
        if self.query is not None:
            yield from self.query.parameters()

    def state(self) -> dict[str, Tensor]:
        """All keys, the query, and the attention to be kept."""
        if self.query is None:
            return {}
        query = {QUERY + name: weight for name, weight in self.query.state_dict().items()}
        return {KEYS: torch.stack(self._keys()), **query, **{TARGET + task: one for task, one in self.targets.items()}}

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The state after a task replaces that before it."""
        newest, *self.old_keys = tensors[KEYS].unbind()
        self.key_H = nn.Parameter(newest.clone(), requires_grad=False)
        self.query = self.query or self._new_query(len(newest))
        self.query.load_state_dict(
            {name.removeprefix(QUERY): one for name, one in tensors.items() if name.startswith(QUERY)}
        )
        self.query.requires_grad_(False)
        self.targets = {name.removeprefix(TARGET): one for name, one in tensors.items() if name.startswith(TARGET)}
