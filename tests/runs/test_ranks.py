"""Several processes do a run together, and end with what one process gives."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loops import utilities
from safetensors.torch import load_file

from see_lightning.engine import launch, session
from see_lightning.engine.preemption import AGAIN
from see_lightning.errors import ConfigError
from see_lightning.inference.prefix_cache import PromptCache
from see_lightning.methods import training
from see_lightning.methods.method import Method
from see_lightning.methods.see import See
from see_lightning.methods.seqft import SeqFt
from tests.contracts.conftest import METHODS, declared
from tests.nightly import all_but
from tests.runs import toy
from tests.runs.foreign import foreign

# Ranks compute different rows, and so draw different dropout; without it the same numbers are to come out, as long as steps
# are not so long that the last digit of a sum decides what is learned.
CALM = ("adapter.dropout=0", "model.dtype=fp32", "optim.lr=4e-3")
SETTINGS = [("method=see",), ("method=see", *toy.ACTIVATED), ("method=seqft",), ("method=mtl",), ("method=base",)]


def together(base: Path, runs: Path, size: int, *settings: str, trainer: str = "ddp") -> tuple[Any, Path]:
    """What each rank shall do, and the run directory it will have."""
    alone = toy.whole(base, *CALM, *settings).directory
    ranks = (f"trainer={trainer}", "trainer.accelerator=cpu", f"trainer.devices={size}")
    cfg = toy.compose(toy.data_in(base), runs, *CALM, *settings, *ranks)
    return lambda: launch.launch(cfg, "test"), runs / toy.place_of(alone)


def outcome(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answers without what the number of ranks may change, and the results that must be the same."""
    results = toy.read_results(directory)
    counts = {name: results["counts"][name] for name in ("train_examples", "negatives", "steps", "truncated")}
    answers = toy.read_answers(directory)
    return answers, {"matrix": results["matrix"], "metrics": results["metrics"], **counts}


# Which numbers a mask takes, and which ranks act, is decided by comparisons: closer ones than rounding would part the ranks.
WITHIN_ADAPTERS = [
    ("method=moses",),
    ("method=moses", "method.granularity=rank", "method.task_id=entropy"),
    ("method=exssnet", "method.task_id=key"),
    ("method=moram", "method.prune=0.25"),
]


CASES = [
    *((settings, size, trainer) for settings in SETTINGS for size in (2, 3) for trainer in ("ddp", "fsdp")),
    # Ranks have unlike numbers of rows, and so of parts.
    *((("method=see", "optim.max_tokens_per_microbatch=20"), 3, trainer) for trainer in ("ddp", "fsdp")),
    *((("method=see", *toy.ACTIVATED, "optim.max_tokens_per_microbatch=1"), 2, trainer) for trainer in ("ddp", "fsdp")),
    *((settings, 2, "ddp") for settings in WITHIN_ADAPTERS),
    *(((f"method={name}", *toy.FULL), 2, "ddp") for name in ("seqft", "mtl")),
    # An expert that is left out, and one that is trained with settings of its own.
    *(
        (("method=see", "order.experts={sea:none,ice:{epochs:12,lr:2e-3,seed:1}}"), 2, trainer)
        for trainer in ("ddp", "fsdp")
    ),
    *((("method=merge", "rule=frank_wolfe", "rule.rows=2"), 2, trainer) for trainer in ("ddp", "fsdp")),
    # Two directions with far more energy than the next; the weakest of eight would be chosen by the roundings of the inputs.
    *(
        (("method=inflora", "optim.lr=2e-3", "adapter.rank=2", "adapter.alpha=64"), 2, trainer)
        for trainer in ("ddp", "fsdp")
    ),
]
# And every other method of conf/method, in steps so small that roundings do not grow.
TRIED = {settings[0] for settings, _, _ in CASES}
CASES += [
    ((f"method={name}", "optim.lr=2e-3"), 2, trainer)
    for name in METHODS
    for trainer in ("ddp", "fsdp")
    if f"method={name}" not in TRIED and (trainer == "ddp" or declared(name).shardable)
]
DAILY = [(SETTINGS[0], 2, "ddp"), (SETTINGS[0], 3, "fsdp")]


