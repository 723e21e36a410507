"""``see-lightning experts``: a new run in which one expert is left out, trained again or imported."""

import json
import shlex
import shutil
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from see_lightning import load_ensemble
from see_lightning.cli.calibrate import calibrate
from see_lightning.cli.experts import main as experts
from see_lightning.cli.perplexity import main as perplexity
from see_lightning.cli.report import main as report
from see_lightning.cli.route import main as route
from see_lightning.cli.study import main as study
from see_lightning.cli.transfer import main as transfer
from see_lightning.engine import other_experts
from see_lightning.engine.asking import Request
from see_lightning.engine.experts import list_experts
from see_lightning.engine.ledger import Ledger
from see_lightning.engine.stream_facts import right_experts
from see_lightning.engine.train_stage import Diverged
from see_lightning.errors import ConfigError
from tests.nightly import all_but
from tests.runs import toy
from tests.runs.test_growing import all_files, grown_from

SKY, SKY_ICE = "order.tasks=[sky]", "order.tasks=[sky,ice]"
#: Thresholds that leave queries to what comes last.
LEAVES = ("train_size=2", "method.calibrate_on=2", "method.target_recall=0.5", "optim.epochs=25", "model.dtype=fp32")
METHODS = ["see", "stl", "any_ssr"]
RETRAINED = "order.experts={sea:{epochs:12,lr:1e-2,seed:1}}"


def weights(directory, stage):
    return (directory / "tasks" / stage / "expert" / "adapter_model.safetensors").read_bytes()


def made_from(finished, tmp_path, *settings, words):
    """The run that the command makes from a copy of a finished run, and the copy."""
    copy = shutil.copytree(finished, tmp_path / toy.place_of(finished))
    before = all_files(copy)
    experts([str(copy), *words])
    assert all_files(copy) == before, "the finished run has changed"
    (other,) = (path.parent for path in tmp_path.rglob("results.json") if path.parent != copy)
    assert grown_from(other) == str(copy)
    return other


def same_as_from_the_start(other, data, runs, *settings):
    """The same experts, routing and scores as a run that was started with these settings."""
    whole = toy.run(toy.compose(data, runs, *settings)).directory
    assert other.parent.name == whole.parent.name, "the settings have another key"
    ours, theirs = (toy.read_results(one) for one in (other, whole))
    for name in ("matrix", "metrics", "last_row", "assigned_expert", "given"):
        assert ours.get(name) == theirs.get(name), name
    for stage in ("01-sky", "02-sea", "03-ice"):
        if (whole / "tasks" / stage / "expert" / "adapter_model.safetensors").exists():
            assert weights(other, stage) == weights(whole, stage)
    return ours


@pytest.mark.parametrize("method", all_but(["see"], METHODS))
def test_without_an_expert_the_others_are_as_before_and_answer_its_queries(base, tmp_path, method):
    choice = f"method={method}"
    finished = toy.whole(base, choice).directory
    other = made_from(finished, tmp_path / "a", words=["remove", "sea"])
    results = same_as_from_the_start(other, toy.data_in(base), tmp_path / "b", choice, "order.experts={sea:none}")
    assert results["assigned_expert"] == {"sky": "sky", "sea": "base", "ice": "ice"}
    assert [weights(other, one) for one in ("01-sky", "03-ice")] == [
        weights(finished, one) for one in ("01-sky", "03-ice")
    ]
    if method != "stl":  # it is told the task
        check_routing(results["routing"])
    ensemble = load_ensemble(other)
    assert "sea" not in ensemble.experts()
    with pytest.raises(ConfigError, match="there is no expert 'sea'"):
        ensemble.reply([Request("seasea111?", expert="sea")])
    assert [one.origin for one in list_experts(other)] == [None, "removed", None]


def check_routing(routing):
    """No query reached the removed expert, and the base model is the right one for its task."""
    confusion = dict(zip(routing["tasks"], routing["confusion"], strict=True))
    assert all(row[routing["columns"].index("sea")] == 0 for row in confusion.values()), "it is still asked"
    right = confusion["sky"][0] + confusion["sea"][-1] + confusion["ice"][2]
    assert routing["accuracy"] == pytest.approx(right / sum(map(sum, confusion.values())))


