"""Training experts: head and prompts computed only where they must be, against PEFT's own forward with all of it."""

import random

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from see_lightning.adapters import files
from see_lightning.adapters.pool import ExpertPool
from see_lightning.config.schema import AdapterConfig
from see_lightning.errors import ConfigError
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import IGNORED, collate
from tests.adapters import small


def tied_model() -> LlamaForCausalLM:
    config = tiny_model().config
    config.tie_word_embeddings = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def rows(case: int, size: int = 5) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts that end in the header, and answers; the first prompt comes twice."""
    draw = random.Random(case)

    def ids(longest: int) -> list[int]:
        return [draw.randint(3, 258) for _ in range(draw.randint(1, longest))]

    prompts = [ids(25) + small.HEADER for _ in range(size - 1)]
    return [*prompts, prompts[0]], [ids(9) for _ in range(size)]


def outcome(pool: ExpertPool, prompts: list[list[int]], targets: list[list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Our logits, and the gradients of their loss."""
    batch = collate(prompts, targets, pad=0)
    logits = pool(*batch)
    pool.zero_grad()
    nn.functional.cross_entropy(logits, batch[2][batch[2] != IGNORED]).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in pool.model.named_parameters() if p.requires_grad}


def peft_outcome(
    model: nn.Module, prompts: list[list[int]], targets: list[list[int]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """PEFT's: the whole of every row, without padding, and the head on every position."""
    logits, wanted = [], []
    for prompt, target in zip(prompts, targets, strict=True):
        logits.append(model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1])
        wanted += target
    nn.functional.cross_entropy(torch.cat(logits), torch.tensor(wanted)).backward()
    return torch.cat(logits).detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    named = {name.replace("expert_qa", "default"): gradient for name, gradient in ours[1].items()}
    assert named.keys() == theirs[1].keys() != set()
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(named[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert any(gradient.abs().max() > 1e-3 for gradient in theirs[1].values())


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize(
    ("base", "targets"),
    [(tiny_model, small.ALL), (tied_model, small.ALL), (tiny_model, ["q_proj", "down_proj", "lm_head"])],
    ids=["untied", "tied", "head adapted"],
)
def test_an_experts_loss_and_gradients_are_those_of_peft(tmp_path, activated, base, targets):
    pool = small.pool("qa", activated=activated, targets=targets, base=base())
    files.save(pool, "qa", tmp_path)
    theirs = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True).eval()
    pool.train_only("qa")
    assert_same(outcome(pool, *rows(0)), peft_outcome(theirs, *rows(0)))


def test_an_activated_expert_is_another_than_the_same_weights_without_activation(tmp_path):
    """Else the equality above would say nothing of where it acts."""
    made = small.pool("qa", activated=True)
    ordinary = small.pool("qa")
    for here, there in zip(made.parameters(), ordinary.parameters(), strict=True):
        assert torch.equal(here, there)
    made.train_only("qa"), ordinary.train_only("qa")
    assert (outcome(made, *rows(0))[0] - outcome(ordinary, *rows(0))[0]).abs().max() > 0.01


BYTES = 2 * 2 * 2 * 8 * 4  # of a token: two layers, keys and values, two heads of eight numbers


@pytest.mark.parametrize("tokens_kept", [0, 40, 10_000])
def test_a_budget_of_memory_changes_no_logit_and_no_gradient(tokens_kept):
    free, tight = (
        small.pool("qa", activated=True, cache_gb=gb) for gb in (4.0, 2 * tokens_kept * BYTES / 1e9)
    )  # half is for training
    prompts, targets = rows(1)
    free.train_only("qa"), tight.train_only("qa")
    expected = outcome(free, prompts, targets)
    assert free.prompt_cache.held == 0, "nothing was to be kept"
    tight.keep_prompts([prompts])
    kept = len(tight.prompt_cache._kept)
    assert (kept > 0, kept < 4) == (tokens_kept > 0, tokens_kept < 10_000)
    assert tight.prompt_cache.held <= tight.prompt_cache.budget
    found = outcome(tight, prompts, targets)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_activated_experts_need_prompts_that_end_in_the_same_tokens():
    with pytest.raises(
        ConfigError, match="adapter.activated needs prompts that end in the same tokens.*model.prompt=chat or alpaca"
    ):
        ExpertPool(tiny_model(), AdapterConfig(activated=True), "tiny", header_ids=[])


def test_a_prompt_that_does_not_end_in_the_header_is_refused():
    pool = small.pool("qa", activated=True)
    pool.train_only("qa")
    with pytest.raises(ConfigError, match=r"a prompt ends in the tokens \[.*\] instead of \["):
        outcome(pool, [[5, 6, *small.HEADER[:-1], 9]], [[7]])


def test_an_expert_is_loaded_only_where_it_acts_from_the_same_tokens_on(tmp_path):
    ordinary, activated = small.pool("qa"), small.pool("qa", activated=True)
    files.save(ordinary, "qa", tmp_path / "ordinary")
    files.save(activated, "qa", tmp_path / "activated")
    with pytest.raises(ConfigError, match=r"acts from the tokens \[\d.* on, .* act on the whole prompt"):
        files.load(ordinary, "qa", tmp_path / "activated")
    with pytest.raises(ConfigError, match=r"acts on the whole prompt, but this run's experts act from the tokens \[\d"):
        files.load(activated, "qa", tmp_path / "ordinary")
    other = small.pool(activated=True)
    other.header_ids = [5, 6]
    with pytest.raises(ConfigError, match=r"experts act from the tokens \[5, 6\] on"):
        files.load(other, "qa", tmp_path / "activated")
    again = small.pool(activated=True)
    files.load(again, "qa", tmp_path / "activated")
    assert again.digest("qa") == activated.digest("qa")
