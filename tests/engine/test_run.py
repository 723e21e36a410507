"""The loop over tasks: what stops it, what it counts, and what a later start holds on to."""

import json
import re
import stat
from unittest.mock import patch

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from see_lightning import load_ensemble
from see_lightning.config import validation
from see_lightning.engine import build, launch, record, start
from see_lightning.engine.callbacks import Throughput
from see_lightning.engine.ledger import Ledger, LedgerError
from see_lightning.engine.train_stage import Diverged
from see_lightning.errors import DataError, Refusal
from see_lightning.methods import training
from see_lightning.models.tiny import tiny_tokenizer
from see_lightning.tasks.batches import IGNORED, Batch
from tests.models.zoo import model_folder
from tests.runs import toy

ONE_TASK = ("order.tasks=[sky]", "optim.epochs=1")
TWO_TASKS = ("order.tasks=[sky,sea]", "optim.epochs=1")


@pytest.fixture
def data(tmp_path):
    return toy.write_tasks(tmp_path / "data")


def interrupted(cfg, stage):
    """Run until a stage's training is final."""
    commit_trained = Ledger.commit_trained

    def commit_and_stop(ledger, name, files, facts):
        commit_trained(ledger, name, files, facts)
        if name == stage:
            raise InterruptedError

    with patch.object(Ledger, "commit_trained", commit_and_stop), pytest.raises(InterruptedError):
        launch.launch(cfg, "test")


@pytest.mark.parametrize("how", ["a flipped bit", "missing"])
def test_a_damaged_expert_stops_the_run_instead_of_refusing_queries(data, tmp_path, how):
    """In SEE the base model is a lawful answerer: an expert that fell silent would look like one that refuses."""
    cfg = toy.compose(data, tmp_path / "runs", *TWO_TASKS)
    interrupted(cfg, "01-sky")
    (weights,) = tmp_path.glob("runs/**/adapter_model.safetensors")
    content = weights.read_bytes()
    if how == "missing":
        weights.unlink()
    else:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(LedgerError, match=f"^{weights} is damaged"):
        toy.run(cfg)
    weights.write_bytes(content)
    assert toy.run(cfg).fits == 1


def test_damaged_answers_stop_the_run_before_they_are_counted(data, tmp_path):
    cfg = toy.compose(data, tmp_path / "runs", *ONE_TASK)
    directory = toy.run(cfg).directory
    (directory / "results.json").unlink()
    answers = directory / "tasks" / "01-sky" / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"score": 0.0', '"score": 9.9', 1))
    with pytest.raises(LedgerError, match=f"^{answers} is damaged: the answers to 'sky'"):
        toy.run(cfg)
    assert not (directory / "results.json").exists()


@pytest.mark.parametrize("half", ["train", "test"])
def test_data_that_changed_since_the_start_make_another_run_and_the_old_one_goes_on_with_the_old(
    data, tmp_path, half, capfd
):
    cfg = toy.compose(data, tmp_path / "runs", *TWO_TASKS)
    interrupted(cfg, "01-sky")
    file = data / f"sea.{half}.jsonl"
    content = file.read_text()
    file.write_text(content.replace('"yy"', '"y"', 1))
    other = toy.run(cfg)
    assert other.fits == 1, "the expert of sky has not seen these rows"
    assert f"sea ({half}: 1 rows added, 1 removed)" in capfd.readouterr().err
    file.write_text(content)
    begun = toy.run(cfg)
    assert (begun.fits, begun.directory != other.directory) == (1, True)


def test_a_run_goes_on_in_the_precision_it_was_begun_in(data, tmp_path):
    cfg = toy.compose(data, tmp_path / "runs", *TWO_TASKS, "model.dtype=auto")
    with patch.object(start, "fast_dtype", return_value="bf16"):
        interrupted(cfg, "01-sky")
    with patch.object(start, "fast_dtype", return_value="fp32"):
        resumed = toy.run(cfg)
    assert toy.read_results(resumed.directory)["dtype"] == "bf16"
    base = [weight for name, weight in resumed.methods[0].pool.model.named_parameters() if "lora_" not in name]
    assert {weight.dtype for weight in base} == {torch.bfloat16}
    experts = [json.loads(path.read_text()) for path in resumed.directory.glob("tasks/*/expert/expert.json")]
    assert [expert["dtype"] for expert in experts] == ["bf16", "bf16"]


