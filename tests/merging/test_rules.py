"""Every rule of ``conf/rule``: what it promises, whatever it computes. No rule is named here."""

import pytest
import torch
import yaml
from hydra.utils import get_class

from see_lightning.config.search_path import CONF
from see_lightning.errors import ConfigError
from see_lightning.merging import changes
from see_lightning.merging.arithmetic import Arithmetic
from see_lightning.merging.rule import TaskVector
from tests.merging.test_changes import low

SETTINGS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF / "rule").glob("*.yaml"))}
#: Other values of settings, each of which changes what is merged.
OTHER = {
    "density": 0.6,
    "scale": 0.7,
    "alpha": 0.9,
    "weight": 0.3,
    "share": 0.2,
    "iterations": 3,
    "step": 0.4,
    "variant": "soft",
}


@pytest.fixture(params=SETTINGS)
def rule(request):
    return made(request.param)


def made(name, **settings):
    """A rule with the settings of its file, and others in their place."""
    all_ = {**SETTINGS[name], **settings}
    return get_class(all_.pop("_target_"))(**all_)


def gradient(vectors):
    """Of half the squared distance to a change of all layers, for rules that choose coefficients on rows."""
    dtype = changes.tensors(vectors[0].changes["up"])[0].dtype
    target = {layer: changes.scaled(change, 0.7) for layer, change in vector(1, dtype).changes.items()}

    def product(one, other):
        return sum(float(changes.inner(one[layer], other[layer])) for layer in target)

    gram_TT = torch.tensor([[product(one.changes, other.changes) for other in vectors] for one in vectors]).double()
    towards_T = torch.tensor([product(one.changes, target) for one in vectors]).double()
    return lambda coefficients_T: gram_TT @ coefficients_T - towards_T


def added(rule, merged, vectors, new):
    """``add`` of a vector behind others, with a gradient for rules that need one."""
    return rule.add(merged, new, gradient([*vectors, new]))


def merged_by(rule, vectors):
    merged = None
    for place, one in enumerate(vectors):
        merged = added(rule, merged, vectors[:place], one)
    return rule.result(merged)


def vector(number, dtype=torch.float64, form=lambda change: change):
    """A task vector of two layers; ranks differ between vectors."""
    parts = {"up": low(rank=1 + number % 3, seed=2 * number), "down": low(8, 20, 2, seed=2 * number + 1)}
    return TaskVector(
        {name: form(changes.LowRank(part.b_OR.to(dtype), part.a_RI.to(dtype))) for name, part in parts.items()},
        draw=number,
    )


def in_dense(merged):
    return {layer: changes.dense(change) for layer, change in merged.items()}


