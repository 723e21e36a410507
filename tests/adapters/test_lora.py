"""An expert's update in training, against PEFT's own layer and torch's dropout."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from see_lightning.adapters.lora import kept_numbers, update


def peft_layer(base: nn.Linear) -> Linear:
    layer = Linear(base, "one", LoraConfig(), r=4, lora_alpha=6, init_lora_weights=False)
    layer.set_adapter("one")
    return layer


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24)])
def test_without_dropout_the_sum_and_its_gradients_are_those_of_pefts_layer(shape):
    torch.manual_seed(0)
    base, x = nn.Linear(24, 12), torch.randn(shape)
    layer, weights = peft_layer(base), torch.randn(*shape[:-1], 12)
    outcomes = []
    for ours in (True, False):
        given = x.clone().requires_grad_()
        layer.zero_grad()
        down, up = layer.lora_A["one"].weight, layer.lora_B["one"].weight
        y = update(base(given), given, down, up, scale=1.5, drop=0.0) if ours else layer(given)
        (y * weights).sum().backward()
        outcomes.append((y, given.grad, down.grad.clone(), up.grad.clone()))
    for here, there in zip(*outcomes, strict=True):
        torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drop", [0.05, 0.1, 0.5, 0.9])
def test_each_number_is_kept_by_itself_with_the_share_that_is_told(drop, dtype):
    torch.manual_seed(1)
    rows, columns = 1000, 401  # no multiple of four
    kept, share = kept_numbers(torch.zeros(rows, columns, dtype=dtype), drop)
    assert (kept.shape, kept.dtype) == ((rows, columns), dtype)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(share - (1 - drop)) <= 2**-17
    kept = kept.double()
    spread = (share * (1 - share)) ** 0.5
    assert abs(kept.mean() - share) < 5 * spread / (rows * columns) ** 0.5
    assert ((kept.mean(dim=0) - share).abs() < 6 * spread / rows**0.5).all(), "no column is favoured"
    centred = (kept - share).flatten() / spread
    for step in (1, 2, 3, 4, columns):  # neighbours share a random integer, and must not share a fate
        assert abs((centred[step:] * centred[:-step]).mean()) < 5 / (rows * columns) ** 0.5


def test_with_dropout_the_update_is_right_on_average_and_the_frozen_output_is_untouched():
    torch.manual_seed(2)
    y, x, down, up = torch.randn(6, 12), torch.randn(6, 24), torch.randn(4, 24), torch.randn(12, 4)
    still = update(y, x, down, up, scale=0.5, drop=0.0)
    drawn = torch.stack([update(y, x, down, up, scale=0.5, drop=0.25) for _ in range(4000)])
    wide = drawn.std(dim=0) / 4000**0.5
    assert ((drawn.mean(dim=0) - still).abs() < 6 * wide).all()
    reference = torch.stack([y + 0.5 * nn.functional.dropout(x, 0.25) @ down.T @ up.T for _ in range(4000)])
    torch.testing.assert_close(drawn.std(dim=0), reference.std(dim=0), rtol=0.15, atol=0)
    assert torch.equal(update(y, torch.zeros(6, 24), down, up, scale=0.5, drop=0.25), y)


def test_what_is_dropped_gets_no_gradient():
    torch.manual_seed(3)
    x = torch.ones(50, 24, requires_grad=True)
    update(torch.zeros(50, 12), x, torch.ones(4, 24), torch.ones(12, 4), scale=1.0, drop=0.5).sum().backward()
    # 12 outputs through rank 4, twice as strong because half is dropped.
    assert set(x.grad.unique().tolist()) == {0.0, 96.0}


def test_the_same_seed_drops_the_same():
    x = torch.ones(9, 5)
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(kept_numbers(x, 0.5)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
