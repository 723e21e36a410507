"""Experts in eight or four bits: a code for each number of a matrix, and a scale for each block of numbers.

Letters: N numbers of a matrix, K blocks, G numbers of a block, L levels, R rank, I and O the sizes of a layer.
"""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from see_lightning.merging.changes import LowRank, norm, weighted_sum

#: Numbers that share a scale.
BLOCK = 64
#: Bits of a number's code.
BITS = {"int8": 8, "nf4": 4}
CODES, SCALES, SHAPE = ".codes", ".scales", ".shape"  # end the names of a quantised matrix's tensors


@cache
def levels(kind: str) -> Tensor:
    """The values of all codes, (L,), ascending, -1..1.

    ``int8``: 255 values at equal distances. ``nf4``: the 16 values of 4-bit NormalFloat (Dettmers et al., QLoRA,
    NeurIPS 2023, appendix E), quantiles of the normal distribution: 8 of its negative half, 9 of its positive half, and 0 in
    both.

    Args:
        kind: ``int8`` or ``nf4``.
    """
    if BITS[kind] == 8:
        return torch.arange(-127, 128) / 127
    # At the mean of the probabilities 1 - 1/32 and 1 - 1/30, where the last of 16 and of 15 equal parts have their middle.
    end = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above, below = (torch.special.ndtri(torch.linspace(0.5, end, n, dtype=torch.float64)) for n in (9, 8))
    values_L: Tensor = torch.cat([-below.flip(0), above[1:]]) / above[-1]
    return values_L.float()


def quantize(values: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Codes and scales of numbers.

    Args:
        values: (N,), finite.
        kind: ``int8`` or ``nf4``.

    Returns:
        Codes: of ``int8`` one byte each, (N,); of ``nf4`` two in a byte, the first in the high bits, (N / 2,), rounded up.
        And the largest magnitude in each block, (K,), in fp32.
    """
    blocks_KG = _blocks(values.float())
    scales_K = blocks_KG.abs().amax(1)
    relative_N = (blocks_KG / scales_K.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).flatten()[: len(values)]
    if BITS[kind] == 8:
        return (relative_N * 127).round().to(torch.int8), scales_K
    middles = (levels(kind)[1:] + levels(kind)[:-1]) / 2
    codes_N = torch.bucketize(relative_N, middles.to(values.device)).to(torch.uint8)
    even_N = torch.nn.functional.pad(codes_N, (0, len(values) % 2))
    return (even_N[::2] << 4) | even_N[1::2], scales_K


def dequantize(codes: Tensor, scales_K: Tensor, numbers: int) -> Tensor:
    """The numbers, (N,), in fp32, of what ``quantize`` returns.

    Args:
        codes: signed bytes of ``int8``, unsigned ones of ``nf4``.
        scales_K: of the blocks.
        numbers: N.
    """
    if codes.dtype == torch.int8:
        relative_N = codes / 127
    else:
        pairs = torch.stack([codes >> 4, codes & 15], dim=1).flatten()[:numbers]
        relative_N = levels("nf4").to(codes.device)[pairs.int()]
    return (_blocks(relative_N) * scales_K.unsqueeze(1)).flatten()[:numbers]


def _blocks(values_N: Tensor) -> Tensor:
    """Numbers in blocks, (K, G), the last one filled with zeros."""
    return torch.nn.functional.pad(values_N, (0, -len(values_N) % BLOCK)).view(-1, BLOCK)


def packed(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Matrices of LoRA adapters as codes, scales and shapes, by name.

    B is read column by column, so that a block holds numbers of one rank where the matrix is large.

    Args:
        tensors: (R, I) of A, (O, R) of B, by their names in PEFT's files.
        kind: ``int8`` or ``nf4``.
    """
    found = {}
    for name, matrix in tensors.items():
        ordered = matrix.T if _is_b(name) else matrix
        found[name + CODES], found[name + SCALES] = quantize(ordered.flatten(), kind)
        found[name + SHAPE] = torch.tensor(matrix.shape)
    return found


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices, in fp32, of what ``packed`` returns.

    Raises:
        KeyError: a tensor is missing.
    """
    found = {}
    for name in (one.removesuffix(CODES) for one in tensors if one.endswith(CODES)):
        rows, columns = tensors[name + SHAPE].tolist()
        values_N = dequantize(tensors[name + CODES], tensors[name + SCALES], rows * columns)
        found[name] = values_N.view(columns, rows).T.contiguous() if _is_b(name) else values_N.view(rows, columns)
    return found


def _is_b(name: str) -> bool:
    return ".lora_B." in name


def packed_bytes(shape: torch.Size, kind: str) -> int:
    """Bytes of the codes and scales of a matrix.

    >>> packed_bytes(torch.Size([8, 576]), "int8"), packed_bytes(torch.Size([8, 576]), "nf4")
    (4896, 2592)
    """
    numbers = shape.numel()
    return -(-numbers * BITS[kind] // 8) + 4 * -(-numbers // BLOCK)


def relative_error(exact: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> float:
    r"""$\lVert BA - B'A' \rVert_F / \lVert BA \rVert_F$ over all layers, at least 0; 0 if every product is 0.

    Args:
        exact: A, (R, I), and B, (O, R), of each layer, by their names in PEFT's files.
        stored: the same after rounding.
    """
    wanted, found = (_changes(tensors) for tensors in (exact, stored))
    left = {layer: weighted_sum([change, found[layer]], [1.0, -1.0]) for layer, change in wanted.items()}
    whole = float(norm(wanted))
    return float(norm(left)) / whole if whole else 0.0


def _changes(tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """The products of a LoRA adapter in fp64, without its scale."""
    layers = [name.partition(".lora_B.")[0] for name in tensors if _is_b(name)]
    pairs = {layer: (tensors[f"{layer}.lora_B.weight"], tensors[f"{layer}.lora_A.weight"]) for layer in layers}
    return {layer: LowRank(b_OR.detach().double(), a_RI.detach().double()) for layer, (b_OR, a_RI) in pairs.items()}
