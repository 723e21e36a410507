"""What all methods share: the learning rate, the optimizer, and picking some of a batch's queries."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch.optim import SGD
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from see_lightning.adapters import files
from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.methods.mtl import Mtl
from see_lightning.methods.replay import Replay
from see_lightning.methods.see import See
from see_lightning.methods.seqft import SeqFt
from see_lightning.methods.setup import Setup
from see_lightning.methods.stl import Stl
from see_lightning.methods.training import learning_rate_share
from see_lightning.tasks.batches import Queries
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task


@pytest.mark.parametrize(("schedule", "theirs"), [("cosine", get_cosine_schedule_with_warmup),
                                                  ("linear", get_linear_schedule_with_warmup)])  # fmt: skip
@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 3), (1, 0), (40, 39), (40, 40), (7, 1)])
def test_the_learning_rate_is_that_of_transformers(schedule, theirs, steps, warmup):
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = theirs(optimizer, warmup, steps)
    for step in range(steps):
        share = learning_rate_share(step, steps, schedule, warmup / steps)
        assert share == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_model_stays_where_it_computes_when_a_trainer_has_ended(make_pool, template):
    """Lightning's strategies call ``cpu`` then; what a large model would cost there and back, no result is worth."""
    method = SeqFt(Setup(make_pool(), template, OptimConfig(), 0)).to("meta")
    assert method.cpu() is method
    assert {parameter.device.type for parameter in method.parameters()} == {"meta"}


def test_a_constant_learning_rate_rises_and_then_stays():
    assert [learning_rate_share(step, 8, "constant", 0.25) for step in range(9)] == [0.0, 0.5, *[1.0] * 7]


def test_a_task_that_trains_no_weight_is_refused_with_what_to_call(make_pool, template):
    method = Stl(Setup(make_pool("old"), template, OptimConfig(), 0))
    method.begin_task(task("new", 1), Memory(0))
    method.pool.add_adapter("teacher", 0)
    with pytest.raises(ValueError, match=r"trains no weight.*train_only"):
        method.configure_optimizers()


def test_the_optimizer_holds_what_the_task_trains_and_nothing_else(make_pool, template):
    optim = OptimConfig(lr=0.5, weight_decay=0.25, warmup=0.0, schedule="linear")
    method = Stl(Setup(make_pool("old"), template, optim, 0))
    method.begin_task(task("new", 1), Memory(0))
    method._trainer = SimpleNamespace(estimated_stepping_batches=4)
    made = method.configure_optimizers()
    (group,) = made["optimizer"].param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in method.parameters() if p.requires_grad}
    assert sum(p.numel() for p in group["params"]) * 2 == sum(
        p.numel() for n, p in method.named_parameters() if "lora" in n
    )
    assert (group["initial_lr"], group["weight_decay"]) == (0.5, 0.25)
    assert made["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(4):
        rates.append(made["lr_scheduler"]["scheduler"].get_last_lr()[0])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125])


@pytest.mark.parametrize("rows", [[0], [1], [3, 0], [2, 3], [0, 1, 2, 3], [3, 2, 1], []])
@pytest.mark.parametrize("tasks", [["qa", "qg", "qa", "sa"], []])
def test_selected_queries_keep_all_that_was_asked_of_them(rows, tasks):
    prompts = [[5], [6, 7, 8, 9, 10], [11, 12, 13], [14, 15]]
    chosen = Queries(prompts, ["a", "b", "c", "d"], [0, 0, 1, 2], [9, 9, 8, 7], 3, tasks, True).select(rows)
    assert chosen == Queries(
        [prompts[row] for row in rows],
        ["abcd"[row] for row in rows],
        [[0, 0, 1, 2][row] for row in rows],
        [[9, 9, 8, 7][row] for row in rows],
        3,
        [tasks[row] for row in rows if tasks],
        True,
    )


def task(name: str, size: int) -> Task:
    rows = tuple(Example(f"{name}-{i}", f"{name} {i}?", f"answer {i}", name) for i in range(size))
    return Task(name, rows, rows[:1], "rouge_l", 8)


