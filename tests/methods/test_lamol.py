"""LAMOL's loss against its formula, and the rows that a model writes."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.methods.lamol import ANSWER, REQUEST, WRITTEN, Lamol
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import Collator, encode
from see_lightning.tasks.datamodule import pad_id
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small

ROWS = [Example(str(n), f"what is {n}?" * (1 + n % 2), "yes " * (1 + n), "sums") for n in range(4)]
TASK = Task("sums", tuple(ROWS), (), "exact_match", 4)


def lamol(mean: str = "tokens", **settings) -> Lamol:
    given = {"gamma": 0.5, "writing": 0.25, "top_k": 20, "max_new_tokens": 60, **settings}
    method = Lamol(Setup(small.pool(), small.TEMPLATE, OptimConfig(loss_reduction=mean), 5), **given)
    method.begin_task(TASK, Memory(5))
    return method.eval()


def past(name: str) -> Memory:
    memory = Memory(5)
    memory.add(Task(name, tuple(ROWS), (), "exact_match", 4))
    return memory


@pytest.mark.parametrize("mean", ["tokens", "examples"])
@pytest.mark.parametrize("most", [4096, 1])
def test_the_loss_is_that_of_answers_plus_the_weighted_one_of_texts(mean, most, monkeypatch):
    """Micro-batches of one row add up to the same."""
    method = lamol(mean)
    rows = encode(method.training_examples(TASK, Memory(5)), method.template)
    assert len(rows) == 2 * len(ROWS)
    method._trainer = SimpleNamespace(datamodule=SimpleNamespace(rows=rows))
    monkeypatch.setattr(Lamol, "trainer", property(lambda self: self._trainer))
    method.on_train_start()
    batch = Collator(pad_id(method.template), mean, most).batch(rows, sorted(range(8), key=lambda n: -len(rows[n])))
    assert batch.parts == (1 if most > 1 else 8)
    found = sum(part.weight * float(method.loss(part).detach()) for part in batch.split(mean))
    sizes, answers, texts = [], [], []
    with torch.no_grad(), method.pool.use_adapter("shared") as model:
        for row in rows:
            logits = model(input_ids=torch.tensor([row.prompt + row.target])).logits[0, len(row.prompt) - 1 : -1]
            nll = float(cross_entropy(logits, torch.tensor(row.target)))
            if row.example.id.endswith(WRITTEN):
                texts.append(nll)
            else:
                answers.append(nll)
                sizes.append(len(row.target) if mean == "tokens" else 1)
    answering, writing = (
        sum(size * nll for size, nll in zip(sizes, some, strict=True)) / sum(sizes) for some in (answers, texts)
    )
    assert found == pytest.approx(answering + 0.25 * writing, rel=1e-3)


def test_each_row_is_also_a_text_to_write_unless_it_is_too_long():
    method = lamol()
    examples = method.training_examples(TASK, Memory(5))
    assert examples[: len(ROWS)] == ROWS
    for row, text in zip(ROWS, examples[len(ROWS) :], strict=True):
        assert (text.prompt, text.target) == (REQUEST.format("sums"), f"{row.prompt}{ANSWER}{row.target}")
    lengths = sorted(len(method.template.target_ids(text.target)) for text in examples[len(ROWS) :])
    method.max_new_tokens = lengths[1]
    assert len(method.training_examples(TASK, Memory(5))) == len(ROWS) + sum(size <= lengths[1] for size in lengths)


def test_written_texts_that_are_rows_are_trained_on_and_others_are_dropped(monkeypatch):
    method, eos = lamol(gamma=1.0), small.TEMPLATE.tokenizer.eos_token_id
    texts = [f"one{ANSWER}two", "no answer", f"three{ANSWER}four{ANSWER}five", f"six{ANSWER}seven"]
    ids = [[*small.TEMPLATE.text_ids(text), eos] for text in texts]
    ids[3] = ids[3][:-1]  # it was cut
    monkeypatch.setattr("see_lightning.methods.lamol.sampled_answers", lambda *given, top_k: ids)
    examples = method.training_examples(TASK, past("words"))
    (row,) = [one for one in examples if one.task == "words" and not one.id.endswith(WRITTEN)]
    assert (row.prompt, row.target) == ("one", "two")
    assert [one.target for one in examples if one.task == "words"] == ["two", f"one{ANSWER}two"], "it is written again"
    assert method.report() == {"pseudo_rows_asked": 4, "pseudo_rows": 1}
    assert not {one.id for one in examples if one.task == "words"} & {one.id for one in ROWS}, (
        "no row of the past itself"
    )


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"writing": 0.0, "gamma": 0.0}])
def test_without_rows_to_write_nothing_is_learned_about_writing(settings):
    assert lamol(**settings).training_examples(TASK, past("words")) == ROWS


def test_what_is_written_depends_on_seeds_alone_and_leaves_the_model_as_it_is():
    method = lamol(gamma=2.0, max_new_tokens=5)
    drawn, before = torch.get_rng_state(), method.pool.digest("shared")
    taken = []
    method._row = lambda ids: taken.append(list(ids))
    method.training_examples(TASK, past("words"))
    first, taken[:] = [*taken], []
    method.training_examples(TASK, past("words"))
    assert first == taken
    assert len(first) == 8
    assert torch.equal(torch.get_rng_state(), drawn)
    assert method.pool.digest("shared") == before