def test_nothing_is_trained_where_an_expert_is_removed_and_all_answers_are_remembered(base, tmp_path):
    plain = toy.run(toy.compose(toy.data_in(base), tmp_path))
    less = toy.run(toy.compose(toy.data_in(base), tmp_path, "order.experts={ice:none}"))
    assert (plain.fits, less.fits) == (3, 0)
    assert toy.read_results(less.directory)["counts"]["decisions"] == 0
    back = toy.run(toy.compose(toy.data_in(base), tmp_path / "other", "order.experts={ice:none}"))
    assert back.fits == 2
    assert toy.read_results(back.directory)["matrix"] == toy.read_results(less.directory)["matrix"]


@pytest.mark.parametrize("method", all_but(["see"], METHODS))
def test_an_expert_is_trained_again_alone(base, tmp_path, method):
    choice = f"method={method}"
    finished = toy.whole(base, choice).directory
    words = ["retrain", "sea", "--epochs", "12", "--lr", "1e-2", "--seed", "1"]
    other = made_from(finished, tmp_path / "a", words=words)
    results = same_as_from_the_start(other, toy.data_in(base), tmp_path / "b", choice, RETRAINED)
    assert weights(other, "02-sea") != weights(finished, "02-sea")
    for stage in ("01-sky", "03-ice"):
        assert weights(other, stage) == weights(finished, stage)
    steps = toy.read_results(finished)["counts"]["steps"]
    assert results["counts"]["steps"] == [steps[0], steps[1] * 12 // 10, steps[2]]
    assert list_experts(other)[1].origin == "trained with lr=0.01, epochs=12, seed=1"
    assert [one.task for one in list_experts(other)] == list(toy.TASKS)


@pytest.mark.parametrize("setting", all_but(["seed: 1"], ["lr: 1e-2", "epochs: 12", "seed: 1"]))
def test_each_setting_of_one_task_trains_another_expert_and_no_other(base, tmp_path, setting):
    toy.run(toy.compose(toy.data_in(base), tmp_path))
    again = toy.run(toy.compose(toy.data_in(base), tmp_path, f"order.experts={{sea:{{{setting}}}}}"))
    assert again.fits == 1
    finished = toy.whole(base).directory
    changed = [weights(again.directory, one) != weights(finished, one) for one in ("01-sky", "02-sea", "03-ice")]
    assert changed == [False, True, False]


def test_epochs_of_one_task_are_those_of_its_validation_too(base, tmp_path):
    settings = ("train_size=2", "valid_size=2", "order.experts={sea:{epochs:12}}")
    results = toy.read_results(toy.run(toy.compose(toy.data_in(base), tmp_path, *settings)).directory)
    assert results["validation"]["epochs"] == [10, 12, 10]


@pytest.mark.nightly
def test_a_run_with_other_experts_that_is_broken_off_anywhere_ends_the_same(base, tmp_path):
    whole = toy.run(toy.compose(toy.data_in(base), tmp_path / "a", RETRAINED)).directory
    toy.run(toy.compose(toy.data_in(base), tmp_path / "b"))
    again, interruptions = toy.broken_off(toy.compose(toy.data_in(base), tmp_path / "b", RETRAINED))
    assert interruptions > 5
    assert toy.read_results(again.directory)["matrix"] == toy.read_results(whole)["matrix"]
    assert weights(again.directory, "02-sea") == weights(whole, "02-sea")


@pytest.mark.parametrize("experts_", ["{sea:none}", "{sea:FOLDER}"], ids=["removed", "imported"])
def test_other_commands_on_a_run_with_other_experts(base, tmp_path, capsys, experts_):
    if "FOLDER" in experts_:
        experts_ = experts_.replace("FOLDER", str(foreign(base, tmp_path)[0]))
    settings = (*LEAVES, f"order.experts={experts_}")
    directory = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *settings)).directory
    results = toy.read_results(directory)
    # Advice to train is of no use for an expert that refuses nothing, and for a task without one.
    of_no_use = "the expert of sea takes" if "/" in experts_ else "queries of sea"
    assert not [one for one in results["notices"] if of_no_use in one]
    assert ("sea has no expert, by order.experts." in results["notices"]) == ("none" in experts_)
    transfer([str(directory)])
    matrix = json.loads((directory / "transfer.json").read_text())
    assert list(matrix["transfer"]) == [one for one in ("base", *toy.TASKS) if one != "sea" or "none" not in experts_]
    capsys.readouterr()
    route([str(directory)])
    assert ("centroid: learns sea" in capsys.readouterr().err) == ("none" not in experts_)
    rows = {row["router"]: row for row in json.loads((directory / "route.json").read_text())["routers"]}
    reason = "needs verdicts, and the imported expert of sea gives none"
    assert [name for name in ("argmax", "propose", "joint") if rows[name]["cannot"] == reason] == (
        [] if "none" in experts_ else ["argmax", "propose", "joint"]
    )
    assert rows["walk"]["cannot"] is None
    report([str(directory)])
    perplexity([str(directory)])
    with pytest.raises(SystemExit):
        study([str(directory)])
    assert "trained no expert for sea, which was reused, left out or imported" in capsys.readouterr().err
    calibrate(directory, on=1, target_recall=1.0)


