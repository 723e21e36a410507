"""Densities of tasks: how far a prompt's embedding lies from the prompts that an expert was trained on.

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

FEWEST = 4  # least number of different prompts of a task
DIM = 128  # states of the auto-encoder, as in SEMA
STEPS, ROWS, RATE = 2000, 32, 1e-3  # of its training, by Adam: near the best linear reconstruction by then
APART = 5  # one prompt in so many is held out from its training


class Descriptor(ABC):
    """A density of a task's prompt embeddings, by which distances of other prompts are standardised.

    Args:
        tensors: its parameters, as in the file; ``mean`` and ``std`` are of the own prompts' distances, each from a density
            that was fitted without that prompt.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    @abstractmethod
    def of(cls, states_PH: Tensor, weights_seed: int) -> Self:
        """Fit a task's density.

        Args:
            states_PH: embeddings of its prompts, from ``embed_prompts``; at least ``FEWEST`` different ones.
            weights_seed: seed of random weights.
        """

    @abstractmethod
    def distances(self, states_PH: Tensor) -> Tensor:
        """Distances of prompts from the task, (P,)."""

    def z(self, states_PH: Tensor) -> Tensor:
        """Standardised distances, (d - mean) / std, (P,): 0 is the average of the task's own prompts."""
        return (self.distances(states_PH) - self.tensors["mean"]) / self.tensors["std"]


class Gaussian(Descriptor):
    """Mean and shrunk covariance; distances are Mahalanobis distances. An own prompt's is from all others of the task."""

    @classmethod
    def of(cls, states_PH: Tensor, weights_seed: int) -> Self:
        """Fits mean and covariance in closed form; the seed is not used."""
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
        """The Cholesky factor of the covariance, computed once."""
        factor_HH: Tensor = torch.linalg.cholesky(self.tensors["covariance"].double())
        return factor_HH


class AutoEncoder(Descriptor):
    """A linear auto-encoder. Distances are mean squared reconstruction errors; own ones are of held-out prompts."""

    @classmethod
    def of(cls, states_PH: Tensor, weights_seed: int) -> Self:
        """Trains on the CPU, where one seed gives the same weights everywhere."""
        states_PH = states_PH.cpu()
        is_apart_P = torch.arange(len(states_PH)) % min(APART, len(states_PH) // 2) == 0
        shown_PH = states_PH[~is_apart_P]
        centre_H = shown_PH.mean(0)
        # One scale for all states: small variances are not amplified, and one learning rate suits every model.
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
        """Mean squared reconstruction errors."""
        kept = self.tensors
        apart_PH = (states_PH.cpu().float() - kept["centre"]) / kept["scale"]
        code_PD = linear(apart_PH, kept["0.weight"], kept["0.bias"])
        return (linear(code_PD, kept["1.weight"], kept["1.bias"]) - apart_PH).square().mean(1)


DESCRIPTORS: dict[str, type[Descriptor]] = {"gaussian": Gaussian, "autoencoder": AutoEncoder}


def _measure(own_P: Tensor) -> dict[str, Tensor]:
    # If all own prompts have one distance, other prompts must not get an infinite z.
    return {"mean": own_P.mean(), "std": own_P.std().clamp(min=1e-3 * float(own_P.mean()))}