@pytest.mark.parametrize(
    ("settings", "size", "trainer"),
    [case if case in DAILY else pytest.param(*case, marks=pytest.mark.nightly) for case in CASES],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_several_ranks_give_the_answers_and_metrics_of_one(base, tmp_path, settings, size, trainer):
    work, directory = together(base, tmp_path / "runs", size, *settings, trainer=trainer)
    log = tmp_path / "log"
    assert toy.ended(toy.start_ranks(size, work, log)) == [0] * size, log.read_text()[-3000:]
    alone = toy.whole(base, *CALM, *settings).directory
    assert outcome(directory) == outcome(alone)
    assert log.read_text().count("results.json") == 1, "one rank speaks"


@pytest.mark.nightly
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_ranks_import_an_adapter_as_one_process_does(base, tmp_path, trainer):
    folder, _ = foreign(base, tmp_path / "own")
    work, directory = together(base, tmp_path / "runs", 2, f"order.experts={{sea:{folder}}}", trainer=trainer)
    log = tmp_path / "log"
    assert toy.ended(toy.start_ranks(2, work, log)) == [0, 0], log.read_text()[-3000:]
    assert outcome(directory) == outcome(toy.whole(base, *CALM, f"order.experts={{sea:{folder}}}").directory)


@pytest.mark.nightly
def test_the_examples_of_each_step_and_its_loss_do_not_hang_on_the_number_of_ranks(base, tmp_path, monkeypatch):
    seen, experts = {}, {}
    for size, trainer in ((1, "ddp"), (2, "ddp"), (4, "ddp"), (2, "fsdp")):
        diary = tmp_path / f"{trainer} {size}"
        diary.mkdir()
        step = Method.training_step

        @wraps(step)
        def noted(method: Method, batch: Any, batch_idx: int, diary: Path = diary, step: Any = step) -> Any:
            loss = step(method, batch, batch_idx)
            with (diary / os.environ.get("RANK", "0")).open("a") as file:
                file.write(json.dumps([batch.ids, loss.item()]) + "\n")
            return loss

        gently = ("method=see", "optim.lr=1e-3", "adapter.alpha=8")
        work, directory = together(base, tmp_path / f"runs {trainer} {size}", size, *gently, trainer=trainer)
        with monkeypatch.context() as patch:
            patch.setattr(Method, "training_step", noted)
            log = tmp_path / f"log {size}"
            assert toy.ended(toy.start_ranks(size, work, log)) == [0] * size, log.read_text()[-3000:]
        ranks = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(diary.iterdir())]
        assert len(ranks) == size
        experts[trainer, size] = [path.read_bytes() for path in sorted(directory.glob("tasks/*/expert/adapter_*"))]
        seen[trainer, size] = [
            (sorted(id_ for ids, _ in shares for id_ in ids), sum(loss for _, loss in shares) / size)
            for shares in zip(*ranks, strict=True)
        ]
    alone = seen["ddp", 1]
    for several in seen.values():
        assert [ids for ids, _ in several] == [ids for ids, _ in alone]
        assert [loss for _, loss in several] == pytest.approx([loss for _, loss in alone], abs=1e-5)
    assert len({len(ids) for ids, _ in alone}) > 1, "the last step of an epoch has fewer examples"
    assert len(experts["ddp", 2]) == 6
    assert experts["fsdp", 2] == experts["ddp", 2], "a base model in parts trains other experts, or writes other files"


@pytest.mark.nightly
@pytest.mark.parametrize("gigabytes", all_but([0], [0, 1.5e-4]))
def test_ranks_that_share_a_base_model_may_read_prompts_again_that_others_have_kept(
    base, tmp_path, monkeypatch, gigabytes
):
    """Reading takes part of every rank, whether or not it has something to read."""
    diary, read_batch = tmp_path / "diary", PromptCache.batch
    diary.mkdir()

    def noted(kept: PromptCache, *arguments: Any) -> Any:
        before = kept.tokens_read
        read = read_batch(kept, *arguments)
        with (diary / os.environ.get("RANK", "alone")).open("a") as file:
            file.write("?" if kept.tokens_read > before else ".")
        return read

    gently = ("optim.lr=1e-3", "adapter.alpha=8", "optim.epochs=3")
    settings = ("method=see", *toy.ACTIVATED, *gently, f"adapter.cache_gb={gigabytes}")
    work, directory = together(base, tmp_path / "runs", 2, *settings, trainer="fsdp")
    log = tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(PromptCache, "batch", noted)
        assert toy.ended(toy.start_ranks(2, work, log)) == [0, 0], log.read_text()[-3000:]
    one, other = ((diary / rank).read_text() for rank in "01")
    assert len(one) == len(other)
    assert "?" in one + other
    assert (one == other) == (gigabytes == 0), "without memory all read at each step, with some memory now this one"
    alone = toy.whole(base, *CALM, *settings).directory
    assert outcome(directory) == outcome(alone)
    experts = sorted(path.relative_to(alone) for path in alone.glob("tasks/*/expert/adapter_model.safetensors"))
    assert len(experts) == 3
    for path in experts:
        torch.testing.assert_close(load_file(directory / path), load_file(alone / path), atol=1e-5, rtol=0)


