"""L2P: the nearest prompts by brute force, embeddings before a row's own as oracle, and answers that no other row changes."""

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cosine_similarity, cross_entropy

from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.adapters.prompt_pool import PromptPool, nearest
from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.l2p import UNUSED, L2p
from see_lightning.methods.loss import row_mean
from see_lightning.methods.setup import Setup
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import Batch, Queries, collate
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.learning import fit, task_named

PROMPTS, ANSWERS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]], [[7, 8], [11], [9, 9, 9]]


def l2p(**changed) -> L2p:
    settings = {"prompts": 6, "tokens": 2, "top_k": 2, "pull": 0.5, "diversify": False, "lr": 0.1} | changed
    reduction = settings.pop("reduction", "tokens")
    return L2p(Setup(small.pool(), small.TEMPLATE, OptimConfig(loss_reduction=reduction), 0), **settings)


def begun(**changed) -> L2p:
    method = l2p(**changed)
    method.begin_task(task_named("sky"), Memory(0))
    method.eval()
    return method


def batch(rows=slice(None)) -> Batch:
    return Batch(*collate(PROMPTS[rows], ANSWERS[rows], pad=0), [str(n) for n in range(len(PROMPTS[rows]))])


def chosen_by_hand(method: L2p, prompt: list[int]) -> list[int]:
    """The prompts whose keys have the smallest angles to the query."""
    query_H = embed_prompts(method.pool, [prompt])[0]
    angles = [float(1 - cosine_similarity(query_H, key_H, dim=0)) for key_H in method.prompts.keys_MH.detach()]
    return sorted(range(len(angles)), key=angles.__getitem__)[: method.top_k]


def by_embeddings(method: L2p, prompt: list[int], answer: list[int], chosen: list[int]) -> torch.Tensor:
    """Logits of an answer where the model gets the chosen prompts' embeddings before those of the row's tokens."""
    model = method.pool.model
    before = torch.cat([method.prompts.prompts_MPH[one] for one in chosen])
    own = model.get_input_embeddings()(torch.tensor(prompt + answer))
    logits = model(inputs_embeds=torch.cat([before, own])[None]).logits[0]
    return logits[len(before) + len(prompt) - 1 : -1]


@pytest.mark.parametrize("reduction", ["tokens", "examples"])
def test_loss_and_gradients_are_those_of_the_nearest_prompts_before_each_row_and_of_their_keys(reduction):
    method = begun(reduction=reduction, pull=0.25)
    answers, pulls, weights = [], [], []
    chosen = [chosen_by_hand(method, prompt) for prompt in PROMPTS]
    assert len(set(map(tuple, chosen))) > 1
    for prompt, answer, places in zip(PROMPTS, ANSWERS, chosen, strict=True):
        logits = by_embeddings(method, prompt, answer, places)
        answers.append(cross_entropy(logits, torch.tensor(answer)))
        query_H = embed_prompts(method.pool, [prompt])[0]
        pulls.append(sum(1 - cosine_similarity(query_H, method.prompts.keys_MH[one], dim=0) for one in places))
        weights.append(len(answer) if reduction == "tokens" else 1)
    weight = torch.tensor(weights) / sum(weights)
    expected = (weight * (torch.stack(answers) + 0.25 * torch.stack(pulls))).sum()
    found = method.loss(batch())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    trained = method.trained_weights()
    assert {id(one) for one in trained} == {id(one) for one in method.prompts.parameters()}
    theirs = torch.autograd.grad(expected, trained)
    for one, other in zip(torch.autograd.grad(found, trained), theirs, strict=True):
        assert other.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_an_answer_depends_on_its_own_query_alone_and_passes_outside_see_the_same_prompts():
    method = l2p(pull=1.0)
    fit(method, "sky", steps=4)
    method.end_task(task_named("sky"), Memory(0))
    method.eval()
    limits = [4] * len(PROMPTS)
    ids = [str(n) for n in range(len(PROMPTS))]
    together = method.answer(Queries(PROMPTS, ids, [0] * len(PROMPTS), limits, rows=2))
    for row, prompt in enumerate(PROMPTS):
        alone = Queries([prompt], ["0"], [0], [4], rows=1)
        assert method.answer(alone)[0].text == together[row].text
        (name,) = method.router.adapters(alone, [None])
        torch.testing.assert_close(
            method.pool.logits(batch(slice(row, row + 1)), name),
            by_embeddings(method, prompt, ANSWERS[row], chosen_by_hand(method, prompt)),
            rtol=1e-4,
            atol=1e-4,
        )
    assert method.counts["prefills"] == 4 * len(PROMPTS)
    assert method.pool.names == [method.ADAPTER]


def test_without_a_choice_a_pass_is_refused():
    method = begun()
    with pytest.raises(ConfigError, match="chosen by the query"):
        method.pool.logits(batch(), method.ADAPTER)
    with pytest.raises(ValueError, match="prompts for 1 rows, and 2 rows"):
        method.prompts.of(torch.tensor([[0, 1]])).start(method.pool.model, 2)


