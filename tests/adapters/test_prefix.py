"""Prefix tuning: PEFT as oracle, gradients, decoding, batches of several adapters, and what is refused."""

from collections.abc import Sequence

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor, nn

from see_lightning.adapters import files
from see_lightning.adapters.answer_logits import answer_logits
from see_lightning.adapters.composites import Dense
from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.adapters.pool import ExpertPool
from see_lightning.adapters.prefix import Prefix
from see_lightning.errors import ConfigError
from see_lightning.inference.decoder import BatchDecoder, Decoded, RowState
from see_lightning.inference.forward import extend
from see_lightning.inference.kv_cache import join
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import Batch, collate
from tests.adapters import small

TOKENS = 5
PROMPTS = [list(range(3, 23)), list(range(40, 47)), list(range(60, 72))]
ANSWERS = [[7, 8, 9], [11], [12, 13]]


def batch(rows: Sequence[int] = (0, 1, 2)) -> Batch:
    ids, mask, labels = collate([PROMPTS[row] for row in rows], [ANSWERS[row] for row in rows], pad=0)
    return Batch(ids, mask, labels, [str(row) for row in rows])


def random_prefix(layers: int | None = None, seed: int = 0) -> Prefix:
    config, draw = tiny_model().config, torch.Generator().manual_seed(seed)
    shape = (2, config.num_key_value_heads, TOKENS, config.head_dim)
    numbers = torch.randn(layers or config.num_hidden_layers, *shape, generator=draw)
    return Prefix([(pair[0], pair[1]) for pair in numbers])


def pool_with(prefix: Prefix, *experts: str) -> ExpertPool:
    pool = small.pool(*experts)
    pool.register("prefix", prefix)
    return pool


def by_peft(prefix: Prefix) -> nn.Module:
    """PEFT's own prefix tuning around a fresh base model, with the same keys and values."""
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    model = get_peft_model(tiny_model(), config).eval()
    sides = torch.stack(list(prefix.weights()))  # keys and values of each layer, (2 L, H, P, D)
    model.prompt_encoder["default"].load_prompt_embeddings(sides.detach().permute(2, 0, 1, 3).reshape(TOKENS, -1))
    return model


def decode(pool: ExpertPool, adapters: Sequence[str | None], limit: int = 12) -> list[Decoded]:
    """Greedy answers to the prompts, prefilled under one adapter each and decoded in one batch."""
    decoder: BatchDecoder[int] = BatchDecoder(pool.use_adapter, small.EOS)
    with torch.no_grad():
        for row, adapter in enumerate(adapters):
            logits_1V, read = pool.prefill(adapter, [PROMPTS[row]])
            decoder.start(logits_1V, read, [RowState(row, adapter, [], limit)])
        decoder.decode_until(0)
    return [decoder.done[row] for row in range(len(adapters))]


def shifted_loss(pool: ExpertPool, given: Batch, weight: Tensor, step: float) -> float:
    """The mean squared logit with a weight moved along its gradient."""
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(weight.grad, alpha=step / float(weight.grad.norm()))
        loss = float(pool.logits(given, "prefix").square().mean())
        weight.copy_(before)
    return loss


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("experts", [(), ("qa",)])
def test_logits_and_greedy_answers_are_pefts_with_the_same_keys_and_values(experts):
    prefix = random_prefix()
    pool, theirs = pool_with(prefix, *experts), by_peft(prefix)
    answers = decode(pool, ["prefix"] * 3)
    given = batch()
    found = pool.logits(given, "prefix").split([len(answer) for answer in ANSWERS])
    for prompt, answer, logits_LV, decoded in zip(PROMPTS, ANSWERS, found, answers, strict=True):
        with torch.no_grad():
            whole = theirs(input_ids=torch.tensor([prompt + answer])).logits[0]
            first_1V, _ = pool.prefill("prefix", [prompt])
        close(logits_LV, whole[len(prompt) - 1 : -1])
        close(first_1V[0], whole[len(prompt) - 1])
        assert decoded == small.alone(theirs, prompt, 12)
    close(pool.logits(given, prefix), torch.cat(found))
    assert not torch.allclose(torch.cat(found), pool.logits(given), atol=1e-2)