@pytest.mark.parametrize(
    ("method", "settings", "past"),
    [
        (SeqFt, {}, {}), (Stl, {}, {}), (Mtl, {}, {}),
        (Replay, {"ratio": 0.25, "resample": "per_task"}, {"qa": 5, "qg": 2}),
        (Replay, {"ratio": 0.0, "resample": "per_task"}, {}),
        (See, {"ratio": 0.25, "resample": "once", "indicators": {"pos": "yes", "neg": "no"}}, {"qa": 5, "qg": 2}),
        (See, {"ratio": 0.0, "resample": "per_task", "indicators": {"pos": "yes", "neg": "no"}}, {}),
        (
            See,
            {"ratio": 0.25, "resample": "per_task", "indicators": {"pos": "[y]", "neg": "[n]"}, "general_negatives": 3, "other_instructions": 2},
            {"qa": 5, "qg": 2, "general": 5},
        ),
    ],
)  # fmt: skip
def test_what_a_method_trains_on(make_pool, template, method, settings, past):
    made = method(Setup(make_pool(), template, OptimConfig(), 0), **settings)
    memory = Memory(0)
    for one in (task("qa", 20), task("qg", 8)):
        memory.add(one)
    new = task("sa", 4)
    examples = made.training_examples(new, memory)
    assert [(e.id, e.prompt) for e in examples[:4]] == [(e.id, e.prompt) for e in new.train]
    assert {name: sum(e.task == name for e in examples[4:]) for name in past} == past
    assert len(examples) == 4 + sum(past.values())
    if method is See:
        words = settings["indicators"]
        assert [e.target for e in examples[:4]] == [f"{words['pos']} answer {i}" for i in range(4)]
        assert {e.target for e in examples[4:]} <= {words["neg"]}
    else:
        assert all(e.target == f"answer {e.id.split('-')[1]}" for e in examples)


@pytest.mark.parametrize(
    ("ratio", "at_least", "sizes", "told"),
    [
        (0.1, 0, (40, 40, 40), r"refuse 4 of 40 rows of a, 4 of 40 rows of b; .* Give ratio=0.3 or method.min_negatives=12\.$"),
        (0.1, 12, (40, 40, 40), None),
        (0.0, 12, (40, 40, 40), r"refuse 0 of 40 rows of a, 0 of 40 rows of b; .* Give ratio=0.3\.$"),
        (0.1, 0, (120, 40, 9), r"refuse 4 of 40 rows of b; .* Give ratio=0.3 or"),
        (0.1, 12, (8, 40, 9), r"refuse 8 of 8 rows of a; .* Of a there are no more rows: more of them help\.$"),
        (0.1, 10, (8, 40, 9), r" or method.min_negatives=12\. Of a there are no more rows: more of them help\.$"),
        (0.1, 0, (120, 120, 9), None),
        (0.1, 0, (9,), None),
    ],
)  # fmt: skip
def test_few_refusals_of_a_past_task_are_told_with_what_gives_more(ratio, at_least, sizes, told):
    tasks = [task(name, size) for name, size in zip("abc", sizes, strict=False)]
    cautions = See.cautions({"ratio": ratio, "min_negatives": at_least}, tasks)
    assert len(cautions) == (told is not None)
    assert not told or re.search(told, cautions[0]), cautions
    if told and "ratio=0.3" in told:
        assert See.cautions({"ratio": 0.3}, tasks) == []
    assert Replay.cautions({"ratio": ratio}, tasks) == []


def test_a_limit_of_refusals_that_leaves_few_of_a_task_is_told_in_one_line_with_the_limit_that_is_enough():
    tasks = [task(f"t{number}", 60) for number in range(24)]
    (told,) = See.cautions({"ratio": 0.1, "min_negatives": 12, "max_negatives": 48}, tasks)
    assert told.startswith(
        "method.max_negatives=48 leaves fewer than 12 refusals of some past tasks from the expert of task 6 on,"
    )
    assert "about 2 of each for the expert of task 24;" in told
    assert told.endswith("method.max_negatives=276 is enough for all 24 tasks.")
    assert See.cautions({"ratio": 0.1, "min_negatives": 12, "max_negatives": 276}, tasks) == []
    assert See.cautions({"ratio": 0.1, "min_negatives": 12, "max_negatives": 48}, tasks[:5]) == []


