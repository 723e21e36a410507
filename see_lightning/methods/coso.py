r"""CoSO: whole layers are trained in a series of subspaces of their outputs, orthogonal to those that earlier tasks used.

Cheng et al., *Continuous Subspace Optimization for Continual Learning*, NeurIPS 2025, arXiv 2505.11816. A subspace is spanned
by the leading left singular vectors of a gradient, as in GaLore (arXiv 2403.03507), and Adam's moments are those of the
gradient in the subspace. A sketch collects a task's gradients; its principal directions are protected from later tasks.

Letters: I and O the sizes of a layer's input and output, P directions of the subspace, K of the sketch, N any number.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from see_lightning.adapters.whole_layers import WholeLayers
from see_lightning.config.checks import within
from see_lightning.errors import ConfigError
from see_lightning.methods.method import OneAdapterMethod
from see_lightning.methods.setup import Setup, Traits
from see_lightning.methods.subspace import Subspace, packed, unpacked
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


def frequent_directions(columns_ON: Tensor, size: int) -> Tensor:
    r"""A matrix of at most ``size`` columns whose product with its transpose is near that of the given one, (O, K).

    With the singular values $\sigma_i$: $\sigma_i' = \sqrt{\max(\sigma_i^2 - \sigma_{K+1}^2, 0)}$ (Ghashami et al., *Frequent
    Directions*, SIAM J. Comput. 45 (5), 2016).

    Args:
        columns_ON: the columns to be sketched, earlier sketches among them.
        size: K.

    >>> frequent_directions(torch.diag(torch.tensor([5.0, 4.0, 3.0])), 2).abs()
    tensor([[4.0000, 0.0000],
            [0.0000, 2.6458],
            [0.0000, 0.0000]])
    """
    u_OD, s_D, _ = torch.linalg.svd(columns_ON, full_matrices=False)
    cut = s_D[size] if size < len(s_D) else s_D.new_zeros(())
    kept_OK: Tensor = u_OD[:, :size] * (s_D[:size].square() - cut.square()).clamp_min(0).sqrt()
    return kept_OK


def leading(u_OD: Tensor, s_D: Tensor, size: int) -> Tensor:
    r"""The left singular vectors of the largest singular values, each with a positive largest entry, (O, P).

    Vectors of singular values below $10^{-5}$ of the largest are zeros. There, and in protected directions, a gradient is
    rounding alone, which Adam's scaling would make as large as the others.

    Args:
        u_OD: orthonormal columns.
        s_D: singular values, the largest first.
        size: P, at most.

    >>> leading(torch.eye(3), torch.tensor([2.0, 1.0, 1e-9]), 3)
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 0.]])
    """
    u_OP, s_P = u_OD[:, :size], s_D[:size]
    largest_1P = u_OP.gather(0, u_OP.abs().argmax(0, keepdim=True))
    basis_OP: Tensor = u_OP * largest_1P.sign() * (s_P > 1e-5 * s_D[0])
    return basis_OP


@dataclass
class Place:
    """Where a weight is changed at present.

    Args:
        basis_OP: of the subspace, orthonormal columns, or zeros.
        is_transposed: whether the weight is (I, O).
    """

    basis_OP: Tensor
    is_transposed: bool


class SubspaceAdam(Optimizer):
    r"""AdamW in a subspace: $W \leftarrow W - \eta\, P\, \mathrm{Adam}(P^\top G)$. Moments stay when the subspace changes.

    Args:
        weights: to be trained.
        places: by weight; read in each step.
        lr: $\eta$.
        weight_decay: decoupled, on the whole weight.
    """

    BETAS, EPS = (0.9, 0.999), 1e-8  # those of torch's AdamW

    def __init__(
        self, weights: Iterable[nn.Parameter], places: Mapping[nn.Parameter, Place], lr: float, weight_decay: float
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self.places = places

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; weights without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    change_OI = group["lr"] * self._direction(weight)
                    weight.sub_(change_OI.T if self.places[weight].is_transposed else change_OI)
        return loss

    def _direction(self, weight: nn.Parameter) -> Tensor:
        place, kept, (beta1, beta2) = self.places[weight], self.state[weight], self.BETAS
        assert weight.grad is not None
        low_PI = place.basis_OP.T @ (weight.grad.T if place.is_transposed else weight.grad)
        if not kept:
            kept.update(step=0, mean=torch.zeros_like(low_PI), square=torch.zeros_like(low_PI))
        kept["step"] += 1
        kept["mean"].lerp_(low_PI, 1 - beta1)
        kept["square"].lerp_(low_PI.square(), 1 - beta2)
        mean_PI, square_PI = kept["mean"] / (1 - beta1 ** kept["step"]), kept["square"] / (1 - beta2 ** kept["step"])
        step_PI: Tensor = mean_PI / (square_PI.sqrt() + self.EPS)
        return place.basis_OP @ step_PI


class Coso(OneAdapterMethod):
    r"""Changes whole layers orthogonally to the output directions in which earlier tasks changed them.

    Args:
        setup: model, template, optimizer settings and seed of the run.
        rank: P, directions in which a step changes a layer, at least 1.
        sketch: K, directions of the sketch of a task's gradients, at least 1.
        every: steps for which a subspace is kept, at least 1.
        decay: factor of the sketch before the gradients of a new subspace are added, 0..1.
        threshold: $\epsilon$, the share of the sketch's energy that becomes protected when a task ends, 0..1.
    """

    traits = Traits(shardable=False, takes_activated=False, weights="full")

    def __init__(self, setup: Setup, *, rank: int, sketch: int, every: int, decay: float, threshold: float) -> None:
        super().__init__(setup)
        for name, value in (("rank", rank), ("sketch", sketch), ("every", every)):
            within(f"method.{name}", value, 1)
        within("method.decay", decay, 0, 1)
        within("method.threshold", threshold, 0, 1)
        if not setup.pool.adapter.full:
            raise ConfigError("method=coso trains whole layers; write adapter=full.")
        self.rank, self.sketch, self.every, self.decay, self.threshold = rank, sketch, every, decay, threshold
        #: By layer: output directions that are protected; empty before the first task has ended.
        self.protected: dict[str, Subspace] = {}
        #: Of the present task, by layer: the matrix with which it began, and the sketch of its gradients, (O, K).
        self.anchor: dict[str, Tensor] = {}
        self.sketches: dict[str, Tensor] = {}
        self.places: dict[nn.Parameter, Place] = {}
        self.steps = 0

    def begin_task(self, task: Task, memory: Memory) -> None:
        """Trains the matrices of the layers further, without their biases."""
        super().begin_task(task, memory)
        matrices = self._copies().matrices()
        self._copies().requires_grad_(False)
        for matrix in matrices.values():
            matrix.requires_grad_(True)
        self.anchor = {layer: matrix.detach().clone() for layer, matrix in matrices.items()}
        self.sketches, self.places, self.steps = {}, {}, 0

    def make_optimizer(self, weights: list[nn.Parameter]) -> Optimizer:
        """Adam in the subspaces."""
        return SubspaceAdam(weights, self.places, self.optim.lr, self.optim.weight_decay)

    @torch.no_grad()
    def edit_gradients(self) -> None:
        """Removes protected directions from each gradient; every few steps, the gradients give new subspaces."""
        for layer, matrix in self._copies().matrices().items():
            if matrix.grad is None:
                continue
            matrix.grad = self._free(layer, matrix.grad)
            if self.steps % self.every == 0:
                self._renew(layer, matrix)
        self.steps += 1

    def snapshot(self) -> Callable[[], None]:
        """The matrices, and the sketches of their gradients, which are replaced and never changed in place."""
        put_back, sketches = super().snapshot(), dict(self.sketches)

        def with_sketches() -> None:
            put_back()
            self.sketches = sketches

        return with_sketches

    def _renew(self, layer: str, matrix: nn.Parameter) -> None:
        """A new subspace of a layer, by the gradient of this step, which also enters the sketch."""
        is_transposed = self._copies().is_transposed(layer)
        assert matrix.grad is not None
        u_OD, s_D, _ = torch.linalg.svd(matrix.grad.T if is_transposed else matrix.grad, full_matrices=False)
        self.places[matrix] = Place(leading(u_OD, s_D, self.rank), is_transposed)
        new_OK = u_OD[:, : self.sketch] * s_D[: self.sketch]
        old_OK = self.decay * self.sketches.get(layer, new_OK[:, :0])
        self.sketches[layer] = frequent_directions(torch.cat([old_OK, new_OK], dim=1), self.sketch)

    @torch.no_grad()
    def after_step(self) -> None:
        """Removes protected directions from each matrix's change since the task began: weight decay, and roundings."""
        for layer, matrix in self._copies().matrices().items():
            matrix.copy_(self.anchor[layer] + self._free(layer, matrix - self.anchor[layer]))

    def _free(self, layer: str, change: Tensor) -> Tensor:
        """A change of a layer's matrix, in its layout, without its components in protected output directions."""
        protected = self.protected.get(layer)
        if protected is None:
            return change
        return (
            protected.remove(change)
            if self._copies().is_transposed(layer)
            else protected.remove(change.T).T.contiguous()
        )

    def end_task(self, task: Task, memory: Memory) -> None:
        """Protects the principal directions of the task's sketch."""
        for layer, sketch_OK in self.sketches.items():
            before = self.protected.get(layer) or Subspace.empty(len(sketch_OK), sketch_OK.device)
            double_OK = sketch_OK.double()
            self.protected[layer] = before.grow(double_OK @ double_OK.T, self.threshold)
        self.anchor, self.sketches = {}, {}
        self.places.clear()

    def report(self) -> dict[str, float]:
        """``protected_share``: protected output directions as a share of all, 0..1, the mean of the layers."""
        if not self.protected:
            return {}
        shares = [one.dimension() / len(one.basis_IK) for one in self.protected.values()]
        return {"protected_share": round(sum(shares) / len(shares), 4)}

    def _copies(self) -> WholeLayers:
        copies = self.pool.composites[self.ADAPTER]
        assert isinstance(copies, WholeLayers)
        return copies

    def state(self) -> dict[str, Tensor]:
        """A basis for each layer."""
        return packed(self.protected)

    def load_state(self, task: str, tensors: dict[str, Tensor]) -> None:
        """The bases after the last task replace those before it."""
        self.protected = unpacked(tensors)
