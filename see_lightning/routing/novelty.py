"""How new prompts are to an expert, told by what is kept of the prompts of its own task.

Letters: P prompts, H hidden states, D states of the auto-encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from see_lightning.adapters.embeddings import from_the_others, within

FEWEST = 4  # different prompts by which a task can be described
DIM = 128  # states of the auto-encoder, as in SEMA
STEPS, ROWS, RATE = 2000, 32, 1e-3  # of its training, by Adam: near the best linear reconstruction by then
APART = 5  # one prompt in so many is not shown to it


class Descriptor(ABC):
    """What is kept of a task's prompts: it says of others how far they lie, by the measure of the task's own.

    Args:
        tensors: all of it, as a file holds it; ``mean`` and ``std`` are those of the own prompts' distances, each found
            without the help of the prompt itself.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    @abstractmethod
    def of(cls, states_PH: Tensor, weights_seed: int) -> Self:
        """Describe a task.

        Args:
            states_PH: where its prompts lie, see ``embed_prompts``; at least ``FEWEST`` different ones.
            weights_seed: draws what is drawn.
        """

    @abstractmethod
    def distances(self, states_PH: Tensor) -> Tensor:
        """How far prompts lie from the task's, (P,)."""

    def z(self, states_PH: Tensor) -> Tensor:
        """The same as (d - mean) / std: 0 where the task's own prompts lie on average, below 0 nearer, (P,)."""
        return (self.distances(states_PH) - self.tensors["mean"]) / self.tensors["std"]


class Gaussian(Descriptor):
    """Mean and shrunk covariance. Distances are Mahalanobis'; each own prompt's is that from all the others."""

    @classmethod
    def of(cls, states_PH: Tensor, weights_seed: int) -> Self:
        """Nothing is drawn, for all of it has a closed form."""
        states_PH = states_PH.cpu().double()
        own_P = from_the_others(states_PH).sqrt()
        return cls({"centre": states_PH.mean(0), "covariance": within([states_PH]), **_measure(own_P)})

    def distances(self, states_PH: Tensor) -> Tensor:
        """Mahalanobis distances from the mean."""
        apart_HP = (states_PH.cpu().double() - self.tensors["centre"].double()).T
        distances_P: Tensor = torch.linalg.solve_triangular(self._factor_HH, apart_HP, upper=False).norm(dim=0)
        return distances_P

    @cached_property
    def _factor_HH(self) -> Tensor:
        """Cholesky's factor of the covariance, found once for all queries."""
        factor_HH: Tensor = torch.linalg.cholesky(self.tensors["covariance"].double())
        return factor_HH


class AutoEncoder(Descriptor):
    """A linear auto-encoder. Distances are mean squared errors of reconstruction; own ones are of prompts kept from it."""

    @classmethod
    def of(cls, states_PH: Tensor, weights_seed: int) -> Self:
        """Train it, on the CPU, where the same seed gives the same weights."""
        states_PH = states_PH.cpu()
        is_apart_P = torch.arange(len(states_PH)) % min(APART, len(states_PH) // 2) == 0
        shown_PH = states_PH[~is_apart_P]
        centre_H = shown_PH.mean(0)
        # One measure for all states: what moves little is not blown up, and one learning rate serves for every model.
        scale = (shown_PH - centre_H).square().mean().sqrt()
        shown_PH = (shown_PH - centre_H) / scale
        hidden = shown_PH.shape[1]
        dim = min(DIM, hidden // 4)  # a bottleneck in small models too
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(weights_seed)
            coder = nn.Sequential(nn.Linear(hidden, dim), nn.Linear(dim, hidden))
            optimizer = torch.optim.Adam(coder.parameters(), lr=RATE)
            for _ in range(STEPS):
                rows_BH = shown_PH[torch.randint(len(shown_PH), (ROWS,))]
                optimizer.zero_grad()
                mse_loss(coder(rows_BH), rows_BH).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        one = torch.ones(())
        made = cls({"centre": centre_H, "scale": scale, **coder.state_dict(), "mean": 0 * one, "std": one})
        return cls({**made.tensors, **_measure(made.distances(states_PH[is_apart_P]))})

    def distances(self, states_PH: Tensor) -> Tensor:
        """What of the prompts the few states do not hold."""
        kept = self.tensors
        apart_PH = (states_PH.cpu().float() - kept["centre"]) / kept["scale"]
        code_PD = linear(apart_PH, kept["0.weight"], kept["0.bias"])
        return (linear(code_PD, kept["1.weight"], kept["1.bias"]) - apart_PH).square().mean(1)


DESCRIPTORS: dict[str, type[Descriptor]] = {"gaussian": Gaussian, "autoencoder": AutoEncoder}


def _measure(own_P: Tensor) -> dict[str, Tensor]:
    # Prompts that happen to lie equally far must not put all others infinitely far away.
    return {"mean": own_P.mean(), "std": own_P.std().clamp(min=1e-3 * float(own_P.mean()))}