@pytest.mark.parametrize("method", ["see", "mtl"])
def test_an_expert_is_described_once_with_its_score(data, tmp_path, method):
    written, write = [], Ledger.write

    def noted(ledger, path, text):
        written.append(path)
        write(ledger, path, text)

    with patch.object(Ledger, "write", noted):
        directory = toy.run(toy.compose(data, tmp_path / "runs", *TWO_TASKS, f"method={method}")).directory
    described = [path for path in written if path.name == "expert.json"]
    stages = Ledger(directory).read().content["stages"]
    assert [path.parts[-3] for path in described] == list(stages)
    assert all("expert/expert.json" in stage["trained"]["files"] for stage in stages.values())
    scores = [json.loads(path.read_text())["score"] for path in described]
    matrix = toy.read_results(directory)["matrix"]
    assert scores == ([None] if method == "mtl" else [matrix[0][0], matrix[1][1]])


def test_a_file_without_a_score_that_version_0_1_left_beside_a_trained_expert_is_replaced(data, tmp_path):
    cfg = toy.compose(data, tmp_path / "runs", *TWO_TASKS)
    interrupted(cfg, "01-sky")
    (folder,) = tmp_path.glob("runs/**/tasks/01-sky/expert")
    assert not (folder / "expert.json").exists()
    (folder / "expert.json").write_text(json.dumps({"task": "sky", "score": None}))  # not in the ledger
    resumed = toy.run(cfg)
    assert resumed.fits == 1
    assert (
        json.loads((folder / "expert.json").read_text())["score"] == toy.read_results(resumed.directory)["matrix"][0][0]
    )
    assert Ledger(resumed.directory).read().verified("01-sky") == folder.parent


def bad_rows(data, count):
    """A hundred rows more to train sky on, some of them without an answer."""
    file = data / "sky.train.jsonl"
    more = [{"prompt": f"more {number}?", "answer": "" if number < count else "x"} for number in range(196 - 4)]
    file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in more))
    return file


@pytest.mark.parametrize(("word", "end"), [("</s>", "</s>"), ("no</s>thing", "</s>"), ("no|", "|")])
def test_an_indicator_that_ends_an_answer_is_refused(data, tmp_path, word, end):
    model = model_folder("llama", tmp_path / "model")
    settings = json.loads((model / "generation_config.json").read_text())
    ends = [2, tiny_tokenizer().convert_tokens_to_ids("|")]
    (model / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": ends}))
    hub = ("model=hub", f"model.name={model}", "model.prompt=plain", "model.dtype=fp32")
    told = re.escape(f"indicators.pos={word!r} holds {end!r}, with which the model ends an answer")
    with pytest.raises(Refusal, match=f"^{told}"):
        toy.run(toy.compose(data, tmp_path / "runs", *ONE_TASK, *hub, "method=see", f"indicators.pos='{word}'"))
    assert not list(tmp_path.glob("runs/**/ledger.json"))
    toy.run(toy.compose(data, tmp_path / "runs", *ONE_TASK, *hub, "method=seqft", f"indicators.pos='{word}'"))


def test_a_bad_row_stops_the_run_before_anything_is_trained(data, tmp_path):
    file = bad_rows(data, 1)
    with (
        patch.object(build, "load_model", side_effect=AssertionError("a model was loaded")),
        pytest.raises(DataError, match=f"^{file}:5: empty answer"),
    ):
        toy.run(toy.compose(data, tmp_path / "runs", *ONE_TASK))


def test_a_bad_row_may_be_skipped_and_is_reported(data, tmp_path, capsys):
    file = bad_rows(data, 2)
    directory = toy.run(toy.compose(data, tmp_path / "runs", *ONE_TASK, "data.on_bad_row=skip")).directory
    notice = f"sky: 2 of 200 rows skipped: first {file}:5: empty answer"
    found = toy.read_results(directory)
    assert [told for told in found["notices"] if told.startswith("sky:")] == [notice]
    assert found["counts"]["train_examples"] == [194]
    assert notice in capsys.readouterr().out
    assert notice in (directory / "report.html").read_text(encoding="utf-8")


def test_too_many_bad_rows_are_not_skipped(data, tmp_path):
    bad_rows(data, 3)
    with pytest.raises(DataError, match="3 of 200 rows skipped.*more than 1 % of the rows"):
        toy.run(toy.compose(data, tmp_path / "runs", *ONE_TASK, "data.on_bad_row=skip"))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_names_its_examples(data, tmp_path, loss):
    true_loss, seen = training.answer_loss, []

    def third_loss_lost(logits_LV, labels_BS, mean):
        seen.append(true_loss(logits_LV, labels_BS, mean))
        return seen[-1] * loss if len(seen) == 3 else seen[-1]

    cfg = toy.compose(data, tmp_path / "runs", "order.tasks=[sea]", "optim.epochs=2", "optim.global_batch_size=4")
    with patch.object(training, "answer_loss", third_loss_lost), pytest.raises(Diverged) as error:
        toy.run(cfg)
    told = f"sea diverged in step 3, epoch 2: the loss is {loss} on the examples sea-train-"
    assert str(error.value).startswith(told)
    assert str(error.value).endswith(
        "Nothing of this task is kept. optim.lr is 0.012; lower it, such as to optim.lr=0.0012"
    )
    assert str(error.value).count("sea-train-") == 4
    # Nothing of it is final, so the same command trains the task anew.
    assert toy.run(cfg).fits == 1


def test_weights_that_are_no_numbers_are_not_saved_as_an_expert(data, tmp_path):
    """The last step's gradient may be what no later loss can tell of."""
    step = torch.optim.AdamW.step

    def step_and_break(optimizer, closure=None):
        found = step(optimizer, closure)
        optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))
        return found

    cfg = toy.compose(data, tmp_path / "runs", *ONE_TASK)
    with (
        patch.object(torch.optim.AdamW, "step", step_and_break),
        pytest.raises(Diverged, match=r"sky diverged in step 1, epoch 1: weights"),
    ):
        toy.run(cfg)


