"""Progressive Prompts: embeddings before a row's own as oracle, frozen prompts of earlier tasks, and PEFT on the saved folder."""

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from see_lightning.adapters.files import CONFIG, WEIGHTS
from see_lightning.adapters.soft_prompt import ResidualMlp
from see_lightning.config.schema import OptimConfig
from see_lightning.errors import ConfigError
from see_lightning.methods.progprompt import ProgPrompt
from see_lightning.methods.setup import Setup
from see_lightning.models.tiny import tiny_model
from see_lightning.tasks.batches import Batch, collate
from see_lightning.tasks.memory import Memory
from tests.adapters import small
from tests.methods.learning import learn, task_named
from tests.runs import toy

PROMPTS, ANSWERS = [[5, 6, 7, 8], [9, 10]], [[7, 8], [11]]


def progprompt(**changed) -> ProgPrompt:
    settings = {"tokens": 3, "lr": 0.1, "mlp": 0} | changed
    return ProgPrompt(Setup(small.pool(), small.TEMPLATE, OptimConfig(), 0), **settings)


def batch() -> Batch:
    return Batch(*collate(PROMPTS, ANSWERS, pad=0), ["0", "1"])


def trained(*tasks: str, **changed) -> ProgPrompt:
    method = progprompt(**changed)
    for task in tasks:
        learn(method, task)
        method.end_task(task_named(task), Memory(0))
    return method


def by_embeddings(method: ProgPrompt, prompt_PH: Tensor) -> Tensor:
    """Logits of the answers where the model gets the prompt's embeddings before those of the row's tokens, row by row."""
    model, rows = method.pool.model, []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        own = model.get_input_embeddings()(torch.tensor(prompt + answer))
        logits = model(inputs_embeds=torch.cat([prompt_PH, own])[None]).logits[0]
        rows.append(logits[len(prompt_PH) + len(prompt) - 1 : -1])
    return torch.cat(rows)


@pytest.mark.parametrize("mlp", [0, 5])
def test_logits_and_gradients_are_those_of_all_prompts_before_the_row_the_newest_first(mlp):
    method = trained("sky", "sea", mlp=mlp)
    method.begin_task(task_named("ice"), Memory(0))
    learning = method.learning
    own = learning.own_PH
    expected = own
    if mlp:
        low = (own @ learning.mlp.down.weight.T + learning.mlp.down.bias).clamp(min=0)
        expected = own + low @ learning.mlp.up.weight.T + learning.mlp.up.bias
    torch.testing.assert_close(learning.learned(), expected)
    whole = by_embeddings(method, torch.cat([expected, method.prompts["sea"], method.prompts["sky"]]))
    given = batch()
    found = method.pool(given.input_ids_BS, given.attention_mask_BS, given.labels_BS)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
    weights = method.trained_weights()
    assert {id(weight) for weight in weights} == {id(weight) for weight in learning.parameters()}
    theirs = torch.autograd.grad(whole.square().mean(), weights)
    for one, other in zip(torch.autograd.grad(found.square().mean(), weights), theirs, strict=True):
        assert other.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_order_of_prompts_is_that_of_the_authors_code():
    """Run on prompts of two tokens with these first numbers: ``progress_previous_prompts`` and ``train_step_lester``.

    Of T5_codebase/t5_continual.py, arazd/ProgressivePrompts, commit 01572d6; the row's tokens follow.
    """
    method, size = progprompt(tokens=2), 32
    for task, number in (("sky", 1.0), ("sea", 2.0)):
        method._keep(task, torch.tensor([[number], [number + 0.5]]).repeat(1, size))
    method.begin_task(task_named("ice"), Memory(0))
    with torch.no_grad():
        method.learning.own_PH.copy_(torch.tensor([[3.0], [3.5]]).repeat(1, size))
    assert method.learning.prompt()[:, 0].tolist() == [3.0, 3.5, 2.0, 2.5, 1.0, 1.5]


