"""LAMOL's loss against its formula, and the rows that a model writes."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.methods.lamol import ANSWER, REQUEST, WRITTEN, Lamol, label_weights, pseudo_rows, read_row
from see_lightning.methods.sampling import drawn_tokens
from see_lightning.methods.setup import Setup
from see_lightning.tasks.batches import IGNORED, Batch, Collator, cut, encode
from see_lightning.tasks.datamodule import pad_id
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small

ROWS = [Example(str(n), f"what is {n}?" * (1 + n % 2), "yes " * (1 + n), "sums") for n in range(4)]
TASK = Task("sums", tuple(ROWS), (), "exact_match", 4)


def lamol(mean: str = "tokens", batch: int = 8, **settings) -> Lamol:
    given = {"gamma": 0.5, "writing": 0.25, "top_k": 20, "max_new_tokens": 60, **settings}
    optim = OptimConfig(loss_reduction=mean, global_batch_size=batch)
    method = Lamol(Setup(small.pool(), small.TEMPLATE, optim, 5), **given)
    method.begin_task(TASK, Memory(5))
    return method.eval()


def past(name: str) -> Memory:
    memory = Memory(5)
    memory.add(Task(name, tuple(ROWS), (), "exact_match", 4))
    return memory


def started(method: Lamol, monkeypatch) -> list:
    """The rows of a task that the method begins to learn."""
    rows = encode(method.training_examples(TASK, Memory(5)), method.template)
    assert len(rows) == 2 * len(ROWS)
    method._trainer = SimpleNamespace(datamodule=SimpleNamespace(rows=rows))
    monkeypatch.setattr(Lamol, "trainer", property(lambda self: self._trainer))
    method.on_train_start()
    return rows


@pytest.mark.parametrize("mean", ["tokens", "examples"])
@pytest.mark.parametrize("most", [4096, 1])
@pytest.mark.parametrize("batch", [8, 4, 2])
def test_an_epoch_s_loss_is_that_of_answers_plus_the_weighted_one_of_texts(mean, most, batch, monkeypatch):
    """Whichever rows share a step: here answers, which are short, among themselves. Micro-batches of one row add up to the same."""
    method = lamol(mean, batch)
    rows = started(method, monkeypatch)
    collator = Collator(pad_id(method.template), mean, most)
    steps = cut(sorted(range(8), key=lambda n: -len(rows[n].target)), batch)
    found = 0.0
    for step in steps:
        whole = collator.batch(rows, sorted(step, key=lambda n: -len(rows[n])))
        assert whole.parts == (1 if most > 1 else batch)
        found += sum(part.weight * float(method.loss(part).detach()) for part in whole.split(mean)) / len(steps)
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


class Given(nn.Module):
    """A pool that gives these logits."""

    def __init__(self, logits_LV: list) -> None:
        super().__init__()
        self.logits_LV = torch.tensor(logits_LV)

    def forward(self, *_: Tensor) -> Tensor:
        return self.logits_LV


ANSWERING = [
    [[-4.6, -0.7, -2.1, 2.0, 0.0], [0.4, 0.4, -1.7, 0.5, 1.5]],
    [[-2.6, 2.6, -1.4, 3.0, -0.9], [-1.8, 1.3, 2.1, 0.3, -1.5]],
]
WRITING = [
    [
        [-2.5, -2.2, 2.3, 1.9, 1.6],
        [0.4, 0.3, -0.1, -0.6, 0.5],
        [-2.7, 0.5, 0.0, -0.4, -3.3],
        [1.8, -1.2, 5.7, 1.8, 1.9],
    ],
    [
        [-2.1, 1.9, -0.1, 1.7, -1.0],
        [-1.2, -1.8, -0.9, -1.4, 0.7],
        [-1.7, 0.8, 0.8, -0.1, -1.5],
        [0.7, -0.3, 2.0, 0.8, -1.0],
    ],
]
EQUAL = [[1, 4], [0, 4]], [[2, 3, 1, 4], [3, 2, 0, 4]]
UNEQUAL = [[1, 4], [4]], [[2, 3, 1, 4], [2, 0, 4]]


@pytest.mark.parametrize(
    ("labels", "authors", "same"),
    [
        (EQUAL, (3.4678769251948216, 0.5531771932558096), True),
        (UNEQUAL, (2.579013811814188, 0.5998183423454334), False),
    ],
)
def test_the_loss_is_the_authors_on_rows_of_one_length_and_else_differs_in_the_weights_of_texts(labels, authors, same):
    """``get_losses`` of utils.py, chho33/LAMOL, commit 03c31d9, with ``tokens_weight`` 1; theirs weighs all labels alike."""
    method, (answers, texts) = lamol(), labels
    owned = [*answers, *texts]
    given = zip([*ANSWERING, *WRITING], owned, strict=True)
    method.pool = Given([logit for logits, own in given for logit in logits[-len(own) :]])
    keys = [("sums", "0"), ("sums", "1"), ("sums", f"0{WRITTEN}"), ("sums", f"1{WRITTEN}")]
    method.weights = label_weights(dict(zip(keys, map(len, owned), strict=True)), 0.25, "tokens")
    method.step_labels = sum(map(len, owned))
    labels_BS = torch.tensor([[IGNORED] * (4 - len(own)) + own for own in owned])
    part = Batch(labels_BS, torch.ones_like(labels_BS), labels_BS, [id_ for _, id_ in keys], tasks=["sums"] * 4)
    answering, writing = authors  # the second with its factor, ``lm_lambda`` 0.25
    if same:
        assert method.loss(part).item() == pytest.approx(answering + writing, rel=1e-5)
        return
    of_texts = method.loss(part).item() - answering
    means = [
        float(cross_entropy(torch.tensor(logits[-len(own) :]), torch.tensor(own)))
        for logits, own in zip(WRITING, texts, strict=True)
    ]
    assert of_texts == pytest.approx(0.25 * (2 * means[0] + 1 * means[1]) / 3, rel=1e-4)
    assert writing == pytest.approx(0.25 * (4 * means[0] + 3 * means[1]) / 7, rel=1e-5)
    assert abs(of_texts - writing) > 0.003


@pytest.mark.parametrize(
    ("size", "past", "gamma", "authors"),
    [
        (100, 1, 0.2, 20), (100, 2, 0.2, 10), (100, 3, 0.2, 6), (7, 2, 0.2, 1), (4, 3, 0.2, 0), (1999, 3, 0.05, 33),
        (50, 4, 0.2, 2), (2000, 9, 0.05, 11), (30, 1, 0.1, 3), (1999, 2, 0.05, 50), (13, 1, 0.25, 4),
    ],
)  # fmt: skip
def test_as_many_rows_are_written_as_by_the_authors_code_and_at_least_one(size, past, gamma, authors):
    """``create_extra_data`` of the same file."""
    assert pseudo_rows(size, past, gamma) == max(1, authors)


def test_tokens_have_the_shares_of_the_authors_filter_also_where_logits_are_equal():
    """``top_k_top_p_filtering`` of the same file with ``top_k`` 2, and a softmax."""
    authors = [
        [0.0, 0.5761168847658291, 0.21194155761708547, 0.21194155761708547, 0.0],
        [0.0, 0.0, 0.6224593312018546, 0.0, 0.37754066879814546],
    ]
    for logits, expected in zip([[1.0, 3, 2, 2, -1], [0.5, 0, 1.5, -2, 1]], authors, strict=True):
        numbers = [(n + 0.5) / 2000 for n in range(2000)]
        tokens = drawn_tokens(torch.tensor(logits).expand(2000, 5), numbers, top_k=2)
        assert [tokens.count(token) / 2000 for token in range(5)] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "authors", "ours"),
    [
        (f"1 2{ANSWER}3", True, True), ("1 2 3", False, False), (f"1{ANSWER}2{ANSWER}3", False, False),
        (f"{ANSWER}2", True, False), (f"1{ANSWER}", True, False),
    ],
)  # fmt: skip
def test_the_authors_code_keeps_rows_without_a_query_or_an_answer(text, authors, ours):
    """``QADataset.etl_single_extra_data`` of the same file keeps all that have one answer token."""
    assert (read_row(text) is not None) == ours
    assert ours <= authors


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
