"""Eight and four bits for an expert's weights, against brute force and the published values of NormalFloat."""

import pytest
import torch

from see_lightning.adapters.quantization import (
    BLOCK,
    CODES,
    dequantize,
    levels,
    packed,
    packed_bytes,
    quantize,
    relative_error,
    unpacked,
)

KINDS = ["int8", "nf4"]
#: Appendix E of the paper.
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def numbers(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def matrices(rank=8, inputs=96, outputs=70):
    return {
        f"base_model.model.layers.{layer}.q.lora_{which}.weight": numbers(rows * columns, seed).view(rows, columns)
        * 0.1
        for layer in range(2)
        for which, rows, columns, seed in (("A", rank, inputs, layer), ("B", outputs, rank, 10 + layer))
    }


def test_the_values_of_four_bits_are_those_of_the_paper():
    torch.testing.assert_close(levels("nf4"), torch.tensor(PUBLISHED), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1001])
def test_each_number_becomes_the_nearest_level_of_its_block(kind, n):
    values = numbers(n)
    codes, scales = quantize(values, kind)
    found = dequantize(codes, scales, n)
    for begin in range(0, n, BLOCK):
        block = values[begin : begin + BLOCK]
        allowed = levels(kind) * block.abs().max()
        distance = (block[:, None] - allowed).abs().min(1).values
        torch.testing.assert_close((block - found[begin : begin + BLOCK]).abs(), distance, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_stored_again_unchanged(kind):
    once = unpacked(packed(matrices(), kind))
    twice = unpacked(packed(once, kind))
    for name, matrix in once.items():
        assert torch.equal(matrix, twice[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_zeros_and_of_tiny_numbers_stay_finite(kind):
    values = torch.cat([torch.zeros(BLOCK), numbers(BLOCK) * 1e-30, torch.zeros(3)])
    found = dequantize(*quantize(values, kind), len(values))
    assert torch.equal(found[:BLOCK], torch.zeros(BLOCK))
    torch.testing.assert_close(found, values, rtol=0, atol=0.16 * 4e-30)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_b_lies_in_one_rank(kind):
    tensors = matrices(rank=2, outputs=BLOCK)
    (name,) = [one for one in tensors if "layers.0" in one and "_B" in one]
    tensors[name][:, 0] *= 1e4  # in a block with these, the other column would be rounded to zeros
    stored = unpacked(packed(tensors, kind))[name]
    other = tensors[name][:, 1]
    assert (stored[:, 1] - other).norm() < 0.15 * other.norm()


def test_bytes_and_error_fall_and_rise_with_the_number_of_bits():
    tensors = matrices(rank=16, inputs=512, outputs=512)
    errors = {kind: relative_error(tensors, unpacked(packed(tensors, kind))) for kind in KINDS}
    dense = {}
    for kind in KINDS:
        stored, left, whole = unpacked(packed(tensors, kind)), 0.0, 0.0
        for name in (one for one in tensors if "_B" in one):
            a = name.replace("_B", "_A")
            wanted = tensors[name].double() @ tensors[a].double()
            left += float((wanted - stored[name].double() @ stored[a].double()).norm() ** 2)
            whole += float(wanted.norm() ** 2)
        dense[kind] = (left / whole) ** 0.5
    assert errors == pytest.approx(dense, rel=1e-6)
    assert 0 < errors["int8"] < 0.01 < errors["nf4"] < 0.2
    bits = {
        kind: 8
        * sum(packed_bytes(matrix.shape, kind) for matrix in tensors.values())
        / sum(map(torch.numel, tensors.values()))
        for kind in KINDS
    }
    assert bits == {"int8": 8.5, "nf4": 4.5}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [96, 33])
def test_the_bytes_that_are_told_are_those_of_the_tensors(kind, inputs):
    stored = packed(matrices(rank=3, inputs=inputs), kind)
    for name, matrix in matrices(rank=3, inputs=inputs).items():
        assert packed_bytes(matrix.shape, kind) == stored[name + CODES].nbytes + stored[name + ".scales"].nbytes


def test_no_change_has_no_error():
    zeros = {name: torch.zeros_like(matrix) for name, matrix in matrices().items()}
    assert relative_error(zeros, unpacked(packed(zeros, "nf4"))) == 0
    assert relative_error(matrices(), matrices()) == pytest.approx(0, abs=1e-8)
