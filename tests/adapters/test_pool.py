"""The experts around one base model: each apart from the others, and the same after a trip to disk."""

import json
import os
import stat
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from see_lightning.adapters import files
from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import AdapterConfig
from see_lightning.errors import ConfigError
from see_lightning.inference.forward import extend
from see_lightning.inference.kv_cache import Tree
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import IGNORED
from tests.adapters.small import by_peft

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(3, 43).view(2, 20)


def pool(*names: str, rank: int = 4, targets: tuple[str, ...] = ("q_proj", "v_proj")) -> ExpertPool:
    """A pool whose experts have been moved off their first weights, where they would change nothing."""
    base = tiny_model().requires_grad_(False)
    made = ExpertPool(base, AdapterConfig(rank=rank, dropout=0.0, targets=list(targets)), "tiny")
    for name in names:
        made.add_expert(name, weights_seed=len(name))
        stir(made, name)
    return made.eval()


def weights(of: ExpertPool) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in of.named_parameters()}


def stir(of: ExpertPool, name: str) -> None:
    """Random weights for what is trainable now, the newest expert."""
    draw = torch.Generator().manual_seed(int.from_bytes(name.encode(), "big") % 2**31)
    with torch.no_grad():
        for parameter in of.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=draw)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def said_by(of: ExpertPool, name: str) -> Tensor:
    with of.use_adapter(name) as model:
        return logits(model)


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for the order of two multiplications: ours has the scale within the second matrix."""
    return torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_training_the_newest_expert_moves_its_own_weights_and_no_other_bit():
    made = pool("qa", "qg")
    made.add_expert("sa", weights_seed=0)
    before = weights(made)
    trainable = {name for name, value in made.named_parameters() if value.requires_grad}
    fresh = {name for name in before if name not in weights(pool("qa", "qg"))}
    assert trainable == fresh
    assert len(trainable) == 8, "two matrices for two layers of two blocks"
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        made(IDS, torch.ones_like(IDS), IDS.masked_fill(torch.arange(20) < 15, IGNORED)).sum().backward()
        optimizer.step()
    moved = {name for name, value in weights(made).items() if not torch.equal(value, before[name])}
    assert moved == trainable


def test_going_back_to_train_an_older_expert_trains_that_one_alone():
    made = pool("qa", "qg")
    only_qa = {name for name, value in pool("qa").named_parameters() if value.requires_grad}
    made.train_only("qa")
    assert {name for name, value in made.named_parameters() if value.requires_grad} == only_qa
    assert made.model.training


def test_an_expert_that_answers_is_frozen():
    made = pool("qa", "qg")
    with made.use_adapter("qa") as model:
        assert not model(input_ids=IDS).logits.requires_grad
    with made.use_adapter(["qa", "qg"]) as model:
        assert not model(input_ids=IDS.expand(2, -1)).logits.requires_grad


def first_weights(*names: str, seed: int, global_seed: int = 0) -> list[Tensor]:
    """An expert's first weights, attached behind others and amid other draws."""
    torch.manual_seed(global_seed)
    made = pool(*names)
    before = torch.get_rng_state()
    made.add_expert("new", weights_seed=seed)
    assert torch.equal(torch.get_rng_state(), before), "attaching an expert moved the global random state"
    return [value.detach().clone() for value in made.parameters() if value.requires_grad]


def test_first_weights_hang_on_their_seed_alone():
    alone = first_weights(seed=7)
    same = [first_weights(seed=7, global_seed=3), first_weights("qa", seed=7), first_weights("qg", "qa", seed=7)]
    assert all(torch.equal(a, b) for other in same for a, b in zip(alone, other, strict=True))
    other = first_weights(seed=8)
    assert not all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))


def test_a_new_expert_changes_nothing_before_it_is_trained():
    made = pool()
    made.add_expert("qa", weights_seed=0)
    assert torch.equal(said_by(made.eval(), "qa"), logits(tiny_model().eval()))


def test_the_base_is_exactly_the_plain_base_model_whatever_was_attached():
    plain = logits(tiny_model().eval())
    empty = pool()
    with empty.use_adapter(None) as model:
        assert torch.equal(logits(model), plain)
    made = pool("qa", "qg", targets=tuple(ALL))
    assert not torch.equal(said_by(made, "qa"), plain)
    with made.use_adapter(None) as model:
        assert torch.equal(logits(model), plain)
    assert not torch.equal(said_by(made, "qg"), plain), "the experts stayed off"


