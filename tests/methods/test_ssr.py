"""SSR: what is sampled, which inputs are read and chosen, and who answers them."""

import hashlib

import pytest
import torch

from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.methods.setup import Setup
from see_lightning.methods.ssr import REPETITION_PENALTY, TEMPERATURE, TOP_K, TOP_P, Ssr, inputs_of
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small

TEXTS = [f" {n}, {n}\nOutput: {2 * n}\n\nInput: {n}, 1\nOutput: {n + 1}\n\nInput: cut" for n in range(6)]


def ssr(*, seed: int = 0, ratio: float = 0.5, demonstrations: int = 3, texts_per_row: float = 2, max_new_tokens: int = 6,
        clusters: int = 2) -> Ssr:  # fmt: skip
    setup = Setup(small.pool("shared"), small.TEMPLATE, OptimConfig(), seed)
    return Ssr(
        setup, ratio=ratio, demonstrations=demonstrations, texts_per_row=texts_per_row,
        max_new_tokens=max_new_tokens, clusters=clusters,
    ).eval()  # fmt: skip


def task_of(name: str = "sums", rows: int = 8, words: str = "Add both.\n\n") -> Task:
    train = tuple(Example(f"{name}-{n}", f"{words}{n}{n}, {n}", str(2 * n), name) for n in range(rows))
    return Task(name, train, train[:1], "rouge_l", 4)


def ended(method: Ssr, *tasks: Task) -> Memory:
    memory = Memory(method.run_seed)
    with torch.no_grad():
        for task in tasks:
            method.end_task(task, memory)
            memory.add(task)
    return memory


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" a\nOutput: b", ["a"]),
        (" a\nOutput: b\nOutput: c\n\nInput: d\nOutput: e", ["d"]),
        (" a\nOutput:\n\nInput:\nOutput: b", []),
        ("no answer", []),
        (" two\nlines \nOutput: b\n\nInput: c\nOutput: d\n\nInput: cut", ["two\nlines", "c"]),
    ],
)
def test_an_input_has_one_output_and_neither_is_empty(text, found):
    """As custom/icl_gen/parser.py of DeepLearnXMU/SSR, commit 38d2a06, reads these texts with its ``save_more`` off."""
    assert inputs_of(text) == found


@pytest.mark.parametrize(
    ("text", "published", "left_out"),
    [
        (" a\nOutput:\n\nInput:\nOutput: b", ["a"], ["a"]),
        ("no answer", ["no answer"], ["no answer"]),
        (" two\nlines \nOutput: b\n\nInput: c\nOutput: d\n\nInput: cut", ["two\nlines", "c", "cut"], ["cut"]),
    ],
)
def test_the_published_parser_also_keeps_inputs_without_an_output(text, published, left_out):
    """The same file as it is, with ``save_more`` on."""
    found = inputs_of(text)
    assert found == [one for one in published if one not in left_out]


def test_prompts_are_those_of_the_authors_code(monkeypatch):
    """``pack_instructions`` of custom/icl_gen/complete_param_nic010_cate.py, two of four rows in all twelve orders."""
    method, seen = ssr(demonstrations=4, texts_per_row=3), []
    monkeypatch.setattr(method, "sample", lambda prompts, task: seen.extend(prompts) or [[] for _ in prompts])
    method.synthesise(task_of(rows=4), 4)
    texts = sorted(small.TEMPLATE.text(ids).removeprefix("<s>") for ids in seen)
    assert len(texts) == 12
    assert hashlib.sha256("\0".join(texts).encode()).hexdigest().startswith("45c3b1ca4f27826f")


def allowed(method: Ssr, ids: list[int]) -> set[int]:
    """The tokens that may follow: the fewest most likely ones with the share TOP_P, of the TOP_K, after penalty and temperature."""
    with torch.no_grad():
        logits = method.pool.prefill(None, [ids])[0][0]
    for token in set(ids):
        logits[token] *= REPETITION_PENALTY if logits[token] < 0 else 1 / REPETITION_PENALTY
    best = (logits / TEMPERATURE).topk(TOP_K)
    before = best.values.softmax(0).cumsum(0) - best.values.softmax(0)
    return set(best.indices[before < TOP_P].tolist())


def test_texts_are_sampled_from_the_base_models_nucleus_by_seed_and_task():
    method = ssr()
    prompts = [small.TEMPLATE.text_ids(text) for text in ("Input: 1\nOutput:", "Input: a longer one\nOutput:")] * 5
    state = torch.random.get_rng_state()
    written = method.sample(prompts, "sums")
    assert torch.equal(state, torch.random.get_rng_state()), (
        "training goes on with the numbers that it would have drawn"
    )
    assert len(written) == 10
    for prompt, ids in zip(prompts, written, strict=True):
        for place, token in enumerate(ids):
            assert token in allowed(method, [*prompt, *ids[:place]])
    assert len({tuple(ids) for ids in written}) > 2
    assert ssr().sample(prompts, "sums") == written
    assert ssr(seed=1).sample(prompts, "sums") != written
    assert ssr().sample(prompts, "other") != written


