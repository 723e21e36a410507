"""TreeLoRA: the tree's halves, the bandit against its own history, the penalty and the gradients against explicit ones."""

import math

import pytest
import torch
from torch import Tensor

from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.methods.treelora import Node, Search, TreeLora, distance, grow, lower_bound
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.learning import learn, task_named

TARGETS = ["q_proj", "down_proj"]


def treelora(strength: float = 0.5) -> TreeLora:
    return TreeLora(
        Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(global_batch_size=2), 0),
        strength=strength,
    )


def trained(*tasks: str, strength: float = 0.5) -> TreeLora:
    method = treelora(strength)
    for task in tasks:
        learn(method, task)
        with torch.no_grad():
            method.end_task(task_named(task), Memory(0))
    return method


def random_gradients(tasks: int, layers: int, seed: int = 0) -> list[list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [[torch.randn(2, 3, generator=draw) for _ in range(layers)] for _ in range(tasks)]


def leaves(node: Node) -> list[Node]:
    return [leaf for child in node.children for leaf in leaves(child)] or [node]


def nodes(node: Node, depth: int = 0) -> list[tuple[Node, int]]:
    return [(node, depth), *(pair for child in node.children for pair in nodes(child, depth + 1))]


@pytest.mark.parametrize(("tasks", "layers"), [(1, 2), (2, 3), (7, 4), (9, 2)])
def test_each_node_is_split_in_halves_of_which_one_is_nearer_to_its_mean(tasks, layers):
    gradients = random_gradients(tasks, layers)
    tree = grow(range(tasks), gradients)
    assert sorted(task for leaf in leaves(tree) for task in leaf.tasks) == list(range(tasks)) == list(tree.tasks)
    for node, depth in nodes(tree):
        assert bool(node.children) == (len(node.tasks) > 1 and depth < layers)
        if node.children:
            near, far = (child.tasks for child in node.children)
            assert sorted(near + far) == list(node.tasks)
            assert len(near) - len(far) == len(node.tasks) % 2
            mean = sum(gradients[task][depth] for task in node.tasks) / len(node.tasks)
            along = {task: float((gradients[task][depth] * mean).sum()) for task in node.tasks}
            assert min(along[task] for task in near) >= max(along[task] for task in far)


#: ``KDTreeNode`` of utils/kd_lora_tree.py, ZinYY/TreeLoRA, commit c6a9b6d, on ``drawn(tasks, tasks, 2, 6)``: depth and tasks.
AUTHORS = {
    3: [(0, (0, 1, 2)), (1, (1, 2)), (2, (1,)), (2, (2,)), (1, (0,))],
    4: [(0, (0, 1, 2, 3)), (1, (0, 1, 3)), (2, (0, 3)), (2, (1,)), (1, (2,))],
    5: [(0, (0, 1, 2, 3, 4)), (1, (0, 1, 3)), (2, (0, 3)), (2, (1,)), (1, (2, 4)), (2, (2,)), (2, (4,))],
}


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("tasks", [3, 4, 5])
def test_the_tree_is_that_of_the_authors_code_where_a_node_has_an_odd_number_of_tasks(tasks):
    """An even number is split unevenly there: one task more than half of them is not below the lower median."""
    gradients = [list(layers) for layers in drawn(tasks, tasks, 2, 6, dtype=torch.float32)]
    found = {(depth, node.tasks) for node, depth in nodes(grow(range(tasks), gradients))}
    if tasks % 2:
        assert found == set(AUTHORS[tasks])
    else:
        assert [len(of) for depth, of in AUTHORS[4] if depth == 1] == [3, 1]
        assert sorted(len(of) for depth, of in found if depth == 1) == [2, 2]


def test_the_bonus_is_that_of_the_authors_code_which_has_the_distance_with_the_other_sign():
    """Run with 10 steps, in step 3: ``tree_search`` of utils/kd_lora_tree.py, ZinYY/TreeLoRA, commit c6a9b6d.

    Two tasks had the distances 0.3 in 2 pulls and 0.8 in 5. The code prefers large values of what it computes from them.
    """
    (near, far), (n, m) = (0.3, 0.8), (2, 5)
    found = [1.5238718855015077, 1.5740451250185241]
    assert [-lower_bound(-near, n, 3, 10), -lower_bound(-far, m, 3, 10)] == pytest.approx(found, abs=1e-5)
    assert found[1] > found[0], "its softmax gives the far task the larger probability, 0.513"
    assert lower_bound(near, n, 3, 10) < lower_bound(far, m, 3, 10), "the near task has the smaller bound"


def test_the_penalty_does_not_stretch_the_adapter_as_that_of_the_authors_code_does():
    """Run on these tensors: ``get_loss`` of utils/kd_lora_tree.py, subtracted from a loss of 2 as in model/Regular/Tree_LoRA.py.

    Its gradient has the product -0.4 with the adapter, for the loss 2 and the weight 0.2: that of $-0.4 \\ln \\lvert p \\rvert$
    with $p = \\langle A, A' \\rangle$, whatever A is, so a step makes A longer.
    """
    a, past = drawn(1, 2, 4).requires_grad_(), drawn(2, 2, 2, 4)
    authors = torch.tensor(
        [
            [-0.5673273111595308, 0.028772613553941635, 0.2101648576194262, -0.3086715273432865],
            [-0.43800158577541637, 0.11806857505775259, -0.014787977745135817, -0.14277023602172376],
        ],
        dtype=torch.float64,
    )
    targets = [past[1, 0], past[0, 1]]
    product = (a * torch.stack(targets)).sum()
    (by_logarithm,) = torch.autograd.grad(-0.4 * product.abs().log(), a)
    torch.testing.assert_close(by_logarithm, authors, atol=1e-5, rtol=1e-4)
    assert float((authors * a.detach()).sum()) == pytest.approx(-0.4, abs=1e-5)
    (ours,) = torch.autograd.grad(2 * distance(list(a), targets), a)
    assert ours.abs().max() > 0.01
    assert float((ours * a.detach()).sum().abs()) < 1e-12


def test_the_search_takes_the_smallest_bound_of_its_whole_history_and_settles_on_the_nearest_leaf():
    gradients, steps = random_gradients(6, 3), 400
    search = Search(grow(range(6), gradients), steps)
    mine = [g + 0.3 * h for g, h in zip(gradients[4], gradients[1], strict=True)]
    history: list[tuple[list[Node], float]] = []
    for step in range(steps):
        path, expected = search.path(), [search.root]
        while expected[-1].children:
            bounds = []
            for child in expected[-1].children:
                seen = [value for before, value in history if child in before]
                bonus = math.sqrt(math.log(2 * steps * (step + 1) * (step + 2)) / (2 * len(seen))) if seen else math.inf
                bounds.append((sum(seen) / len(seen) if seen else 0.0) - bonus)
            expected.append(expected[-1].children[bounds.index(min(bounds))])
        assert path == expected
        value = float(distance(mine, gradients[path[-1].tasks[0]]))
        search.observe(path, value)
        history.append((path, value))
    by_force = min(range(6), key=lambda task: float(distance(mine, gradients[task])))
    ends = [path[-1].tasks[0] for path, _ in history]
    assert max(set(ends), key=ends.count) == by_force == 4
    assert set(ends) == set(range(6)), "each leaf is tried"


def test_the_distance_is_that_of_flat_cosines():
    g, h = random_gradients(2, 3)
    expected = sum(
        (1 - float(a.flatten() @ b.flatten() / (a.norm() * b.norm()))) / 2 for a, b in zip(g, h, strict=True)
    )
    assert float(distance(g, h)) == pytest.approx(expected / 3, abs=1e-6)
    assert float(distance(g, [3 * a for a in g])) == pytest.approx(0, abs=1e-6)
    assert float(distance(g, [-a for a in g])) == pytest.approx(1, abs=1e-6)


def test_the_penalty_grows_to_its_full_weight_and_is_zero_on_the_mean_of_the_path_s_adapters():
    method = trained("sky", "sea")
    method.begin_task(task_named("ice"), Memory(0))
    method.steps, method.step = 4, 0
    assert method.penalty().item() == 0
    method.step = 3
    path, earlier = method.search.path(), list(method.weights_of.values())
    assert [node.tasks for node in path] == [(0, 1), path[1].tasks]
    total = 0.0
    for depth, layer in enumerate(method.pool.layers):
        tasks = path[min(depth, 1)].tasks
        target = sum(earlier[task][layer] for task in tasks) / len(tasks)
        a = method.pool.pair(layer, method.ADAPTER)[0].detach()
        total += 1 - float((a * target).sum() / (a.norm() * target.norm()))
        a.copy_(3 * target)
    expected = 0.5 * 3 / 4 * total / len(method.pool.layers)
    assert expected > 1e-4
    assert method.penalty().item() == pytest.approx(0, abs=1e-6)
    for layer in method.pool.layers:  # back to the weights that the second task left
        method.pool.pair(layer, method.ADAPTER)[0].data.copy_(earlier[1][layer])
    assert method.penalty().item() == pytest.approx(expected, rel=1e-4)


def test_a_step_observes_the_gradient_of_the_loss_without_the_penalty():
    method = trained("sky", "sea", strength=50.0)
    method.begin_task(task_named("ice"), Memory(0))
    method.eval()
    method.steps, method.step = 2, 1
    method.zero_grad()
    (batch,) = method.batches(task_named("ice").train, 9)
    own = torch.autograd.grad(method.loss(batch), method._a())
    (method.loss(batch) + method.penalty()).backward()
    path = method.path
    (leaf,) = path[-1].tasks
    method.edit_gradients()
    expected = distance(own, list(list(method.gradients_of.values())[leaf].values()))
    assert method.search.sums[path[-1]] == pytest.approx(float(expected), abs=1e-4)
    assert method.search.pulls == {node: 1 for node in path}
    method.after_step()
    assert method.step == 2
    assert method.path[-1] != path[-1], "the leaf without an observation comes next"


def test_a_task_leaves_the_gradient_of_the_mean_loss_on_all_its_rows():
    method = trained("sky")
    parts = []
    for row in task_named("sky").train:
        (batch,) = method.batches([row], 1)
        parts.append(torch.autograd.grad(method.loss(batch), method._a()))
    for layer, *rows in zip(method.pool.layers, *parts, strict=True):
        torch.testing.assert_close(method.gradients_of["sky"][layer], sum(rows) / 3, rtol=1e-3, atol=1e-6)
        assert torch.equal(method.weights_of["sky"][layer], method.pool.pair(layer, method.ADAPTER)[0])


def test_the_first_task_is_sequential_fine_tuning_bit_for_bit_and_a_strength_of_zero_stays_so():
    theirs = SeqFt(Setup(small.pool(rank=4, targets=TARGETS), small.TEMPLATE, OptimConfig(), 0))
    expected = [learn(theirs, task) for task in ("sky", "sea")]
    method, other = treelora(strength=0.0), treelora(strength=20.0)
    assert learn(method, "sky") == learn(other, "sky") == expected[0]
    for one in (method, other):
        with torch.no_grad():
            one.end_task(task_named("sky"), Memory(0))
    assert learn(method, "sea") == expected[1] != learn(other, "sea")


def test_folders_bring_every_task_back(tmp_path):
    method, again = treelora(), treelora()
    for task in ("sky", "sea"):
        learn(method, task)
        with torch.no_grad():
            method.end_task(task_named(task), Memory(0))
        method.save(task, tmp_path / task)
    for task in ("sky", "sea"):
        again.restore(task, tmp_path / task)
    assert method.storage() == again.storage()
    assert method.storage()["state"] == 4 * sum(a.nbytes for a in method._a())
    assert learn(method, "ice") == learn(again, "ice")
    with torch.no_grad():
        method.end_task(task_named("ice"), Memory(0))
    assert sum(method.report()["similar"].values()) == 3
    assert set(method.report()["similar"]) == {"sky", "sea"}


def test_a_negative_strength_is_refused():
    with pytest.raises(ConfigError, match=r"method\.strength"):
        treelora(strength=-1.0)
