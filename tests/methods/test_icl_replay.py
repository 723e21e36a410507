"""Rows in the prompt: which stand there, that they fit, and the answers against one generation at a time."""

import pytest
import torch

from see_lightning.adapters.embeddings import embed_prompts
from see_lightning.config.schema import OptimConfig
from see_lightning.data.example import Example
from see_lightning.errors import ConfigError
from see_lightning.methods.base import Base
from see_lightning.methods.icl_replay import IclReplay, in_context, nearest
from see_lightning.methods.setup import Setup
from see_lightning.tasks.memory import Memory
from see_lightning.tasks.task import Task
from tests.adapters import small


def icl(*, ratio: float = 1.0, examples: int = 2, seed: int = 0) -> IclReplay:
    setup = Setup(small.pool(), small.TEMPLATE, OptimConfig(), seed)
    return IclReplay(setup, ratio=ratio, examples=examples).eval()


def task_of(name: str, *rows: tuple[str, str]) -> Task:
    train = tuple(Example(f"{name}-{n}", prompt, answer, name) for n, (prompt, answer) in enumerate(rows))
    return Task(name, train, train[:1], "rouge_l", 8)


SUMS = task_of("sums", ("2 + 2?", "4"), ("1 + 6?", "7"), ("5 + 5?", "10"))
WORDS = task_of("words", ("sky in German?", "Himmel"), ("sea in German?", "Meer\n\u2028 \N{SNOWMAN}"))


def ended(method: IclReplay, *tasks: Task) -> IclReplay:
    with torch.no_grad():
        for task in tasks:
            method.end_task(task, Memory(0))
    return method


def texts(method: IclReplay, *queries: str, limit: int = 6) -> list[str]:
    """The prompts that the base model gets, as texts."""
    return [small.TEMPLATE.text(ids) for ids in method.prompts(small.queries(list(queries), limit=limit))]


def test_rows_are_ordered_by_their_cosine_from_a_query():
    draw = torch.Generator().manual_seed(0)
    states, stored = torch.randn(4, 5, generator=draw), torch.randn(9, 5, generator=draw)
    for row, order in enumerate(nearest(states, stored).tolist()):
        by_hand = [torch.cosine_similarity(states[row], one, dim=0).item() for one in stored]
        assert order == sorted(range(9), key=lambda place, near=by_hand: -near[place])


def test_the_nearest_rows_of_all_tasks_stand_before_the_query_the_nearest_last():
    method = ended(icl(examples=3), SUMS, WORDS)
    rows = [(row.prompt, row.target) for row in (*SUMS.train, *WORDS.train)]
    queries = ["3 + 3?", "sun in German?", "sea in German?"]
    ids = [small.TEMPLATE.prompt_ids(text) for text in queries]
    states = embed_prompts(method.pool, ids)
    of_rows = embed_prompts(method.pool, [small.TEMPLATE.prompt_ids(prompt) for prompt, _ in rows])
    seen = set()
    for query, state, prompt in zip(queries, states, texts(method, *queries), strict=True):
        near = torch.cosine_similarity(state[None], of_rows, dim=1).argsort(descending=True)[:3]
        shown = [rows[place] for place in near.flip(0).tolist()]
        assert in_context(shown, query) in prompt
        seen |= set(shown)
    assert {prompt for prompt, _ in seen} & {row.prompt for row in SUMS.train}
    assert rows[4] in seen, "a query that is stored is its own nearest"


def test_answers_are_those_of_the_base_model_on_these_prompts():
    method = ended(icl(), SUMS, WORDS)
    queries = small.queries(["3 + 3?", "sun in German?", "x"], limit=6)
    prompts = method.prompts(queries)
    method.counts.clear()
    answers = method.answer(queries)
    assert [answer.expert for answer in answers] == [None] * 3
    for prompt, answer in zip(prompts, answers, strict=True):
        said = small.alone(method.pool.model, prompt, 6)
        assert (answer.text, answer.truncated) == (small.TEMPLATE.text(said.ids), not said.ended)
    assert dict(method.counts)["prefills"] == 6, "each query is read to find rows, and each prompt to answer it"


def test_before_the_first_task_it_is_the_base_model():
    method, queries = icl(), small.queries(["3 + 3?", "x"], limit=6)
    base = Base(Setup(method.pool, small.TEMPLATE, OptimConfig(), 0))
    assert [one.text for one in method.answer(queries)] == [one.text for one in base.answer(queries)]
    assert method.storage() == {}


def test_prompt_and_answer_stay_within_the_context_and_a_row_that_fits_is_kept():
    long = task_of("long", ("2 + 2? " + "so " * 120, "4"), ("2 + 2?", "4"), ("2 + 2? " + "so " * 140, "4"))
    method = ended(icl(examples=3), long)
    for limit in (1, 60, 100, 470):
        queries = small.queries(["2 + 2? so so so"], limit=limit)
        (ids,) = method.prompts(queries)
        assert len(ids) + limit <= small.TEMPLATE.max_length
        text = small.TEMPLATE.text(ids)
        assert text.count("Answer: 4") == {1: 2, 60: 2, 100: 1, 470: 0}[limit]
        if limit == 470:
            assert ids == queries.prompts[0], "without a row the query stands alone, as for the base model"


@pytest.mark.parametrize(("ratio", "stored"), [(0.4, 1), (0.67, 2), (1.0, 3)])
def test_a_share_of_the_rows_is_stored_by_seed(ratio, stored):
    memory = Memory(0)
    memory.add(SUMS)
    method = ended(icl(ratio=ratio), SUMS)
    replay = memory.rehearse(WORDS, ratio=ratio, resample="once")
    assert method.rows["sums"] == [(row.prompt, row.target) for row in replay]
    assert len(replay) == stored
    drawn = {tuple(ended(icl(ratio=0.4, seed=seed), SUMS).rows["sums"]) for seed in range(8)}
    assert len(drawn) > 1


def test_more_examples_make_longer_prompts():
    lengths = [len(texts(ended(icl(examples=number), SUMS, WORDS), "3 + 3?")[0]) for number in (1, 2, 5, 9)]
    assert lengths[0] < lengths[1] < lengths[2] == lengths[3]


def test_a_restored_method_shows_the_same_rows_to_the_last_character(tmp_path):
    method, fresh = icl(), icl()
    for task in (WORDS, SUMS):
        ended(method, task).save(task.name, tmp_path / task.name)
        fresh.restore(task.name, tmp_path / task.name)
    assert fresh.rows == method.rows
    assert list(fresh.rows) == list(method.rows) == ["words", "sums"]
    assert texts(fresh, "a", "sea in German?") == texts(method, "a", "sea in German?")
    first = ended(icl(), WORDS).storage()
    assert first["pool"] == first["state"] == method.storage()["pool"] < method.storage()["state"]
    assert method.storage()["state"] == sum(tensor.nbytes for tensor in method.state().values())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": 1.5}, r"method\.ratio is the share of past examples"),
        ({"ratio": 0.0}, "stores no row with ratio=0; give a ratio above 0, or method=base"),
        ({"examples": 0}, r"method\.examples must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        icl(**settings)