def test_each_expert_answers_as_if_it_were_alone():
    made = pool("qa", "qg", "sa")
    for name in ("sa", "qa", "qg", "qa"):
        assert torch.equal(said_by(made, name), said_by(pool(name), name))
    assert made.names == ["qa", "qg", "sa"]


def test_an_unknown_expert_is_named_together_with_those_there_are():
    with (
        pytest.raises(KeyError, match=r"no expert named 'sum'; experts are qa, qg"),
        pool("qa", "qg").use_adapter("sum"),
    ):
        pass
    with pytest.raises(KeyError, match=r"no expert named 'qa'; experts are \(none\)"), pool().use_adapter("qa"):
        pass


def test_a_name_is_given_once():
    made = pool("qa")
    before = weights(made)
    with pytest.raises(ConfigError, match="there is an expert named 'qa' already; experts are qa"):
        made.add_expert("qa", weights_seed=1)
    assert all(torch.equal(value, before[name]) for name, value in weights(made).items())
    assert made.names == ["qa"]


def test_a_saved_expert_comes_back_bit_for_bit_beside_others_and_in_place(tmp_path):
    made = pool("qa", "qg")
    files.save(made, "qa", tmp_path / "qa")
    other = pool("sa", "dsg")
    files.load(other, "qa", tmp_path / "qa")
    assert torch.equal(said_by(other.eval(), "qa"), said_by(made, "qa"))
    assert torch.equal(said_by(other, "sa"), said_by(pool("sa"), "sa"))
    assert other.names == ["sa", "dsg", "qa"]
    files.load(other, "sa", tmp_path / "qa")
    assert torch.equal(said_by(other, "sa"), said_by(made, "qa"))
    assert other.names == ["sa", "dsg", "qa"]


@pytest.mark.parametrize(
    "name",
    ["0", "1", "layers", "model", "self_attn", "weight", "lora_A", "q_proj", "default", "a", "lora",
     "train", "type", "keys", "update", "forward", "training"],
)  # fmt: skip
def test_an_expert_may_bear_any_name_that_a_task_may(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT dislikes some of them, which is no reason to lose one
        made = pool(name, "qa")
        both = {one: said_by(made, one) for one in (name, "qa")}
        for one in both:
            files.save(made, one, tmp_path / one)
        other = pool("qa", name)
        for one, expected in both.items():
            files.load(other, one, tmp_path / one)
            assert torch.equal(said_by(other.eval(), one), expected)
            loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / one).eval()
            assert close(logits(loaded), expected)


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ({"rank": 8}, "lora_A"),
        ({"targets": ("q_proj",)}, "v_proj"),
        ({"targets": ("q_proj", "v_proj", "o_proj")}, "o_proj"),
    ],
)
def test_an_expert_of_another_shape_is_refused_and_named(tmp_path, other, differing):
    files.save(pool("qa", **other), "qa", tmp_path)
    made = pool("qa")
    before = weights(made)
    with pytest.raises(ConfigError, match=rf"does not hold an expert of this run: \S*{differing}\S* differs"):
        files.load(made, "qa", tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights(made).items())


def test_a_saved_expert_is_a_plain_peft_adapter(tmp_path):
    made = pool("qa", "qg", targets=tuple(ALL))
    files.save(made, "qg", tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    assert close(logits(loaded), said_by(made, "qg"))
    assert not [name for name, value in loaded.named_parameters() if value.requires_grad]


def test_the_files_of_an_expert_can_be_read_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        files.save(pool("qa"), "qa", tmp_path / "new" / "folder")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new" / "folder").iterdir()}
    assert modes == {"adapter_model.safetensors": 0o644, "adapter_config.json": 0o644}


def test_the_files_of_equal_experts_are_equal_byte_for_byte(tmp_path):
    names = ("adapter_model.safetensors", "adapter_config.json")
    for folder, targets in (("one", ALL), ("two", ALL[::-1])):
        files.save(pool("qa", targets=tuple(targets)), "qa", tmp_path / folder)
    contents = [[(tmp_path / folder / name).read_bytes() for name in names] for folder in ("one", "two")]
    assert contents[0] == contents[1]
    config = json.loads(contents[0][1])
    # PEFT keeps them in a set, whose order is another in every process.
    assert config["target_modules"] == sorted(ALL)
    assert list(config) == sorted(config)
    assert (config["r"], config["base_model_name_or_path"], config["inference_mode"]) == (4, "tiny", True)


def test_the_path_of_an_expert_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(Path(tmp_path) / "none")):
        files.load(pool("qa"), "qa", tmp_path / "none")