def test_no_training_is_advised_for_answers_to_a_task_without_an_expert():
    order = SimpleNamespace(learned=lambda: {task: task for task in toy.TASKS})
    run = SimpleNamespace(config=SimpleNamespace(order=order), names=list(toy.TASKS), trained=[{}, {}, {}])
    right = right_experts(run, {"sky": "sky", "sea": "base", "ice": "ice"})
    assert {("sea", "sky"), ("sea", "ice")} <= right
    assert ("sky", "ice") not in right


def changed_rows(base, tmp_path, task):
    """A copy of the data, and the copy with another training row of a task."""
    data = shutil.copytree(toy.data_in(base), tmp_path / "data")
    runs = tmp_path / "runs"
    before = toy.run(toy.compose(data, runs))
    path = data / f"{task}.train.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({"prompt": "new row?", "answer": "x"}), *rows[1:]]) + "\n")
    return data, runs, before.directory


@pytest.mark.parametrize("task", all_but(["sea"], toy.TASKS))
def test_changed_rows_train_their_expert_and_those_that_refuse_such_rows(base, tmp_path, capsys, task):
    data, runs, before = changed_rows(base, tmp_path, task)
    trained = len(toy.TASKS) - list(toy.TASKS).index(task)
    kept = all_files(before)
    capsys.readouterr()
    again = toy.run(toy.compose(data, runs))
    assert again.fits == trained
    assert all_files(before) == kept
    fresh = toy.run(toy.compose(data, tmp_path / "fresh"))
    ours, theirs = (toy.read_results(one.directory) for one in (again, fresh))
    assert ours["matrix"] == theirs["matrix"]
    for stage in ("01-sky", "02-sea", "03-ice"):
        assert weights(again.directory, stage) == weights(fresh.directory, stage)
    if trained < 3:
        assert f"{3 - trained} trained stages copied" in capsys.readouterr().err


def test_retrain_without_settings_takes_the_changed_rows(base, tmp_path, capsys):
    _, runs, before = changed_rows(base, tmp_path, "ice")
    with pytest.raises(SystemExit):
        experts([str(before), "retrain", "sea"])
    assert "nothing has changed: the expert of sea would be the same" in capsys.readouterr().err
    experts([str(before), "retrain", "ice"])
    other = next(path.parent for path in runs.rglob("results.json") if path.parent != before)
    assert weights(other, "02-sea") == weights(before, "02-sea")
    assert weights(other, "03-ice") != weights(before, "03-ice")


# ---------------------------------------------------------------------------------------------------- import


def foreign(base, tmp_path, rank=4, targets=("q_proj", "o_proj"), **settings):
    """A folder with an adapter that PEFT made on the toy's base model, and its PEFT model."""
    model = load_ensemble(toy.whole(base, "method=base").directory).method.pool.model
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=32, target_modules=list(targets), task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign", adapted.eval()


