"""What Lightning loads: an order made from (run seed, task, epoch), and queries in one order for all."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from see_lightning.data.example import Example
from see_lightning.models.tiny import tiny_tokenizer
from see_lightning.tasks.batches import IGNORED, Batch, Queries
from see_lightning.tasks.datamodule import WINDOW, TaskDataModule, pad_id, query_batch, query_loader
from see_lightning.tasks.prompts import PromptTemplate
from see_lightning.tasks.task import Task

TEMPLATE = PromptTemplate(tiny_tokenizer(), style="chat", max_length=512)
ROWS = [Example(f"id-{i}", "why " * (i % 7 + 1), "because " * (i % 3 + 1), "qa" if i % 2 else "sa") for i in range(50)]


def epoch(number: int, *, name: str = "qa", run_seed: int = 0, batch_size: int = 8, **share: Any) -> list[Batch]:
    data = TaskDataModule(name, ROWS, TEMPLATE, batch_size=batch_size, run_seed=run_seed, **share)
    data.trainer = SimpleNamespace(current_epoch=number)
    return list(data.train_dataloader())


def order(batches: list[Batch]) -> list[str]:
    return [id_ for batch in batches for id_ in batch.ids]


def test_an_epoch_holds_each_example_once_with_its_own_tokens():
    batches = epoch(0)
    assert sorted(order(batches)) == sorted(row.id for row in ROWS)
    by_id = {row.id: row for row in ROWS}
    for batch in batches:
        for i, id_ in enumerate(batch.ids):
            ids, labels = batch.input_ids_BS[i], batch.labels_BS[i]
            target = TEMPLATE.target_ids(by_id[id_].target)
            assert ids[batch.attention_mask_BS[i].bool()].tolist() == TEMPLATE.prompt_ids(by_id[id_].prompt) + target
            assert labels[labels != IGNORED].tolist() == target


def test_the_order_is_the_same_for_the_same_seed_task_and_epoch_whatever_was_drawn_before():
    first = order(epoch(1))
    torch.manual_seed(7)
    assert order(epoch(1)) == first


def test_the_order_changes_with_the_epoch_the_seed_and_the_task():
    orders = [order(epoch(0)), order(epoch(1)), order(epoch(0, run_seed=1)), order(epoch(0, name="sa"))]
    assert len({tuple(one) for one in orders}) == 4


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_the_steps_of_one_and_their_weighted_losses_have_the_mean_of_the_whole_step(
    ranks, batch_size, loss_reduction
):
    whole = epoch(1, batch_size=batch_size)
    shares = [
        epoch(1, batch_size=batch_size, rank=rank, ranks=ranks, loss_reduction=loss_reduction) for rank in range(ranks)
    ]
    answers = {row.id: len(TEMPLATE.target_ids(row.target)) for row in ROWS}
    worth = {id_: 1 + number / 7 for number, id_ in enumerate(answers)}  # a loss of its own for every example

    def mean_loss(ids: list[str]) -> float:
        loss_weight = {id_: answers[id_] if loss_reduction == "tokens" else 1 for id_ in ids}
        return sum(worth[id_] * loss_weight[id_] for id_ in ids) / sum(loss_weight.values())

    assert {batch.weight for batch in whole} == {1.0}
    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert sorted(id_ for part in parts for id_ in part.ids) == sorted(step.ids)
        assert max(len(part.ids) for part in parts) - min(len(part.ids) for part in parts) <= 1
        assert all(len(part.input_ids_BS) == max(1, len(part.ids)) for part in parts), "no rank may miss the step"
        losses = [part.weight * mean_loss(part.ids) if part.ids else part.weight for part in parts]
        assert sum(losses) / ranks == pytest.approx(mean_loss(step.ids))


@pytest.mark.parametrize("loss_reduction", ["tokens", "examples"])
@pytest.mark.parametrize("tokens", [1, 60, 150])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_step_falls_into_parts_of_few_tokens_and_as_many_on_every_rank(ranks, tokens, loss_reduction):
    more: dict[str, Any] = {"batch_size": 8, "loss_reduction": loss_reduction, "ranks": ranks}
    shares = [epoch(1, rank=rank, max_tokens_per_microbatch=tokens, **more) for rank in range(ranks)]
    assert max(batch.parts for batch in shares[0]) > 1
    for step in zip(*shares, strict=True):
        assert len({batch.parts for batch in step}) == 1
        for batch in step:
            parts = batch.split(loss_reduction)
            assert len(parts) == batch.parts
            assert [id_ for part in parts for id_ in part.ids] == batch.ids
            assert sum(part.weight for part in parts) == pytest.approx(batch.weight)
            for part in parts:
                assert len(part.input_ids_BS) == 1 or part.input_ids_BS.numel() <= tokens
                assert part.attention_mask_BS.any(0).all(), "no more padding than it needs"
                assert part.ids or part.weight == 0
            rows = [
                row[mask.bool()].tolist()
                for part in parts
                for row, mask in zip(part.input_ids_BS, part.attention_mask_BS, strict=True)
            ]
            whole = zip(batch.input_ids_BS, batch.attention_mask_BS, strict=True)
            assert rows[: len(batch.ids)] == [row[mask.bool()].tolist() for row, mask in whole][: len(batch.ids)]


@pytest.mark.parametrize("batch_size", [1, 8, 25, 64])
def test_the_number_of_steps_told_is_the_number_made(batch_size):
    data = TaskDataModule("qa", ROWS, TEMPLATE, batch_size=batch_size, run_seed=0)
    assert data.steps_per_epoch == len(epoch(0, batch_size=batch_size)) == -(-len(ROWS) // batch_size)


def test_without_a_padding_token_the_end_token_serves():
    tokenizer = tiny_tokenizer()
    assert pad_id(PromptTemplate(tokenizer, style="chat", max_length=64)) == tokenizer.pad_token_id == 0
    tokenizer.pad_token = None
    assert pad_id(PromptTemplate(tokenizer, style="chat", max_length=64)) == tokenizer.eos_token_id == 2


QUERIES = [Example(f"id-{i:02d}", "x" * (i * 7 % 10), f"answer {i}", "qa") for i in range(10)] + [
    Example("id-10", "x" * 9, "another of nine", "qa")
]
TASK = Task("qa", (), tuple(QUERIES), "rouge_l", 12)


OTHER = Task("qg", (), tuple(Example(f"id-{i:02d}", "y" * i, "?", "qg") for i in range(3)), "rouge_l", 5)


@pytest.mark.parametrize("tell", [False, True])
@pytest.mark.parametrize("only_decide", [False, True])
def test_queries_come_task_by_task_longest_first_each_once_and_without_their_answers(tell, only_decide):
    (asked,) = query_loader([TASK, OTHER], TEMPLATE, batch_size=4, tell_task=tell, only_decide=only_decide)
    longest_first = sorted(QUERIES, key=lambda e: (-len(e.prompt), e.id)) + list(OTHER.test[::-1])
    assert asked == Queries(
        [TEMPLATE.prompt_ids(e.prompt) for e in longest_first],
        [str([*QUERIES, *OTHER.test].index(e)) for e in longest_first],
        groups=[0] * len(QUERIES) + [1] * 3,
        limits=[12] * len(QUERIES) + [5] * 3,
        rows=4,
        tasks=["qa"] * len(QUERIES) + ["qg"] * 3 if tell else [],
        only_decide=only_decide,
    )


def test_a_method_gets_more_queries_at_once_than_it_writes_together_so_that_no_place_stays_free():
    batches = list(query_loader([TASK], TEMPLATE, batch_size=1, tell_task=False))
    assert [len(batch) for batch in batches] == [WINDOW, len(QUERIES) - WINDOW]
    assert {batch.rows for batch in batches} == {1}


@pytest.mark.parametrize("before", range(12))
@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_which_queries_are_read_together_hangs_on_their_task_alone(rows, before):
    """In bf16 a query's reading hangs on those beside it, so it must not hang on which other tasks are asked."""

    def chunks(tasks: list[Task]) -> list[list[list[int]]]:
        return [
            [batch.prompts[row] for row in portion]
            for batch in query_loader(tasks, TEMPLATE, batch_size=rows, tell_task=False)
            for portion in batch.chunks(range(len(batch)))
            if batch.limits[portion[0]] == TASK.max_new_tokens
        ]

    first = Task("sa", (), tuple(Example(f"{i}", "z", "?", "sa") for i in range(before)), "rouge_l", 7)
    assert chunks([first, TASK, OTHER]) == chunks([TASK])