def test_a_stage_that_was_not_trained_in_full_is_not_final(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        validation, "TRAINER_SET_BY_RUN", validation.TRAINER_SET_BY_RUN - {"max_steps"}
    )  # else it is refused before
    cfg = toy.compose(data, tmp_path / "runs", *ONE_TASK, "+trainer.max_steps=1", "optim.global_batch_size=1")
    with pytest.raises(RuntimeError, match="01-sky was trained for 1 steps instead of 4"):
        toy.run(cfg)
    assert not list(tmp_path.glob("runs/**/results.json"))


def test_experts_are_readable_to_others(data, tmp_path):
    directory = toy.run(toy.compose(data, tmp_path / "runs", *ONE_TASK)).directory
    modes = {stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*.*") if not path.name.startswith(".")}
    assert all(mode & stat.S_IROTH for mode in modes)


@pytest.mark.parametrize(("parts", "computed"), [(1, 16), (2, 12)])
def test_throughput_counts_steps_and_tokens_and_what_padding_adds(parts, computed):
    throughput = Throughput()
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    batch = Batch(torch.zeros_like(mask), mask, torch.full_like(mask, IGNORED), ["1", "2"], parts=parts)
    trainer, module = L.Trainer(logger=False, enable_checkpointing=False), L.LightningModule()
    for loss in (2.0, 1.5):
        throughput.on_train_batch_end(trainer, module, {"loss": torch.tensor(loss)}, batch, 0)
    assert (throughput.steps, throughput.tokens, throughput.computed, throughput.loss) == (2, 12, computed, 1.5)


@pytest.mark.parametrize("name", ["keys", "train", "1", "weight", "layers", "lora_A", "default"])
def test_a_task_may_have_any_name_that_the_configuration_lets_pass(data, tmp_path, name):
    """PEFT keeps adapters as modules and finds their tensors by name; no name of ours may run into one of its own."""
    for half in ("train", "test"):
        (data / f"{name}.{half}.jsonl").write_text((data / f"sky.{half}.jsonl").read_text().replace("sky", "one"))
    cfg = toy.compose(data, tmp_path / "runs", f"order.tasks=['{name}',sea]", "optim.epochs=1")
    directory = toy.run(cfg).directory
    for number, task in enumerate((name, "sea"), start=1):
        weights = load_file(directory / "tasks" / f"{number:02d}-{task}" / "expert" / "adapter_model.safetensors")
        # An A and a B for each of two layers' four targets, and for the head's.
        assert len(weights) == 2 * (2 * 4 + 1)
    assert load_ensemble(directory).method.pool.names == [name, "sea"]


def test_results_need_no_git(monkeypatch):
    """A cluster's container often has none."""
    monkeypatch.setenv("PATH", "")
    assert record.commit() is None


def test_an_unfinished_run_of_one_adapter_says_that_it_has_none_yet(data, tmp_path):
    cfg = toy.compose(data, tmp_path / "runs", "method=seqft", *ONE_TASK)
    with patch.object(L.Trainer, "fit", side_effect=InterruptedError), pytest.raises(InterruptedError):
        toy.run(cfg)
    (directory,) = (path.parent for path in tmp_path.glob("runs/**/ledger.json"))
    with pytest.raises(Refusal):
        load_ensemble(directory).answer(["sky?"])


def test_an_expert_that_there_is_not_is_no_reason_to_ask_the_base_model(data, tmp_path):
    directory = toy.run(toy.compose(data, tmp_path / "runs", "method=stl", *ONE_TASK)).directory
    ensemble = load_ensemble(directory, max_new_tokens=2)
    assert ensemble.answer(["sky?"], task="sky")[0].expert == "sky"
    with pytest.raises(Refusal, match="skyy"):
        ensemble.answer(["sky?"], task="skyy")