def generated(adapted, method, query):
    ids = torch.tensor([method.template.prompt_ids(query)])
    with torch.inference_mode():
        out = adapted.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=4,
            eos_token_id=sorted(method.eos_ids()),
            pad_token_id=0,
        )
    return method.template.text([one for one in out[0, ids.shape[1] :].tolist() if one not in method.eos_ids()])


QUERIES = ["iceice120?", "skysky105?", "nothing of the kind"]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_a_foreign_adapter_answers_as_under_peft_and_takes_what_no_expert_accepts(base, tmp_path, capsys, settings):
    folder, adapted = foreign(base, tmp_path, **settings)
    finished = toy.whole(base, "order.tasks=[sky,sea]", *LEAVES).directory
    copy = shutil.copytree(finished, tmp_path / "runs" / toy.place_of(finished))
    experts([str(copy), "import", "ice", str(folder)])
    (other,) = (path.parent for path in (tmp_path / "runs").rglob("results.json") if path.parent != copy)
    assert "which never refuses" in capsys.readouterr().err
    before, ensemble = load_ensemble(copy, max_new_tokens=4), load_ensemble(other, max_new_tokens=4)
    for query in QUERIES:
        (named,) = ensemble.reply([Request(query, expert="ice")])
        assert named.text == generated(adapted, ensemble.method, query)
        (then,), (now,) = before.reply([Request(query)]), ensemble.reply([Request(query)])
        assert now.expert == ("ice" if then.expert == "base" else then.expert)
        assert now.text == (named.text if then.expert == "base" else then.text)
        assert now.verdicts == then.verdicts
    assert {"ice"} < answerers(Ledger(other).read()) <= {"sky", "sea", "ice"}
    assert "base" in answerers(Ledger(copy).read())
    assert list_experts(other)[-1].origin == f"imported from {folder}, never refuses"
    assert toy.read_results(other)["counts"]["steps"][-1] == 0


def answerers(ledger):
    *_, last = ledger.content["stages"]
    return {record["expert"] for record in ledger.answers(last)}


def test_an_exported_expert_that_comes_back_is_the_same_expert(base, tmp_path):
    """It gives its verdicts, with a threshold that is set as the others' are."""
    settings = ("train_size=4", "method.calibrate_on=2", "method.target_recall=0.5", "model.dtype=fp32")
    whole = toy.whole(base, *settings).directory
    experts([str(whole), "export", "ice", str(tmp_path / "ice")])
    shorter = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", *settings, "order.tasks=[sky,sea]")).directory
    experts([str(shorter), "import", "ice", str(tmp_path / "ice")])
    (other,) = (path.parent for path in (tmp_path / "runs").rglob("results.json") if path.parent != shorter)
    ours, theirs = toy.read_results(other), toy.read_results(whole)
    for name in ("matrix", "metrics", "last_row"):
        assert ours[name] == theirs[name]
    assert ours["routing"]["confusion"] == theirs["routing"]["confusion"]
    assert ours["routing"]["thresholds"] == theirs["routing"]["thresholds"]
    assert not [one for one in ours["notices"] if "was imported" in one], "it is the same base model, under its name"
    one, same = (load_file(run / "tasks/03-ice/expert/adapter_model.safetensors") for run in (other, whole))
    assert all(torch.equal(one[name], same[name]) for name in same)


def test_the_key_has_the_adapter_and_not_its_place(base, tmp_path):
    folder, _ = foreign(base, tmp_path)
    again = shutil.copytree(folder, tmp_path / "elsewhere")
    first = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", f"order.experts={{sea:{folder}}}"))
    same = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", f"order.experts={{sea:{again}}}"))
    assert (first.fits, same.fits) == (2, 0)
    assert same.directory == first.directory
    tensors = load_file(again / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, again / "adapter_model.safetensors")
    changed = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", f"order.experts={{sea:{again}}}"))
    assert changed.directory != first.directory
    assert changed.fits == 0, "the other experts are taken over"


