"""Instruction variants in SEE's training: own examples and negatives alike, from rules, a file or the base model."""

import json
from collections import Counter

import pytest

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError, DataError
from see_lightning.methods.instruction_variants import REQUESTS, InstructionVariants
from see_lightning.methods.see import See
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task

WORDS = {"pos": "<<pos>>", "neg": "<<neg>>"}


def task(name: str, size: int = 12, definition: str | None = None) -> Task:
    text = f"Do {name} now.\n\n" if definition is None else definition
    rows = tuple(Example(f"{name}-{n}", f"{text}{name} {n}", "x", name) for n in range(size))
    return Task(name, rows, (), "rouge_l", 4)


def see(make_pool, template, **settings) -> See:
    setup = Setup(make_pool(), template, OptimConfig(), 0)
    return See(setup, ratio=1.0, resample="per_task", indicators=WORDS, **settings)


def trained_on(method: See, *past: Task, new: Task) -> list[Example]:
    memory = Memory(0)
    for one in past:
        memory.add(one)
    return method.training_examples(new, memory)


def test_own_examples_and_negatives_draw_the_same_kinds(make_pool, template):
    method = see(make_pool, template, instruction_variants=["as_is", "none", "noised"], general_negatives=0)
    rows = trained_on(method, task("sky"), task("sea"), new=task("ice"))
    kinds = Counter(
        (
            row.target.startswith("<<pos>>"),
            row.task,
            "none" if "\n\n" not in row.prompt else row.prompt.startswith("Do "),
        )
        for row in rows
    )
    without = {key[:2]: number for key, number in kinds.items() if key[2] == "none"}
    assert without == {(True, "ice"): 4, (False, "sky"): 4, (False, "sea"): 4}
    assert {row.target for row in rows if row.task != "ice"} == {"<<neg>>"}


def test_without_variants_the_training_examples_are_those_of_the_paper(make_pool, template):
    plain = trained_on(see(make_pool, template, general_negatives=5), task("sky"), new=task("ice"))
    none = trained_on(
        see(make_pool, template, general_negatives=5, instruction_variants=[]), task("sky"), new=task("ice")
    )
    assert plain == none
    assert all("\n\n" in row.prompt for row in plain if row.task in ("sky", "ice"))


def test_general_negatives_draw_wordings_too(make_pool, template):
    method = see(make_pool, template, general_negatives=20, instruction_variants=["none"])
    plain = see(make_pool, template, general_negatives=20)
    pairs = zip(trained_on(method, new=task("ice")), trained_on(plain, new=task("ice")), strict=True)
    shorter = [
        a.prompt == b.prompt.partition("\n\n")[2] for a, b in pairs if a.task == "general" and "\n\n" in b.prompt
    ]
    assert len(shorter) > 8
    assert all(shorter)


def test_rewordings_of_a_file_are_used_and_missing_tasks_are_told(make_pool, template, tmp_path):
    file = tmp_path / "rewordings.jsonl"
    file.write_text(json.dumps({"task": "ice", "rewordings": ["Freeze it.", "Make it cold."]}) + "\n")
    method = see(make_pool, template, instruction_variants=["reworded"], rewordings=str(file))
    rows = trained_on(method, task("sky"), new=task("ice"))
    assert {row.prompt.partition("\n\n")[0] for row in rows if row.task == "ice"} == {"Freeze it.", "Make it cold."}
    arguments = {"ratio": 1.0, "instruction_variants": ["reworded"], "rewordings": str(file)}
    (told,) = See.cautions(arguments, [task("sky", 20), task("ice", 20)])
    assert "rewordings.jsonl has no rewordings of sky; the built-in rules reword these definitions" in told


def test_a_task_without_a_definition_is_told(tmp_path):
    told = InstructionVariants(["none"], "built_in").cautions([task("ice"), task("bare", definition="")])
    assert len(told) == 1
    assert "changes no prompt of bare" in told[0]
    assert InstructionVariants([], "built_in").cautions([task("bare", definition="")]) == []


def test_the_base_model_rewords_once_for_each_definition(make_pool, template, monkeypatch):
    method = see(make_pool, template, instruction_variants=["reworded"], rewordings="model")
    asked = []
    generate = See.generate

    def counted(self, adapter, queries, *rest):
        asked.append((adapter, len(queries)))
        return generate(self, adapter, queries, *rest)

    monkeypatch.setattr(See, "generate", counted)
    memory = Memory(0)
    first = method.training_examples(task("sky"), memory)
    assert asked == [(None, len(REQUESTS))]
    memory.add(task("sky"))
    method.training_examples(task("ice"), memory)
    assert asked == [(None, len(REQUESTS))] * 2  # sky's are remembered
    assert {row.prompt.rpartition("\n\n")[2] for row in first} == {f"sky {n}" for n in range(12)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"task": "ice"}, "missing key 'rewordings'"),
        ({"task": "ice", "rewordings": ["a", " "]}, "rewordings.jsonl:1: a rewording is empty"),
        ({"task": "ice", "rewordings": []}, "'rewordings' is an empty list"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_once(make_pool, template, tmp_path, line, message):
    file = tmp_path / "rewordings.jsonl"
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=message):
        see(make_pool, template, instruction_variants=["reworded"], rewordings=str(file))
    with pytest.raises(DataError, match="no file"):
        see(make_pool, template, instruction_variants=["reworded"], rewordings=str(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="must be one of as_is, reworded, none, cut, noised; got 'cutt'"):
        see(make_pool, template, instruction_variants=["cutt"])


def test_a_threshold_accepts_its_share_of_held_out_rows_under_every_wording(make_pool, template, monkeypatch):
    kinds = ["as_is", "none", "noised"]
    method = see(make_pool, template, instruction_variants=kinds, calibrate_on=12, target_recall=0.75, ood_examples=4)
    held_out = task("ice").train
    asked = []

    def log_odds(self, task, examples):
        asked.append(list(examples))
        without = all("\n\n" not in example.prompt for example in examples)
        if examples[0].task == "general":
            return [-9.0 + without] * len(examples)
        return [number + 4.0 * (not without) for number in range(len(examples))]

    monkeypatch.setattr(See, "_log_odds", log_odds)
    method.end_task(Task("ice", task("ice").train, (), "rouge_l", 4, held_out=held_out), Memory(0))
    assert len(asked) == 2 * len(kinds)
    assert [[row.id for row in rows] for rows in asked[:3]] == [[row.id for row in held_out]] * 3
    # Without the definition the log-odds are 0 to 11, of which three quarters reach 3; the highest general ones are -8.
    assert method.thresholds == {"ice": 3.0 - 0.25 * (3.0 + 8.0)}