def test_one_rank_alone_holds_the_whole_base_model(base, tmp_path):
    work, directory = together(base, tmp_path / "runs", 1, "method=see", trainer="fsdp")
    log = tmp_path / "log"
    assert toy.forked(work, log) == 0, log.read_text()[-3000:]
    assert outcome(directory) == outcome(toy.whole(base, *CALM, "method=see").directory)


def test_a_method_that_needs_the_base_model_whole_is_refused_before_anything_is_made(base, tmp_path, monkeypatch):
    monkeypatch.setattr(See, "traits", replace(See.traits, shardable=False))
    work, directory = together(base, tmp_path / "runs", 2, "method=see", trainer="fsdp")
    with pytest.raises(ConfigError, match=r"method=see was not made for a base model.*choose trainer=ddp"):
        work()
    assert not directory.exists()


@pytest.mark.nightly
def test_a_rank_killed_beside_one_that_shares_its_base_model_ends_both_and_the_same_command_goes_on(base, tmp_path):
    """SIGKILL at a reading of the model by one rank; the other notices and ends too, and nothing is lost."""
    work, directory = together(base, tmp_path / "runs", 2, "method=see", trainer="fsdp")
    log, moments = tmp_path / "log", random.Random(6)
    victim, ends = moments.randrange(2), [[-9, 1]]
    while ends[-1] != [0, 0]:
        moment = moments.randint(1, 60)

        def killed(moment: int = moment) -> None:
            def die(call: int) -> None:
                if os.environ["RANK"] == str(victim) and call == moment:
                    toy.die()

            with toy.count_model_calls(die):
                work()

        started = time.monotonic()
        ends.append(toy.ended(toy.start_ranks(2, killed if len(ends) < 3 else work, log)))
        assert time.monotonic() - started < 60
        assert len(ends) < 5, log.read_text()[-3000:]
        if ends[-1] != [0, 0]:
            assert ends[-1][victim] == -9
            assert ends[-1][1 - victim] != 0
    assert outcome(directory) == outcome(toy.whole(base, *CALM, "method=see").directory)