def test_a_caution_on_many_tasks_names_the_first_ones():
    tasks = [task(f"t{number}", 60) for number in range(24)]
    told = See.cautions({"ratio": 0.1, "max_negatives": 20}, tasks)
    assert len(told) == 2
    assert "6 of 60 rows of t5 and 17 more;" in told[0]
    assert "about 0 of each" in told[1]
    assert all(len(line) < 500 for line in told)


def test_the_end_of_an_answer_is_what_tokenizer_and_model_each_call_it(make_pool, template):
    method = SeqFt(Setup(make_pool("shared"), template, OptimConfig(), 0))
    settings = method.pool.model.generation_config
    for configured, expected in ((None, {2}), (2, {2}), (7, {2, 7}), ([7, 8], {2, 7, 8})):
        settings.eos_token_id = configured
        assert set(method.eos_ids()) == expected


def test_the_first_weights_of_an_expert_are_drawn_by_run_seed_and_task(make_pool, template):
    def drawn(name: str, run_seed: int) -> torch.Tensor:
        method = Stl(Setup(make_pool(), template, OptimConfig(), run_seed))
        method.begin_task(task(name, 1), Memory(0))
        return torch.cat([p.flatten() for p in method.parameters() if p.requires_grad])

    assert torch.equal(drawn("qa", 0), drawn("qa", 0))
    assert not torch.equal(drawn("qa", 0), drawn("qg", 0))
    assert not torch.equal(drawn("qa", 0), drawn("qa", 1))


def test_an_adapter_that_is_added_after_a_tasks_own_is_not_saved_in_its_place(make_pool, template, tmp_path):
    method = Stl(Setup(make_pool("qa", "merged"), template, OptimConfig(), 0))
    method.save("qa", tmp_path / "saved")
    for name in ("qa", "merged"):
        files.save(method.pool, name, tmp_path / name)
    saved, own, last = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("saved", "qa", "merged")
    )
    assert saved == own != last


@pytest.mark.parametrize("method", [SeqFt, Stl])
def test_what_was_saved_after_each_task_is_taken_up_again(make_pool, template, ask, tmp_path, method):
    def make(*names: str) -> SeqFt | Stl:
        return method(Setup(make_pool(*names), template, OptimConfig(), 0)).eval()

    batch = ask(["one", "another one"], tasks=["qa", "qg"])
    first = make(*(["qa", "qg"] if method is Stl else ["shared"]))
    with torch.inference_mode():
        expected = first.answer(batch)
        for number, name in enumerate(first.pool.names):
            files.save(first.pool, name, tmp_path / str(number))
    again = make()
    for number, name in enumerate(["qa", "qg"][: len(first.pool.names)]):
        again.restore(name, tmp_path / str(number))
    with torch.inference_mode():
        assert again.eval().answer(batch) == expected
    again.save("qg", tmp_path / "last")
    last = (tmp_path / "last" / "adapter_model.safetensors").read_bytes()
    assert last == (tmp_path / str(len(first.pool.names) - 1) / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x" * 600, r"general.jsonl:2 cannot be learned as a refusal: it has 6\d\d tokens"),
        ("say no", "an indicator stands in it"),
    ],
)
def test_instructions_of_ones_own_that_no_expert_could_learn_are_refused_at_once(
    make_pool, template, tmp_path, line, message
):
    file = tmp_path / "general.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt, "answer": "-"}) + "\n" for prompt in ("fine", line)))
    words = {"pos": "yes", "neg": "no"}
    settings = {"ratio": 0.1, "resample": "per_task", "indicators": words, "general_source": str(file)}
    with pytest.raises(ConfigError, match=message):
        See(Setup(make_pool(), template, OptimConfig(), 0), **settings, general_negatives=1)
    with pytest.raises(ConfigError, match="other_instructions must be between 0 and 250; got 251"):
        See(Setup(make_pool(), template, OptimConfig(), 0), **settings, other_instructions=251)