def test_prompts_are_the_definition_and_two_solved_rows_in_every_order(monkeypatch):
    method, seen = ssr(demonstrations=3, texts_per_row=2), []
    monkeypatch.setattr(method, "sample", lambda prompts, task: seen.extend(prompts) or [[] for _ in prompts])
    method.synthesise(task_of(), 4)
    texts = [small.TEMPLATE.text(ids).removeprefix("<s>") for ids in seen]
    assert len(texts) == 8
    assert len(set(texts[:6])) == 6, "six orders of two of three rows"
    assert texts[6:] == texts[:2]
    answers = {f"{n}{n}, {n}": str(2 * n) for n in range(8)}
    for text in texts:
        words, *rows, last = text.split("\n\n")
        assert (words, last, len(rows)) == ("Add both.", "Input:", 2)
        for row in rows:
            given, answer = row.removeprefix("Input: ").split("\nOutput: ")
            assert answers[given] == answer
    assert method.synthesise(task_of(words="x" * 600 + "\n\n"), 4) == [], "no prompt fits into the context"
    one = ssr(demonstrations=1)
    monkeypatch.setattr(one, "sample", lambda prompts, task: [list(ids) for ids in prompts])
    assert one.synthesise(task_of(), 1)[0].count("Output:") == 1


@pytest.mark.parametrize("words", ["Add both.\n\n", ""])
def test_typical_inputs_are_answered_by_the_trained_adapter_and_replayed(monkeypatch, words):
    method = ssr(ratio=0.5)
    monkeypatch.setattr(method, "synthesise", lambda task, number: TEXTS * 2)
    memory = ended(method, task_of(words=words))
    rows, new = method.synthetic["sums"], task_of("new")
    assert len(rows) == len({prompt for prompt, _ in rows}) == 4
    written = {f"{words}{text}" for one in TEXTS for text in inputs_of(one)}
    assert {prompt for prompt, _ in rows} <= written
    with method.pool.use_adapter("shared") as model:
        for prompt, answer in rows:
            said = small.alone(model, small.TEMPLATE.prompt_ids(prompt), 4)
            assert answer == small.TEMPLATE.text(said.ids)
    first, *_ = method.generate(None, small.queries([rows[0][0]], limit=4))
    assert small.TEMPLATE.text(first.ids) != rows[0][1], "the base model would answer otherwise"
    found = method.training_examples(new, memory)
    assert found[:8] == list(new.train)
    assert [(row.prompt, row.target, row.task) for row in found[8:]] == [(*row, "sums") for row in rows]
    assert method.report() == {"synthetic_rows": 4}


def test_inputs_that_leave_no_room_for_an_answer_are_left_out_and_none_is_no_fault(monkeypatch):
    method = ssr()
    monkeypatch.setattr(method, "synthesise", lambda task, number: [f" {'x' * 600}\nOutput: 1"])
    ended(method, task_of())
    assert method.synthetic == {"sums": []}
    assert method.report() == {"synthetic_rows": 0}
    none = ssr(ratio=0.0)
    monkeypatch.setattr(none, "synthesise", lambda *_: pytest.fail("with ratio=0 nothing is generated"))
    memory = ended(none, task_of())
    assert none.training_examples(task_of("new"), memory) == list(task_of("new").train)


def test_a_restored_method_has_the_same_rows(monkeypatch, tmp_path):
    method, fresh = ssr(), ssr()
    monkeypatch.setattr(method, "synthesise", lambda task, number: TEXTS)
    for name in ("words", "sums"):
        ended(method, task_of(name))
        method.save(name, tmp_path / name)
        fresh.restore(name, tmp_path / name)
    assert fresh.synthetic == method.synthetic
    assert list(fresh.synthetic) == ["words", "sums"]
    assert [len(rows) for rows in fresh.synthetic.values()] == [4, 4]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": 1.5}, r"method\.ratio is the share of past examples"),
        ({"demonstrations": 0}, r"method\.demonstrations must be at least 1"),
        ({"texts_per_row": -1}, r"method\.texts_per_row must be at least 0"),
        ({"max_new_tokens": 0}, r"method\.max_new_tokens must be at least 1"),
        ({"clusters": 0}, r"method\.clusters must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        ssr(**settings)