@pytest.mark.parametrize(
    ("told", "code", "trainer"),
    [
        (signal.SIGUSR1, AGAIN, "ddp"),
        pytest.param(signal.SIGUSR2, AGAIN, "ddp", marks=pytest.mark.nightly),
        pytest.param(signal.SIGTERM, 143, "ddp", marks=pytest.mark.nightly),
        pytest.param(signal.SIGUSR1, AGAIN, "fsdp", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("phase", all_but(["in training"], ["in training", "in answering"]))
def test_a_signal_to_one_rank_stops_all_in_good_order(base, tmp_path, monkeypatch, told, code, trainer, phase):
    # As it is on GPUs: for gloo alone Lightning gives up inference mode by itself.
    monkeypatch.setattr(utilities, "dist", SimpleNamespace(get_backend=lambda: "cpu:gloo,cuda:nccl"))
    work, directory = together(base, tmp_path / "runs", 2, "method=see", trainer=trainer)
    log = tmp_path / "log"

    def told_once() -> None:
        number = iter(range(1, 10_000))

        def tell(call: int) -> None:
            here = torch.is_grad_enabled() == (phase == "in training")
            if os.environ["RANK"] == "1" and here and next(number) == 5:
                os.kill(os.getpid(), told)

        with toy.count_model_calls(tell):
            work()

    assert toy.ended(toy.start_ranks(2, told_once, log)) == [code, 0], log.read_text()[-3000:]
    assert not (directory / "results.json").exists()
    assert toy.ended(toy.start_ranks(2, work, log)) == [0, 0], log.read_text()[-3000:]
    assert outcome(directory) == outcome(toy.whole(base, *CALM, "method=see").directory)


def test_a_signal_to_one_rank_while_data_are_loaded_stops_all_before_training(base, tmp_path, monkeypatch):
    work, directory = together(base, tmp_path / "runs", 2, "method=see")
    build, log = session.build_tasks, tmp_path / "log"

    def told_while_loading(*given: Any) -> Any:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return build(*given)

    monkeypatch.setattr(session, "build_tasks", told_while_loading)
    assert toy.ended(toy.start_ranks(2, work, log)) == [143, 0], log.read_text()[-3000:]
    assert not (directory / "tasks").exists(), "a stage was begun"


@pytest.mark.nightly
def test_a_rank_told_to_stop_does_not_wait_for_ever_for_one_that_is_halted(base, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "GRACE", 2)
    work, directory = together(base, tmp_path / "runs", 2, "method=see")
    log = tmp_path / "log"

    def halted() -> None:
        def halt(call: int) -> None:
            if os.environ["RANK"] == "1" and call == 5:
                os.kill(os.getpid(), signal.SIGSTOP)

        with toy.count_model_calls(halt):
            work()

    first, other = toy.start_ranks(2, halted, log)
    assert os.WIFSTOPPED(os.waitpid(other, os.WUNTRACED)[1])
    time.sleep(1)
    started = time.monotonic()
    os.kill(first, signal.SIGTERM)
    assert toy.ended([first]) == [143], log.read_text()[-3000:]
    assert time.monotonic() - started < 2 + 3
    assert "kept waiting for another rank" in log.read_text()
    os.kill(other, signal.SIGKILL)
    assert toy.ended([other]) == [-9]
    assert toy.ended(toy.start_ranks(2, work, log)) == [0, 0], log.read_text()[-3000:]
    assert outcome(directory) == outcome(toy.whole(base, *CALM, "method=see").directory)


def test_training_that_diverges_on_one_rank_is_told_in_one_line(base, tmp_path, monkeypatch):
    true_loss = training.answer_loss

    def lost_on_one(logits_LV: Any, labels_BS: Any, mean: str) -> Any:
        return true_loss(logits_LV, labels_BS, mean) * (float("nan") if os.environ["RANK"] == "1" else 1)

    work, _ = together(base, tmp_path / "runs", 2, "method=see")
    monkeypatch.setattr(training, "answer_loss", lost_on_one)
    log = tmp_path / "log"
    assert toy.ended(toy.start_ranks(2, work, log)) == [1, 0], log.read_text()[-3000:]
    assert "Refusal: rank 1: sky diverged in step 1, epoch 1: the loss is nan" in log.read_text()


def test_a_refusal_of_the_first_rank_is_told_once(base, tmp_path):
    work, directory = together(base, tmp_path / "runs", 2, "method=see")
    directory.mkdir(parents=True)
    (directory / "ledger.json").write_text("{")
    log = tmp_path / "log"
    assert toy.ended(toy.start_ranks(2, work, log)) == [1, 0], log.read_text()[-3000:]
    assert log.read_text().count(f"LedgerError: {directory / 'ledger.json'} is damaged") == 1, log.read_text()[-3000:]


def test_ranks_train_on_the_rows_of_the_first_and_edit_the_gradients_that_all_have(base, tmp_path, monkeypatch):
    work, _ = together(base, tmp_path / "runs", 2, "method=seqft")
    log, made = tmp_path / "log", SeqFt.training_examples

    def note(line: str) -> None:
        with (tmp_path / f"seen by {os.environ['RANK']}").open("a") as file:
            file.write(line + "\n")

    def differently(method: Method, *given: Any) -> Any:
        return random.Random(os.environ["RANK"]).sample(examples := made(method, *given), len(examples))

    def rows(method: Method) -> None:
        note(" ".join(row.example.id for row in method.trainer.datamodule.rows))

    def gradients(method: Method) -> None:
        note(str([p.grad.double().sum().item() for p in method.parameters() if p.requires_grad]))

    monkeypatch.setattr(SeqFt, "training_examples", differently)
    monkeypatch.setattr(SeqFt, "on_train_start", rows)
    monkeypatch.setattr(SeqFt, "edit_gradients", gradients)
    assert toy.ended(toy.start_ranks(2, work, log)) == [0, 0], log.read_text()[-3000:]
    first, other = ((tmp_path / f"seen by {rank}").read_text() for rank in (0, 1))
    assert first == other
    assert len(first.splitlines()) > len(toy.TASKS), "a line for each task and each step"
