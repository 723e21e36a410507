"""A shared adapter: its first draw, and that what tasks use stays while the rest goes back to it."""

import pytest
import torch
from torch import nn

from see_lightning.methods.subnetworks.masks import top_share
from see_lightning.methods.subnetworks.mixture import LayerMask
from see_lightning.methods.subnetworks.shared_adapter import SharedAdapter
from tests.adapters import small

RANK = 4


def made(alpha: float = 8.0, **more) -> SharedAdapter:
    return SharedAdapter(small.pool(rank=RANK, alpha=alpha, targets=["q_proj", "down_proj"]), "one", 7, **more)


def masks_of(shared: SharedAdapter, number: int) -> list[LayerMask]:
    draw = torch.Generator().manual_seed(number)
    return [
        LayerMask(*(torch.rand(weight.shape, generator=draw) < 0.4 for weight in shared.pair(layer)))
        for layer in shared.pool.layers
    ]


def moved(shared: SharedAdapter, number: int) -> None:
    """All of it moves, as if trained."""
    draw = torch.Generator().manual_seed(100 + number)
    for layer in shared.pool.layers:
        for weight in shared.pair(layer):
            nn.init.normal_(weight, generator=draw)


def weights(shared: SharedAdapter) -> list[torch.Tensor]:
    return [weight.detach().clone() for layer in shared.pool.layers for weight in shared.pair(layer)]


def flat(masks: list[LayerMask]) -> list[torch.Tensor]:
    return [part for mask in masks for part in (mask.down, mask.up)]


def test_b_is_zero_or_drawn_as_a_linear_layer_over_the_scale():
    assert not any(up.any() for up in weights(made())[1::2])
    shared = made(draw_up=True)
    ups = torch.cat([up.flatten() for up in weights(shared)[1::2]])
    bound = RANK**-0.5 / 2  # the scale is 8 / 4
    assert ups.abs().max() <= bound
    assert float(ups.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert all(map(torch.equal, weights(shared), weights(made(draw_up=True))))


def test_what_a_drawn_adapter_adds_does_not_hang_on_alpha():
    low, high = made(alpha=8.0, draw_up=True), made(alpha=32.0, draw_up=True)
    for one, other in zip(low.pool.layers, high.pool.layers, strict=True):
        torch.testing.assert_close(
            low.pool.scale(one, "one") * low.pair(one)[1], high.pool.scale(other, "one") * high.pair(other)[1]
        )


def test_what_a_task_uses_it_keeps_and_the_rest_is_the_first_draw():
    shared = made(draw_up=True)
    expected = weights(shared)
    used = [torch.zeros_like(one, dtype=torch.bool) for one in expected]
    for number in (1, 2):
        masks = masks_of(shared, number)
        before = weights(shared)
        shared.begin()
        moved(shared, number)
        learned = weights(shared)
        shared.put_back()
        for now, old, then, rest in zip(weights(shared), learned, before, used, strict=True):
            assert torch.equal(now, torch.where(rest, then, old))
        shared.take(masks)
        mine = [mask & ~rest for mask, rest in zip(flat(masks), used, strict=True)]
        expected = [torch.where(own, new, old) for own, new, old in zip(mine, learned, expected, strict=True)]
        assert all(map(torch.equal, weights(shared), expected))
        used = [mask | rest for mask, rest in zip(flat(masks), used, strict=True)]
    assert shared.nbytes() == 4 * sum(int(one.sum()) for one in used)


def test_what_earlier_tasks_use_has_no_gradient():
    shared = made(draw_up=True)
    masks = masks_of(shared, 1)
    shared.take(masks)
    shared.pool.train_only("one", "one")
    every = [weight for layer in shared.pool.layers for weight in shared.pair(layer)]
    for weight in every[1:]:  # one that has no gradient is passed over
        weight.grad = torch.ones_like(weight)
    shared.spare()
    assert every[0].grad is None
    for weight, mask in zip(every[1:], flat(masks)[1:], strict=True):
        assert torch.equal(weight.grad, (~mask).float())


def test_another_process_that_is_given_each_tasks_part_has_the_same_adapter():
    shared, copy = made(draw_up=True), made(draw_up=True)
    for number in (1, 2, 3):
        masks = masks_of(shared, number)
        shared.begin()
        moved(shared, number)
        shared.put_back()
        shared.take(masks)
        files = [mask.of(*shared.pair(layer)) for layer, mask in zip(shared.pool.layers, masks, strict=True)]
        copy.give(masks, [(a.detach(), b.detach()) for a, b in files])
        assert all(map(torch.equal, weights(shared), weights(copy)))
    assert shared.nbytes() == copy.nbytes()


def test_the_weights_that_a_task_may_change_are_those_of_the_authors_code_of_exssnet():
    """Run on these scores at a density of 0.1: ``get_editable_weights_mask_dict`` of trainers/weights.py.

    Of prateeky2806/exessnet, commit 1e768f8, for the third task, whose mask has 13 weights of which earlier masks have 5.
    """
    shared = made()
    layer, *rest = shared.pool.layers
    masks = []
    for number in range(3):
        scores = torch.randn(4, 32, 1, generator=torch.Generator().manual_seed(60 + number))
        down = top_share(scores.view(1, -1), 0.1).view(4, 32)
        none = [
            LayerMask(*(torch.zeros(weight.shape, dtype=torch.bool) for weight in shared.pair(one))) for one in rest
        ]
        masks.append([LayerMask(down, torch.zeros(shared.pair(layer)[1].shape, dtype=torch.bool)), *none])
    shared.begin()
    shared.take(masks[0])
    shared.take(masks[1])
    a = shared.pair(layer)[0]
    a.grad = masks[2][0].down.float()  # the gradient of a masked weight is 0 outside its mask
    assert int(a.grad.sum()) == 13
    shared.spare()
    assert a.grad.flatten().nonzero().flatten().tolist() == [1, 23, 43, 55, 72, 103, 110, 113]
