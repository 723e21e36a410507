"""What a method does beside the steps of training is timed and counted."""

import json
import time

import pytest
import torch

from see_lightning.engine.method_costs import MethodCosts
from see_lightning.methods.seqft import SeqFt
from see_lightning.models.tiny import tiny_model
from tests.runs import toy


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("costs")


def test_every_token_that_is_read_to_know_a_task_by_its_prompts_is_counted(base):
    results = toy.read_results(toy.whole(base, "method=sema").directory)
    prompts = {
        task: {
            json.loads(line)["prompt"] for line in (toy.data_in(base) / f"{task}.train.jsonl").read_text().splitlines()
        }
        for task in toy.TASKS
    }
    template = toy.whole(base, "method=sema").methods[0].template
    expected = [sum(len(template.prompt_ids(prompt)) for prompt in prompts[task]) for task in toy.TASKS]
    assert results["counts"]["method_tokens"]["assign"] == expected
    assert min(results["timing"]["method_s"]["assign"]) > 0


def test_the_tokens_by_which_thresholds_are_set_are_counted_and_are_no_query_s(base):
    plain = toy.read_results(toy.whole(base).directory)
    calibrated = toy.read_results(toy.whole(base, "data.calibrate_on=train").directory)
    assert plain["counts"]["method_tokens"]["end_task"] == [0, 0, 0]
    first, *others = calibrated["counts"]["method_tokens"]["end_task"]
    assert first == 0, "the first expert has refused nothing that it could be told from"
    assert min(others) > 0
    assert calibrated["counts"]["decisions"] == plain["counts"]["decisions"]
    hooks = ["training_examples", "choose_parent", "begin_task", "end_task"]
    assert list(calibrated["timing"]["method_s"]) == hooks


def test_tokens_that_are_read_outside_a_hook_do_not_count():
    model = tiny_model()
    costs = MethodCosts(model.get_input_embeddings())
    with costs.of("end_task"), torch.no_grad():
        model(input_ids=torch.zeros(2, 5, dtype=torch.long))
    model(input_ids=torch.zeros(1, 7, dtype=torch.long))
    assert costs.spent["end_task"][1] == 10
    assert costs.seconds("assign") == 0


def test_a_hook_that_runs_again_adds_to_its_seconds_and_tokens():
    model = tiny_model()
    costs = MethodCosts(model.get_input_embeddings())
    for rows in (2, 3):
        with costs.of("penalty"), torch.no_grad():
            model(input_ids=torch.zeros(rows, 5, dtype=torch.long))
            time.sleep(0.02)
    seconds, tokens = costs.spent["penalty"]
    assert (seconds >= 0.04, tokens) == (True, 25)


def test_the_tokens_of_passes_within_steps_are_counted(base, tmp_path, monkeypatch):
    taken = []

    def edit_gradients(method):
        (batch,) = method.batches(method.past[:2], 2)
        taken.append(batch.input_ids_BS.numel())
        method.gradients(batch)

    def begin_task(method, task, memory):
        begin(method, task, memory)
        method.past = task.train

    begin = SeqFt.begin_task
    monkeypatch.setattr(SeqFt, "begin_task", begin_task)
    monkeypatch.setattr(SeqFt, "edit_gradients", edit_gradients)
    run = toy.run(
        toy.compose(toy.data_in(base), tmp_path / "runs", "method=seqft", "order.tasks=[sky]", "optim.epochs=1")
    )
    results = toy.read_results(run.directory)
    assert results["counts"]["method_tokens"]["edit_gradients"] == [sum(taken)] != [0]
    assert "edit_gradients" not in results["timing"]["method_s"], "its seconds are in train_s"
    assert list(results["timing"]["method_step_s"]) == ["edit_gradients"]
    assert 0 < results["timing"]["method_step_s"]["edit_gradients"][0] < results["timing"]["train_s"][0]
    assert "penalty" not in results["counts"]["method_tokens"], "only hooks that the method has"