def test_a_prefix_of_a_texts_keys_and_values_is_that_text_before_the_prompt():
    pool, words = small.pool(), [30, 31, 32, 33]
    with torch.no_grad():
        read = pool.prefill(None, [words])[1]
        pool.register("prefix", Prefix([(keys[0], values[0]) for keys, values in read.layers]))
        for prompt in PROMPTS:
            expected = pool.prefill(None, [words + prompt])[0]
            close(pool.prefill("prefix", [prompt])[0], expected)


def test_training_changes_the_prefix_alone_and_lowers_the_loss():
    prefix = random_prefix()
    pool = pool_with(prefix, "qa")
    before = [weight.detach().clone() for weight in pool.parameters()]
    given = batch()
    wanted = given.labels_BS[given.labels_BS >= 0]
    pool.train_only("prefix")
    assert not any(weight.requires_grad for weight in pool.parameters())
    assert all(weight.requires_grad for weight in prefix.parameters())
    optimizer, losses = torch.optim.AdamW(prefix.parameters(), lr=0.1), []
    digests = {pool.digest("prefix")}
    for _ in range(5):
        loss = nn.functional.cross_entropy(pool(given.input_ids_BS, given.attention_mask_BS, given.labels_BS), wanted)
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in prefix.parameters())
        optimizer.step()
        losses.append(loss.item())
        digests.add(pool.digest("prefix"))
    assert losses[-1] < losses[0] - 0.1
    assert len(digests) == 6
    assert all(weight.grad is None for weight in pool.parameters())
    assert all(map(torch.equal, before, pool.parameters()))
    pool.train_only("qa")
    assert not any(weight.requires_grad for weight in prefix.parameters())
    assert sum(weight.requires_grad for weight in pool.parameters()) == 2 * len(pool.layers)


def test_gradients_are_those_of_finite_differences():
    pool = pool_with(prefix := random_prefix())
    pool.train_only("prefix")
    pool.eval()
    given = batch()
    pool.logits(given, "prefix", grad=True).square().mean().backward()
    for weight in prefix.weights():
        up, down = (shifted_loss(pool, given, weight, step) for step in (1e-2, -1e-2))
        assert (up - down) / 2e-2 == pytest.approx(float(weight.grad.norm()), rel=0.05)


def test_decoding_token_by_token_is_one_pass_and_a_shared_start_changes_nothing():
    pool = pool_with(random_prefix())
    start = [5 + n % 60 for n in range(130)]
    prompts = [start + prompt for prompt in PROMPTS]
    with torch.no_grad():
        shared = pool.prefill_prefix("prefix", prompts)
        assert shared[0] == 130
        together, read = pool.prefill("prefix", prompts, shared)
        assert read.mask_BK.sum(1).tolist() == [TOKENS + len(prompt) for prompt in prompts]
        for row, prompt in enumerate(prompts):
            close(together[row], pool.prefill("prefix", [prompt])[0][0])
        # Prompts with little in common begin with the prefix alone.
        common = pool.prefill_prefix("prefix", PROMPTS)
        assert (common.tokens, common.cache.mask_BK.tolist()) == (0, [[True] * TOKENS])
        logits_BV, read = pool.prefill("prefix", PROMPTS, common)
        found = list(answer_logits(pool, "prefix", logits_BV, read, ANSWERS))
    for row, decoded in enumerate(decode(pool, ["prefix"] * 3)):
        ids = decoded.ids + [small.TEMPLATE.tokenizer.eos_token_id] * decoded.ended
        data = Batch(*collate([PROMPTS[row]], [ids], pad=0), ["a"])
        assert pool.logits(data, "prefix").argmax(-1).tolist() == ids
        close(found[row], pool.logits(batch([row]), "prefix"))