def test_the_residual_mlp_is_that_of_the_authors_code():
    """Run on these tensors: ``ResMLP`` of BERT_codebase/continual_learning_utils.py, arazd/ProgressivePrompts, commit 01572d6."""

    def drawn(seed: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    mlp = ResidualMlp(768, 5).double()
    mlp.load_state_dict(
        {
            "down.weight": drawn(20, 5, 768) / 768**0.5, "down.bias": drawn(21, 5),
            "up.weight": drawn(22, 768, 5), "up.bias": drawn(23, 768),
        }
    )  # fmt: skip
    expected = [
        [-1.978953413104259, 1.4974670185704109, -0.3182950235583726, -2.631408907008558],
        [-0.4781526422186366, 0.3791502333238136, 0.1795371355496882, -0.9980783479726867],
    ]
    torch.testing.assert_close(mlp(drawn(24, 2, 768))[:, :4], torch.tensor(expected, dtype=torch.float64))


def test_a_later_task_changes_neither_earlier_prompts_nor_their_answers():
    method = trained("sky", mlp=4)
    before, logits = method.prompts["sky"].clone(), method.pool.logits(batch(), "sky")
    losses = learn(method, "sea", steps=6)
    assert losses[-1] < losses[0]
    method.end_task(task_named("sea"), Memory(0))
    assert torch.equal(method.prompts["sky"], before)
    assert torch.equal(method.pool.logits(batch(), "sky"), logits)
    assert not torch.allclose(method.pool.logits(batch(), "sea"), logits, atol=1e-3)
    assert method.pool.names == ["sky", "sea"]
    assert method.storage() == {"pool": before.nbytes, "weights": 2 * before.nbytes}


def test_a_frozen_prompt_is_what_the_mlp_made_of_the_trained_one():
    method = progprompt(mlp=4)
    learn(method, "sky")
    expected = method.learning.learned().detach()
    method.end_task(task_named("sky"), Memory(0))
    assert torch.equal(method.prompts["sky"], expected)
    torch.testing.assert_close(
        method.pool.logits(batch(), "sky"), by_embeddings(method, expected), rtol=1e-4, atol=1e-4
    )


def test_peft_alone_answers_as_the_run_did_and_the_folder_brings_the_prompts_back(tmp_path):
    method, again = trained("sky", "sea"), progprompt()
    for task in ("sky", "sea"):
        method.save(task, tmp_path / task)
        again.restore(task, tmp_path / task)
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "sea").eval()
    given, rows = batch(), []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        with torch.no_grad():
            rows.append(theirs(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1])
    for one in (method, again):
        torch.testing.assert_close(one.pool.logits(given, "sea"), torch.cat(rows), rtol=1e-4, atol=1e-4)
    assert again.pool.digest("sea") == method.pool.digest("sea") != method.pool.digest("sky")
    names = {path.name for path in (tmp_path / "sea").iterdir()}
    assert names == {CONFIG, WEIGHTS, "soft_prompt.safetensors"}


def test_its_own_learning_rate_takes_the_place_of_the_run_s_and_first_prompts_are_embeddings_of_tokens():
    method = progprompt(lr=0.25)
    assert method.optim.lr == 0.25
    method.begin_task(task_named("sky"), Memory(0))
    table = method.pool.model.get_input_embeddings().weight
    assert all((table == row).all(1).any() for row in method.learning.own_PH)
    other = progprompt()
    other.begin_task(task_named("sea"), Memory(0))
    assert not torch.equal(other.learning.own_PH, method.learning.own_PH)


@pytest.mark.parametrize("changed", [{"tokens": 0}, {"lr": -1.0}, {"mlp": -1}])
def test_a_setting_out_of_range_is_refused(changed):
    with pytest.raises(ConfigError, match=f"method.{next(iter(changed))}"):
        progprompt(**changed)


def test_activated_experts_are_refused_before_a_folder_is_made(tmp_path):
    data = toy.write_tasks(tmp_path / "data")
    with pytest.raises(ConfigError, match="method=progprompt changes how the whole prompt is read.*adapter=lora"):
        toy.run(toy.compose(data, tmp_path / "runs", "method=progprompt", *toy.ACTIVATED))
    assert not (tmp_path / "runs").exists()
