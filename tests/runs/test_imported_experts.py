"""``see-lightning experts RUN_DIR import``: PEFT adapters as experts, with and without verdicts."""

import json
import shlex
import shutil
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from see_lightning import load_ensemble
from see_lightning.cli.experts import main as experts
from see_lightning.engine import other_experts
from see_lightning.engine.asking import Request
from see_lightning.engine.experts import list_experts
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import ConfigError
from tests.runs import toy
from tests.runs.foreign import foreign, generated

SKY_ICE = "order.tasks=[sky,ice]"
#: Thresholds that leave queries to what comes last.
LEAVES = ("train_size=2", "method.calibrate_on=2", "method.target_recall=0.5", "optim.epochs=25", "model.dtype=fp32")


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