def test_a_batch_of_a_prefix_an_expert_and_the_base_model_is_its_rows_alone():
    pool = pool_with(random_prefix(), "qa")
    pool.register("other", random_prefix(seed=1))
    pool.register("dense", Dense({name: pool.delta(name, "qa") / 2 for name in pool.layers}))
    for adapters in (["prefix", "qa", None], ["qa", "prefix", "other"], [None, "dense", "prefix"], ["prefix"] * 3):
        alone = [
            decode(pool, [adapter if row == n else None for n in range(3)])[row] for row, adapter in enumerate(adapters)
        ]
        assert decode(pool, adapters) == alone
        with torch.no_grad():
            reads = [pool.prefill(name, [prompt])[1] for name, prompt in zip(adapters, PROMPTS, strict=True)]
            with pool.use_adapter(adapters) as model:
                logits_BKV, _ = extend(model, join(reads), [answer[:-1] for answer in ANSWERS])
        for row, adapter in enumerate(adapters):
            if len(ANSWERS[row]) > 1:  # otherwise there is nothing to extend it by
                close(logits_BKV[row, -1], pool.logits(batch([row]), adapter)[-1])


@pytest.mark.parametrize("kinds", [{"reading"}, {"training"}, {"reading", "training"}])
def test_a_model_that_goes_row_by_row_gives_the_same(kinds):
    pool = pool_with(random_prefix())
    expected = pool.logits(batch(), "prefix"), decode(pool, ["prefix"] * 3)
    pool.model.one_by_one = frozenset(kinds)
    close(pool.logits(batch(), "prefix"), expected[0])
    assert decode(pool, ["prefix"] * 3) == expected[1]


def test_its_tensors_are_kept_as_state(tmp_path):
    prefix, other = random_prefix(), random_prefix(seed=1)
    pool, copy = pool_with(prefix), pool_with(other)
    assert pool.digest("prefix") != copy.digest("prefix")
    files.save_state(prefix.state_dict(), tmp_path)
    other.load_state_dict(files.load_state(tmp_path, pool.device()))
    assert pool.digest("prefix") == copy.digest("prefix")
    with pytest.raises(ConfigError, match="state_dict"):
        files.save(pool, "prefix", tmp_path / "adapter")


def test_bf16_models_read_a_prefix_that_is_trained_in_fp32():
    prefix = random_prefix()
    pool = small.pool(base=tiny_model().to(torch.bfloat16))
    pool.register("prefix", prefix)
    found = pool.logits(batch(), "prefix", grad=True)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert {weight.grad.dtype for weight in prefix.parameters()} == {torch.float32}


def test_what_a_prefix_cannot_do_is_refused():
    activated = small.pool("qa", activated=True)
    with pytest.raises(ConfigError, match="Use adapter=lora"):
        activated.register("prefix", random_prefix())
    with pytest.raises(ConfigError, match="Use adapter=lora"):
        activated.prefill(random_prefix(), PROMPTS)
    with pytest.raises(ConfigError, match="of 3 layers does not fit a model of 2 layers"):
        small.pool().register("prefix", random_prefix(layers=3))
    with pytest.raises(ValueError, match=r"not \[\]"):
        Prefix([])
    with pytest.raises(ValueError, match=r"not \[2, 3\]"):
        Prefix([(torch.ones(1, 2, 4), torch.ones(1, 3, 4))])
    pool = pool_with(random_prefix(), "qa")
    for adapters in ("prefix", ["qa", "prefix", None], random_prefix()):
        with pytest.raises(ConfigError, match="pool.prefill"), pool.use_adapter(adapters) as model:
            model(input_ids=torch.tensor([PROMPTS[0]] * 3))
    with pytest.raises(ConfigError, match="pool.prefill"):
        embed_prompts(pool, PROMPTS, "prefix")
    with pytest.raises(ConfigError, match="cannot be part of a sum"):
        pool.composites["prefix"].add(small.first(pool), torch.ones(1))
    embed_prompts(pool, PROMPTS)