def test_a_folder_that_has_moved_is_needed_no_more_or_asked_for(base, tmp_path, monkeypatch, capsys):
    folder, _ = foreign(base, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    setting = "order.experts={sea:'~/foreign'}"
    first = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", setting)).directory
    ledger = Ledger(first).read()
    assert ledger.content["about"]["contents"]["digests"]["order.experts.sea"]
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: 3 * tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    assert toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", setting)).directory != first, "another adapter"
    shutil.rmtree(folder)
    with pytest.raises(SystemExit):
        experts([str(first), "remove", "sky"])
    assert "import it again from there" in capsys.readouterr().err


def test_a_command_is_kept_as_a_shell_and_hydra_take_it(base, tmp_path):
    folder = shutil.move(foreign(base, tmp_path)[0], tmp_path / "my adapters (v=2)")
    finished = toy.whole(base).directory
    copy = shutil.copytree(finished, tmp_path / "runs" / toy.place_of(finished))
    with patch.object(other_experts, "launch") as launched:
        experts([str(copy), "import", "sea", str(folder)])
    cfg, command = launched.call_args.args
    *_, override = shlex.split(command)
    assert toy.compose(toy.data_in(base), tmp_path, override).order.experts == cfg.order.experts


def test_the_folder_of_a_run_s_first_expert_gives_verdicts(base, tmp_path):
    """It has refused nothing, and yet begins its answers with the indicator."""
    expert = toy.whole(base).directory / "tasks" / "01-sky" / "expert"
    again = toy.run(toy.compose(toy.data_in(base), tmp_path, f"order.experts={{sky:'{expert}'}}")).directory
    assert json.loads((again / "tasks/01-sky/expert/origin.json").read_text())["verdicts"] is True
    assert toy.read_results(again)["matrix"] == toy.read_results(toy.whole(base).directory)["matrix"]
    old = shutil.copytree(expert, tmp_path / "old")
    about = json.loads((old / "expert.json").read_text())
    del about["verdicts"]
    (old / "expert.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="export it first: see-lightning experts RUN_DIR export TASK DIR"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, f"order.experts={{sky:'{old}'}}"))


def test_cached_verdicts_do_not_answer_for_the_same_weights_without_verdicts(base, tmp_path):
    """The adapter of sky, without what says that it gives verdicts: it refused queries that it answers now."""
    paraphrases = "+benchmark.paraphrases={sky:'say sky',ice:'now: ice'}"
    settings = (SKY_ICE, "ratio=1", "optim.epochs=30", "variants=[paraphrased,input_only]", paraphrases)
    data = toy.defined_in(base)
    before = toy.run(toy.compose(data, tmp_path / "runs", *settings)).directory
    plain = shutil.copytree(before / "tasks" / "01-sky" / "expert", tmp_path / "plain")
    (plain / "expert.json").unlink()
    imported = f"order.experts={{sky:'{plain}'}}"
    beside = toy.run(toy.compose(data, tmp_path / "runs", *settings, imported)).directory
    apart = toy.run(toy.compose(data, tmp_path / "apart", *settings, imported)).directory
    for kind in ("answers", "paraphrased", "input_only"):
        ours, theirs = (Ledger(one).read().answers("02-ice", kind) for one in (beside, apart))
        assert [record["text"] for record in ours] == [record["text"] for record in theirs]
        assert any(record["expert"] == "sky" for record in ours)


def test_a_second_change_copies_from_the_first(base, tmp_path):
    """Whatever the keys of the runs, by whose names ties are broken."""
    data, few = toy.data_in(base), "optim.epochs=2"
    toy.run(toy.compose(data, tmp_path, few))
    for epochs in (3, 4, 5):
        own = f"sea:{{epochs:{epochs}}}"
        first = toy.run(toy.compose(data, tmp_path, few, f"order.experts={{{own}}}"))
        second = toy.run(toy.compose(data, tmp_path, few, f"order.experts={{{own},ice:none}}"))
        assert (first.fits, second.fits) == (1, 0)
        assert grown_from(second.directory) == str(first.directory)


def test_training_that_diverges_names_the_setting_of_its_task(base, tmp_path):
    with pytest.raises(Diverged, match=r"order\.experts\.sea\.lr is 1e\+09; lower it, such as to --lr 1e\+08"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "order.experts={sea:{lr:1e9}}"))


def test_an_adapter_without_verdicts_beside_routers_that_need_them(base, tmp_path):
    folder, _ = foreign(base, tmp_path)
    experts_ = f"order.experts={{sea:{folder}}}"
    toy.run(toy.compose(toy.data_in(base), tmp_path / "a", experts_))
    for place in ("a", "b"):  # beside a run that has imported it, and alone
        with pytest.raises(ConfigError, match="gives no verdicts, and this run's router needs them"):
            toy.run(toy.compose(toy.data_in(base), tmp_path / place, experts_, "router=argmax"))
    routed = toy.run(toy.compose(toy.data_in(base), tmp_path / "b", experts_, "router=centroid"))
    assert "sea" in answerers(Ledger(routed.directory).read())
    with pytest.raises(ConfigError, match="nothing is left for method.second_chance=on"):
        toy.run(toy.compose(toy.data_in(base), tmp_path / "c", experts_, "method.second_chance=on"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 16}, "has rank 16, and this run's experts have 8"),
        ({"targets": ("k_proj",)}, "adapts model.layers.0.self_attn.k_proj"),
        ({"use_dora": True}, "with use_dora=True the update is not that of plain LoRA"),
        ({"bias": "all"}, "with bias='all' the update is not that of plain LoRA"),
        ({"init_lora_weights": "pissa"}, "with init_lora_weights='pissa' the update is not that of plain LoRA"),
        ({"init_lora_weights": "olora"}, "with init_lora_weights='olora' the update is not that of plain LoRA"),
    ],
)
def test_adapters_that_an_expert_cannot_be_are_refused_before_a_directory_is_made(base, tmp_path, settings, told):
    folder, _ = foreign(base, tmp_path, **settings)
    with pytest.raises(ConfigError, match=told):
        toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", f"order.experts={{ice:{folder}}}"))
    assert not list(tmp_path.glob("runs/*/*/*"))