def test_a_task_without_queries_brings_no_batch():
    empty = Task("sa", (), (), "rouge_l", 7)
    assert [len(batch) for batch in query_loader([empty, OTHER, empty], TEMPLATE, batch_size=4, tell_task=False)] == [3]
    assert list(query_loader([empty], TEMPLATE, batch_size=4, tell_task=False)) == []


def test_queries_of_two_groups_are_never_read_together():
    queries = replace(query_batch(["q"] * 6, TEMPLATE, max_new_tokens=3, rows=8), groups=[0, 0, 0, 1, 1, 2])
    assert queries.chunks(range(6)) == [[0, 1, 2], [3, 4], [5]]
    assert queries.chunks([1, 4, 5]) == [[1], [4], [5]]
    assert len(queries.same_group(4)) == 2


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 100])
def test_queries_are_read_in_portions_of_half_of_those_that_are_written(rows):
    queries = query_batch(["q"] * 9, TEMPLATE, max_new_tokens=3, rows=rows)
    chosen = [8, 0, 3, 4, 7]
    chunks = queries.chunks(chosen)
    assert [row for portion in chunks for row in portion] == chosen
    assert {len(portion) for portion in chunks[:-1]} <= {max(1, rows // 2)}
    assert all(0 < len(portion) <= max(1, rows // 2) for portion in chunks)
    assert queries.chunks([]) == []


def test_the_order_of_the_queries_does_not_hang_on_the_order_of_the_test_split():
    turned = Task("qa", (), tuple(QUERIES[::-1]), "rouge_l", 12)
    there, here = (
        [
            task.test[int(id_)].id
            for batch in query_loader([task], TEMPLATE, batch_size=4, tell_task=False)
            for id_ in batch.ids
        ]
        for task in (turned, TASK)
    )
    assert there == here


def test_a_batch_of_queries_keeps_their_order():
    batch = query_batch(["longer", "s"], TEMPLATE, tasks=["qa", "sa"], max_new_tokens=3)
    assert (batch.ids, batch.tasks, batch.limits, len(batch)) == (["0", "1"], ["qa", "sa"], [3, 3], 2)
    assert batch.prompts == [TEMPLATE.prompt_ids(q) for q in ("longer", "s")]
    assert batch.to(torch.device("meta")) is batch, "Lightning moves batches; ids wait until they are read"