def close(one, other, tolerance=1e-9):
    ours, theirs = in_dense(one), in_dense(other)
    for layer in theirs:
        torch.testing.assert_close(ours[layer], theirs[layer], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_factors_of_unequal_ranks_give_what_dense_changes_give(rule, dtype, tolerance):
    factored = merged_by(rule, [vector(number, dtype) for number in range(4)])
    close(factored, merged_by(rule, [vector(number, dtype, changes.dense) for number in range(4)]), tolerance)


def test_vectors_are_not_changed_and_a_result_stays_when_more_are_merged(rule):
    vectors = [vector(number) for number in range(3)]
    before = [in_dense(one.changes) for one in vectors]
    merged = added(rule, added(rule, None, [], vectors[0]), vectors[:1], vectors[1])
    two = in_dense(rule.result(merged))
    rule.result(added(rule, merged, vectors[:2], vectors[2]))
    close(rule.result(merged), two, 0)
    for one, then in zip(vectors, before, strict=True):
        close(one.changes, then, 0)


def test_the_same_vectors_give_the_same_result(rule):
    first, again = (merged_by(rule, [vector(number) for number in range(4)]) for _ in range(2))
    close(first, again, 0)


@pytest.mark.parametrize("name", [name for name, one in SETTINGS.items() if get_class(one["_target_"]) is Arithmetic])
def test_a_vector_brings_its_own_draws_so_that_neither_its_place_nor_other_vectors_matter(name):
    rule = made(name)
    close(merged_by(rule, [vector(2), vector(0), vector(1)]), merged_by(rule, [vector(number) for number in range(3)]))


def test_memory_is_bounded_where_a_rule_says_so_over_twenty_vectors(rule):
    def kept():
        return sum(changes.size(change) for one in merged.kept for change in one.changes.values())

    merged, dense = None, 12 * 9 + 8 * 20
    for number in range(20):
        merged = added(rule, merged, [vector(past) for past in range(number)], vector(number))
        assert kept() <= dense if rule.bounded else kept() > number * 40
    assert merged.number == 20
    assert sum(changes.size(change) for change in rule.result(merged).values()) <= dense


def test_numbers_are_finite_also_where_vectors_are_zero_or_alike(rule):
    zero = TaskVector({layer: changes.scaled(change, 0.0) for layer, change in vector(0).changes.items()})
    for several in (
        [vector(0), zero, vector(1)],
        [vector(0), vector(0)],
        [vector(0), negative(vector(0))],
        [zero, zero, vector(0)],
    ):
        assert all(change.isfinite().all() for change in in_dense(merged_by(rule, several)).values())


def negative(one):
    return TaskVector({layer: changes.scaled(change, -1.0) for layer, change in one.changes.items()}, one.draw)


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, one) for name, all_ in SETTINGS.items() for one in all_ if one in OTHER],
    ids=lambda value: str(value),
)
def test_every_setting_has_an_effect(name, setting):
    if setting == "density" and SETTINGS[name]["sparsify"] == "none":
        with pytest.raises(ConfigError, match=r"rule\.density=0\.6 has no effect with rule\.sparsify=none"):
            made(name, density=OTHER["density"])
        return
    vectors = [vector(number) for number in range(4)]
    plain = in_dense(merged_by(made(name), vectors))
    other = in_dense(merged_by(made(name, **{setting: OTHER[setting]}), vectors))
    assert not torch.allclose(plain["up"], other["up"])


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("ties", {"density": 0}, "rule.density must be above 0"),
        ("ties", {"density": 1.1}, "rule.density must be between 0 and 1"),
        ("ties", {"scale": 0}, "rule.scale must be above 0"),
        ("ties", {"consensus": "elected"}, "rule.consensus must be one of sum, mean, elect, largest"),
        ("ties", {"sparsify": "larges"}, "Did you mean 'largest'?"),
        ("opcm", {"alpha": 2}, "rule.alpha must be between 0 and 1"),
        ("moving_average", {"weight": 0}, "rule.weight must be above 0"),
        ("slerp", {"share": -0.1}, "rule.share must be between 0 and 1"),
        ("frank_wolfe", {"variant": "firm"}, "rule.variant must be one of hard, soft"),
        ("frank_wolfe", {"iterations": 0}, "rule.iterations must be at least 1"),
        ("frank_wolfe", {"rows": 0}, "rule.rows must be at least 1"),
        ("frank_wolfe", {"step": 0}, "rule.step must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(name, settings, told):
    with pytest.raises(ConfigError) as error:
        made(name, **settings)
    assert told in str(error.value)


def test_vectors_of_other_models_are_refused():
    rule, one = made("average"), vector(0)
    fewer = TaskVector({"up": one.changes["up"]})
    wider = TaskVector({**one.changes, "up": low(12, 10, 1)})
    with pytest.raises(ConfigError, match="change different layers: only one of two changes down"):
        rule.merge([one, fewer])
    with pytest.raises(ConfigError, match=r"differ in up: \(12, 9\) and \(12, 10\)"):
        rule.merge([one, wider])
    with pytest.raises(ConfigError, match="there is nothing to merge"):
        rule.merge([])
