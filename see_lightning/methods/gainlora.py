r"""GainLoRA: a LoRA adapter and a gate for each task; a new gate stays at 0 on what earlier tasks' prompts look like.

*Gated Integration of Low-Rank Adaptation for Continual Learning of Language Models*, NeurIPS 2025, arXiv 2505.15424, in
its form with O-LoRA. PAPERS.md lists the differences.

Letters: B prompts, T tasks, H size of an embedding, W width of the gate's hidden layer, N size of a space, K directions.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, silu

from see_lightning.config.checks import within
from see_lightning.methods.gated import GatedMethod
from see_lightning.methods.olora import overlap
from see_lightning.methods.setup import Setup
from see_lightning.seeds import seed
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

SLOPE = 4.0  # of the gate, as in the authors' code
GATE, BASIS = ("down", "up", "key"), "basis "  # names of a gate's tensors; begins those of the three bases


def gate(key_H: Tensor, features_BH: Tensor) -> Tensor:
    r"""$a = \lvert 2\sigma(4 \cos(k, x)) - 1 \rvert$, (B,), 0..1: 0 where the features are orthogonal to the key.

    Args:
        key_H: k.
        features_BH: x.

    >>> gate(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 5.0], [3.0, 0.0], [-1.0, 0.0]]))
    tensor([0.0000, 0.9640, 0.9640])
    """
    cosine_B = cosine_similarity(features_BH, key_H[None], dim=-1)
    return (2 * torch.sigmoid(SLOPE * cosine_B) - 1).abs()


def extended(basis_NK: Tensor, rows_BN: Tensor, share: float) -> Tensor:
    r"""An orthonormal basis with as few further directions as explain a share of some rows.

    It explains $\sum_b \lVert M^\top r_b\rVert^2$ of $\sum_b \lVert r_b\rVert^2$. This is
    the memory of Gradient Projection Memory (GPM, Saha et al., ICLR 2021).

    Args:
        basis_NK: M, with orthonormal columns, perhaps none.
        rows_BN: $r_b$.
        share: of the rows' squared norms, 0..1; with 1 all of them lie in the span.

    >>> extended(torch.zeros(2, 0), torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 0.9).abs()
    tensor([[1.],
            [0.]])
    """
    rows_BN, old_NK = rows_BN.double(), basis_NK.double()
    rest_BN = rows_BN - rows_BN @ old_NK @ old_NK.T
    _, sizes, new_KN = torch.linalg.svd(rest_BN, full_matrices=False)
    wanted = share * rows_BN.square().sum() - (rows_BN.square().sum() - rest_BN.square().sum())
    # Directions that are rounding errors are none.
    real = sizes > sizes.new_tensor(rows_BN.norm().item() * max(rows_BN.shape) * torch.finfo(torch.float32).eps)
    number = min(int((sizes.square().cumsum(0) < wanted).sum()) + int(wanted > 0), int(real.sum()))
    found_NK: Tensor = torch.linalg.qr(torch.cat([old_NK, new_KN[:number].T], dim=1))[0]
    # In the layout of a loaded one, so that products have the same digits.
    return found_NK.to(basis_NK.dtype).clone(memory_format=torch.contiguous_format)


def outside(change_WN: Tensor, basis_NK: Tensor) -> Tensor:
    r"""$\Delta (I - M M^\top)$: a change of a matrix that does not act on the span of a basis.

    >>> outside(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.0]]))
    tensor([[0., 2.]])
    """
    return change_WN - change_WN @ basis_NK @ basis_NK.T


class Gate(nn.Module):
    r"""$a(e) = \mathrm{gate}(k, x)$ with $m = \mathrm{silu}(G_1 e)$ and $x = \mathrm{silu}(G_2 m)$.

    Args:
        down_WH: $G_1$, copied.
        up_HW: $G_2$, copied.
        key_H: k, copied.
    """

    def __init__(self, down_WH: Tensor, up_HW: Tensor, key_H: Tensor) -> None:
        super().__init__()
        self.down, self.up, self.key = (nn.Parameter(one.detach().float().clone()) for one in (down_WH, up_HW, key_H))

    def inner(self, pooled_BH: Tensor) -> list[Tensor]:
        """The inputs of the two layers and of the key: e, (B, H), m, (B, W), and x, (B, H)."""
        hidden_BW = silu(pooled_BH @ self.down.T)
        return [pooled_BH, hidden_BW, silu(hidden_BW @ self.up.T)]

    def forward(self, pooled_BH: Tensor) -> Tensor:
        """The gate of each prompt, (B,)."""
        return gate(self.key, self.inner(pooled_BH)[-1])


class GainLora(GatedMethod):
    r"""The sum of all tasks' adapters, each times its gate $a_t(e)$ of the prompt; the newest of both are trained.

    A new gate begins as a copy of the previous one, with the key that the task's prompts agree on most, outside the span of
    what earlier tasks' prompts gave at its place. After each step the changes of $G_1$, $G_2$ and $k$ are projected off the
    spans of what earlier prompts gave at their inputs. So the new gate is 0 on prompts in these spans.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        threshold: share of the squared norm of a task's rows that the spans explain, 0..1.
        width: of the gates' hidden layer, at least 1.
        orthogonality: weight of O-LoRA's penalty on the new adapter's A, see ``olora.overlap``; 0 for none.
    """

    def __init__(self, setup: Setup, *, threshold: float, width: int, orthogonality: float) -> None:
        super().__init__(setup)
        within("method.threshold", threshold, 0, 1)
        within("method.width", width, 1)
        within("method.orthogonality", orthogonality, 0)
        self.threshold, self.width, self.orthogonality = threshold, width, orthogonality
        #: The newest task's first, as the adapters.
        self.gates = nn.ModuleList()
        #: Of the inputs of G_1, of G_2 and of the key, over all past tasks.
        self.bases: list[Tensor] = []
        self._start: list[Tensor] = []

    # ------------------------------------------------------------------------------------------ one task

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Adds an adapter and a gate."""
        super().begin_task(task, memory)
        self.gates.requires_grad_(False)
        new = self._next(task)
        self.gates.insert(0, new.to(self.pool.device()))
        new.requires_grad_(True)
        self._start = [weight.detach().clone() for weight in new.parameters()]

    def _next(self, task: Task) -> Gate:
        """The gate that a task begins with."""
        pooled_BH = self._pooled_of(task)
        if self.gates:
            new = Gate(*self.newest.parameters())
        else:
            new = self._first(pooled_BH.shape[1]).to(pooled_BH.device)
            self.bases = [pooled_BH.new_zeros(size, 0) for size in (pooled_BH.shape[1], self.width, pooled_BH.shape[1])]
        with torch.no_grad():
            rows_BH = outside(new.inner(pooled_BH)[-1], self.bases[-1])
            new.key.copy_(torch.linalg.svd(rows_BH.double(), full_matrices=False)[2][0])
        return new

    def _first(self, size: int) -> Gate:
        with torch.random.fork_rng():
            torch.manual_seed(seed(self.run_seed, "all tasks", "gate"))
            down, up = nn.Linear(size, self.width, bias=False), nn.Linear(self.width, size, bias=False)
        return Gate(down.weight, up.weight, torch.zeros(size))

    def _pooled_of(self, task: Task) -> Tensor:
        return self.pooled([self.template.prompt_ids(example) for example in task.train])

    def penalty(self) -> Tensor | None:
        """O-LoRA's overlap of the new A with every earlier one; None without."""
        new, *old = self.tasks
        if not old or not self.orthogonality:
            return None
        pairs = [
            (self.pool.pair(layer, new)[0], self.pool.pair(layer, task)[0])
            for layer in self.pool.layers
            for task in old
        ]
        return self.orthogonality * torch.stack([overlap(a_old, a_new, "absolute") for a_new, a_old in pairs]).sum()

    def after_step(self) -> None:
        """Projects the changes of the gate's weights since the task began."""
        with torch.no_grad():
            for weight, start, basis in zip(self.newest.parameters(), self._start, self.bases, strict=True):
                weight.copy_(start + outside((weight - start).view(-1, start.shape[-1]), basis).view_as(weight))

    def end_task(self, task: Task, memory: Memory) -> None:
        """Extends the spans by what the task's prompts give in its gate."""
        inner = self.newest.inner(self._pooled_of(task))
        self.bases = [extended(basis, rows, self.threshold) for basis, rows in zip(self.bases, inner, strict=True)]

    # ------------------------------------------------------------------------------------------ gates, and what is kept

    @property
    def newest(self) -> Gate:
        """The gate of the newest task."""
        gate = self.gates[0]
        assert isinstance(gate, Gate)
        return gate

    def weights_of(self, pooled_BH: Tensor) -> Tensor:
        """The gate of each task, (B, T), the newest task's first."""
        return torch.stack([one(pooled_BH) for one in self.gates], dim=1)

    def rule(self) -> Iterator[Tensor]:
        """The weights of all gates."""
        yield from self.gates.parameters()

    def state(self) -> dict[str, Tensor]:
        """The newest gate, and the spans of all tasks; earlier gates are in their tasks' states."""
        newest: Iterable[Tensor] = self.newest.parameters() if self.gates else ()
        kept = {f"{BASIS}{number}": basis for number, basis in enumerate(self.bases)}
        return dict(zip(GATE, newest, strict=False)) | kept

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """Adds a task's gate; its spans replace those before it."""
        self.gates.insert(0, Gate(*(tensors[name] for name in GATE)).requires_grad_(False))
        self.bases = [tensors[f"{BASIS}{number}"] for number in range(len(GATE))]

    def state_bytes(self) -> int:
        """All gates and the spans."""
        return sum(tensor.nbytes for tensor in (*self.gates.parameters(), *self.bases))