@pytest.mark.parametrize(
    ("settings", "words", "told"),
    [
        ((), ["remove", "se"], "has no task 'se'. Did you mean 'sea'?"),
        ((), ["remove"], "remove TASK"),
        (
            (),
            ["retrain", "sea", "--epochs", "10"],
            "the expert of sea would be the same: it was trained with epochs=10",
        ),
        ((), ["retrain", "sea", "--lr", "0"], "order.experts.sea.lr=0 trains nothing"),
        ((), ["remove", "sea", "--epochs", "3"], "--epochs is for retrain"),
        ((), ["retrain", "sea", "--epochs", "0"], "order.experts.sea.epochs must be at least 1"),
        ((), ["import", "sea", "/nowhere"], "/nowhere has no adapter_config.json"),
        ((SKY,), ["remove", "sky"], "sky is the only expert"),
        (("method=moses",), ["remove", "sea"], "depend on each other"),
        (("method=seqft",), ["remove", "sea"], "depend on each other"),
        (("method.warm_start=loss",), ["remove", "sea"], "depend on each other"),
    ],
)
def test_what_cannot_be_changed_is_refused(base, tmp_path, capsys, settings, words, told):
    finished = toy.whole(base, *settings).directory
    copy = shutil.copytree(finished, tmp_path / toy.place_of(finished))
    with pytest.raises(SystemExit):
        experts([str(copy), *words])
    assert told in capsys.readouterr().err
    assert [path.parent for path in tmp_path.rglob("ledger.json")] == [copy]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{see:none}", "there is no task 'see' in order.tasks"),
        ("{sea:{rank:4}}", "has no setting 'rank'; a task's own ones are lr, epochs, seed"),
        ("{sea:{epochs:1.5}}", "order.experts.sea.epochs must be a whole number; got 1.5"),
        ("{sea:{}}", "must be none, a PEFT folder, or settings"),
        ("{sky:none,sea:none,ice:none}", "leaves no task an expert"),
        ("{sea:3}", "must be none, a PEFT folder, or settings"),
    ],
)
def test_values_of_another_form_are_refused(base, tmp_path, value, told):
    with pytest.raises(ConfigError, match=told):
        toy.run(toy.compose(toy.data_in(base), tmp_path, f"order.experts={value}"))


def test_streams_take_no_other_experts(base, tmp_path):
    with pytest.raises(ConfigError, match="order.experts is for tasks one after another"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, "order.experts={sea:none}", "order.stream=recurring"))