HEAD = (*ALL, "lm_head")
ROWS = [list(range(3, 20)), [50, 60], list(range(100, 109)), [7] * 12, [8, 9, 10], list(range(200, 230))]
ADAPTERS = ["qa", None, "sa", "qa", "qg", None]


def test_a_batch_of_several_voices_holds_for_each_row_what_its_own_voice_says_alone():
    made = pool("qa", "qg", "sa", targets=HEAD)
    with torch.inference_mode():
        with made.use_adapter(ADAPTERS) as model:
            first, read = extend(model, None, ROWS)
            second, _ = extend(model, read, [[5, 6]] * len(ROWS))
        for place, (name, row) in enumerate(zip(ADAPTERS, ROWS, strict=True)):
            for found, ids in ((first, row), (second, [*row, 5, 6])):
                alone = plain_peft(made, name)(input_ids=torch.tensor([ids])).logits[0, -1]
                torch.testing.assert_close(found[place, 0], alone, atol=1e-5, rtol=1e-5)


def plain_peft(of: ExpertPool, name: str | None) -> torch.nn.Module:
    """What PEFT alone makes of an expert's file; the plain base model for None."""
    with TemporaryDirectory() as folder:
        return by_peft(of, name, Path(folder))


@pytest.mark.parametrize("names", [["qa"], ["sa", "qa"], ["qa", "qg", "sa"], ["sa", "qg", "qa"]])
def test_experts_side_by_side_say_what_each_says_alone(names):
    made = pool("qa", "qg", "sa", targets=HEAD)
    tree = Tree((33, 44, 55, 66), (-1, 0, 0, 1))
    paths = [[33], [33, 44], [33, 55], [33, 44, 66]]
    with torch.inference_mode():
        with made.use_adapter(None) as model:
            _, read = extend(model, None, ROWS)
        with made.parallel_adapters(names, 4) as model:
            keep = range(-4 * len(names), 0)
            together, _ = extend(model, read, [[]] * len(ROWS), tree=tree.times(len(names)), keep=keep)
        for number, name in enumerate(names):
            for branch, path in enumerate(paths):
                with made.use_adapter(name) as model:
                    alone, _ = extend(model, read, [path] * len(ROWS))
                torch.testing.assert_close(together[:, 4 * number + branch], alone[:, 0], atol=1e-4, rtol=1e-4)


def test_speaking_ends_where_it_ended_and_weights_that_move_are_heard():
    made = pool("qa", "qg")
    with made.use_adapter("qa"):
        with made.use_adapter("qg") as model:
            inner = logits(model)
        with made.use_adapter(None) as model:
            base = logits(model)
    assert torch.equal(inner, said_by(made, "qg"))
    assert torch.equal(base, logits(tiny_model().eval()))
    before = said_by(made, "qa")
    made.train_only("qa")
    stir(made, "other weights")
    made.eval()
    assert not torch.equal(said_by(made, "qa"), before)
    assert close(said_by(made, "qa"), logits(plain_peft(made, "qa")))


def test_training_goes_on_by_itself_after_experts_have_spoken():
    made, calm = pool("qa"), pool("qa")
    said_by(made, "qa")
    batch = (IDS, torch.ones_like(IDS), IDS.masked_fill(torch.arange(20) < 15, IGNORED))
    for one in (made, calm):
        one.train_only("qa")
    assert torch.equal(made(*batch), calm(*batch))
    assert made(*batch).requires_grad


def test_experts_side_by_side_are_heard_anew_after_one_was_loaded_or_trained(tmp_path):
    made, other = pool("qa", "qg"), pool("sa")

    def beside() -> Tensor:
        with torch.inference_mode():
            with made.use_adapter(None) as model:
                _, read = extend(model, None, ROWS)
            with made.parallel_adapters(["qa", "qg"], 1) as model:
                tree = Tree((33,), (-1,)).times(2)
                return extend(model, read, [[]] * len(ROWS), tree=tree, keep=(-2, -1))[0]

    before = beside()
    files.save(other, "sa", tmp_path)
    files.load(made, "qg", tmp_path)
    loaded = beside()
    made.train_only("qa")
    stir(made, "other weights")
    made.eval()
    trained = beside()
    assert torch.equal(before[:, 0], loaded[:, 0])
    assert not torch.equal(before[:, 1], loaded[:, 1])
    assert not torch.equal(loaded[:, 0], trained[:, 0])
    assert torch.equal(loaded[:, 1], trained[:, 1])