def test_keys_stay_without_a_pull_and_move_towards_the_queries_with_it():
    still, pulled = begun(pull=0.0), begun()
    assert not still.prompts.keys_MH.requires_grad
    before = [one.prompts.keys_MH.detach().clone() for one in (still, pulled)]
    for method in (still, pulled):
        fit(method, "sky", steps=4)
    assert torch.equal(still.prompts.keys_MH, before[0])
    (row,) = {row.prompt for row in task_named("sky").train[:1]}
    query_H = embed_prompts(pulled.pool, [small.TEMPLATE.prompt_ids(row)])[0]
    near = chosen_by_hand(pulled, small.TEMPLATE.prompt_ids(row))
    angle = [cosine_similarity(query_H, keys[near], dim=1).sum() for keys in (before[1], pulled.prompts.keys_MH)]
    assert angle[1] > angle[0]


def test_choice_and_pull_are_those_of_trace_s_code():
    """Of ``L2P.train_step`` in BeyonderXX/TRACE at 462e39f, on these tensors, with a model whose loss is 0 and a weight of 0.5.

    There the similarities are subtracted, so its number is less by 0.5 times the two prompts of a row.
    """
    keys_MH = torch.tensor(
        [
            [-0.4, -1.2, 0.4, -0.3],
            [-0.4, -0.9, 0.5, 0.1],
            [-2.3, 0.4, 0.6, 0.3],
            [1.3, 0.9, -1.4, -1],
            [-0.4, -0.2, 0.8, 1],
        ]
    )
    queries_BH = torch.tensor([[1.8, 2, 1.5, -1.8], [1.1, 1.8, -0.4, -0.5], [1.4, -3.8, -3.3, 1.2]]) / 3
    distance_BM = PromptPool(torch.zeros(5, 2, 4), keys_MH).distances(queries_BH).detach()
    chosen_BN = nearest(distance_BM, 2)
    assert chosen_BN.tolist() == [[3, 2], [3, 2], [0, 1]]
    pull = 0.5 * row_mean(distance_BM.gather(1, chosen_BN).sum(1), torch.zeros(3, 1, dtype=torch.long), "examples")
    assert float(pull) == pytest.approx(-0.174285888671875 + 0.5 * 2, abs=1e-5)


def test_a_later_task_prefers_prompts_that_earlier_rows_did_not_choose(tmp_path):
    method = begun(diversify=True, top_k=1, pull=0.0)
    rows = [small.TEMPLATE.prompt_ids(example.prompt) for example in task_named("sky").train]
    method.end_task(task_named("sky"), Memory(0))
    expected = torch.zeros(6)
    for row in rows:
        expected[chosen_by_hand(method, row)] += 1
    assert torch.equal(method.chosen_M.float(), expected)
    share = expected / expected.sum()
    again = l2p(diversify=True, top_k=1, pull=0.0)
    method.save("sky", tmp_path)
    again.restore("sky", tmp_path)
    for row in rows:
        query_H = embed_prompts(method.pool, [row])[0]
        scaled = [
            float((1 - cosine_similarity(query_H, key_H, dim=0)) * (share[m] + UNUSED))
            for m, key_H in enumerate(method.prompts.keys_MH.detach())
        ]
        nearest = min(range(6), key=scaled.__getitem__)
        assert share[nearest] == 0
        for one in (method, again):
            assert one._choose([row], is_training=True).tolist() == [[nearest]]
        assert method._choose([row]).tolist() == [chosen_by_hand(method, row)], "in evaluation the nearest one answers"


def test_the_state_brings_prompts_and_keys_back(tmp_path):
    method, again = l2p(), l2p()
    fit(method, "sky", steps=2)
    method.end_task(task_named("sky"), Memory(0))
    method.save("sky", tmp_path)
    again.restore("sky", tmp_path)
    for one, other in zip(method.prompts.weights(), again.prompts.weights(), strict=True):
        assert torch.equal(one, other)
    assert again.pool.digest(again.ADAPTER) == method.pool.digest(method.ADAPTER)
    size, keys = (one.nbytes for one in method.prompts.weights())
    assert again.storage() == {"pool": size, "weights": size, "state": keys}


def test_peft_alone_loads_all_prompts_one_after_the_other(tmp_path):
    method = begun()
    method.save("sky", tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor([PROMPTS[0] + ANSWERS[0]])).logits[0, -1 - len(ANSWERS[0]) : -1]
        expected = by_embeddings(method, PROMPTS[0], ANSWERS[0], range(6))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_its_own_learning_rate_takes_the_place_of_the_run_s_and_first_prompts_are_embeddings_of_tokens():
    method = begun(lr=0.25)
    assert method.optim.lr == 0.25
    table = method.pool.model.get_input_embeddings().weight
    assert all((table == row).all(1).any() for row in method.prompts.prompts_MPH.flatten(0, 1))
    assert isinstance(method.pool.composites[method.ADAPTER], PromptPool)


@pytest.mark.parametrize(
    "changed", [{"prompts": 0}, {"tokens": 0}, {"top_k": 7}, {"top_k": 0}, {"pull": -1}, {"lr": -1}]
)
def test_a_setting_out_of_range_is_refused(changed):
    with pytest.raises(ConfigError, match=f"method.{next(iter(changed))}"):
        l2p(**changed)
