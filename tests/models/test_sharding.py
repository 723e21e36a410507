"""A base model in parts, on ranks that are real processes."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from see_lightning.engine.distributed import Ranks, join, place
from see_lightning.errors import ConfigError
from see_lightning.models.sharding import in_step, shard
from see_lightning.models.tiny import tiny_model
from tests.runs import toy


def on_ranks(size: int, log: Path, work: Callable[[Ranks], None]) -> list[int]:
    """How ranks end that do something together; any that waits for the others too long is ended."""

    def as_rank() -> None:
        signal.alarm(60)
        ranks = join(place(), gpu=False)
        work(ranks)
        ranks.leave()

    return toy.ended(toy.start_ranks(size, as_rank, log))


def in_parts(ranks: Ranks) -> PreTrainedModel:
    model = tiny_model().requires_grad_(False).eval()
    shard(model, ranks.of_this_machine(1, gpu=False))
    return model


def logits(model: PreTrainedModel, tokens: int) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 3 + tokens)[None]).logits


@pytest.mark.parametrize("size", [2, 3])
def test_each_rank_holds_its_share_of_the_layers_before_and_after_a_pass(tmp_path, size):
    whole = tiny_model()
    embeddings = {"model.embed_tokens.weight", "lm_head.weight"}

    def work(ranks: Ranks) -> None:
        model = in_parts(ranks)
        for _ in range(2):
            named = dict(model.named_parameters())
            assert {name for name, p in named.items() if not isinstance(p, DTensor)} == embeddings
            mine = sum(p.to_local().numel() for p in named.values() if isinstance(p, DTensor))
            stored = sum(p.to_local().untyped_storage().nbytes() for p in named.values() if isinstance(p, DTensor))
            everything = sum(p.numel() for name, p in whole.named_parameters() if name not in embeddings)
            assert sum(ranks.gather(mine)) == everything
            assert stored / 4 < 1.1 * everything / size, "rows are padded to a multiple of the number of ranks"
            assert torch.equal(logits(model, 9), logits(whole, 9))

    log = tmp_path / "log"
    assert on_ranks(size, log, work) == [0] * size, log.read_text()


@pytest.mark.parametrize("passes", [(0, 4), (5, 1), (2, 0, 3), (0, 0)])
def test_ranks_in_step_run_the_model_as_often_as_each_needs(tmp_path, passes):
    whole = tiny_model()

    def work(ranks: Ranks) -> None:
        model = in_parts(ranks)
        for _ in range(2):
            with in_step(model):
                said = [logits(model, 1 + ranks.rank + turn) for turn in range(passes[ranks.rank])]
            assert all(torch.equal(one, logits(whole, one.shape[1])) for one in said)
        assert torch.equal(logits(model, 7), logits(whole, 7)), "outside of it, all run it equally often"

    log = tmp_path / "log"
    assert on_ranks(len(passes), log, work) == [0] * len(passes), log.read_text()


def test_a_rank_that_fails_in_step_leaves_no_other_waiting(tmp_path):
    def work(ranks: Ranks) -> None:
        model = in_parts(ranks)
        with in_step(model):
            if ranks.rank == 1:
                raise KeyError("what went wrong")
            logits(model, 3)

    log = tmp_path / "log"
    assert on_ranks(2, log, work) == [1, 1], log.read_text()
    assert "what went wrong" in log.read_text()


def test_a_model_in_one_piece_needs_no_other_ranks():
    model = tiny_model()
    with in_step(model):
        assert logits(model, 3).shape[1] == 3


def test_parts_stay_within_a_machine(tmp_path):
    def work(ranks: Ranks) -> None:
        mesh = ranks.of_this_machine(2, gpu=False)
        assert mesh.mesh.tolist() == ([0, 1] if ranks.rank < 2 else [2, 3])
        assert ranks.of_this_machine(4, gpu=False) is None

    log = tmp_path / "log"
    assert on_ranks(4, log, work) == [0] * 4, log.read_text()


def test_a_model_that_does_not_name_its_layers_is_refused():
    model = tiny_model()
    model._no_split_modules = set()
    with pytest.raises(ConfigError, match="LlamaForCausalLM does not name its layers.*choose trainer=ddp"):
        shard(model, None)
