"""Tensors by formula, on which other programs gave the numbers that tests compare."""

import math

import torch
from torch import Tensor


def waves(*shape: int, phase: float = 0.0) -> Tensor:
    r"""$\sin(0.3\,n^2 + \phi)$ for $n = 1, 2, \dots$, row by row, in fp64: of full rank, with entries of both signs."""
    n = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (0.3 * n**2 + phase).sin().view(shape)


def fading(number: int) -> Tensor:
    r"""Nine inputs of a task in columns, (6, 9), fp64: $2^{-((i - 2t) \bmod 6)} \sin(0.9\,(i + 2)(j + 1) + t)$ for task $t$."""
    i, j = torch.arange(6.0, dtype=torch.float64)[:, None], torch.arange(9.0, dtype=torch.float64)
    return 2.0 ** -((i - 2 * number) % 6) * (0.9 * (i + 2) * (j + 1) + number).sin()
