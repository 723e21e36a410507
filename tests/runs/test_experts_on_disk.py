"""What an expert's files say is compared with the run that takes it up, and no expert holds a number that is none."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from see_lightning.adapters.files import read_tensors, write_tensors
from see_lightning.engine.ensemble import load_ensemble
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import Refusal
from see_lightning.files.reading import sha256
from tests.runs import toy

WEIGHTS = "expert/adapter_model.safetensors"


@pytest.fixture
def copy(base, tmp_path):
    return shutil.copytree(toy.whole(base, "method=see").directory, tmp_path / "run")


def final(directory, stage, file):
    """Let a run's ledger take a file for the one that was written, as if it had been written so."""
    with Ledger(directory) as ledger:
        ledger.stage(stage)["trained"]["files"][file] = sha256(directory / "tasks" / stage / file)
        ledger.commit()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "base"),
        ("task", "sky"),
        ("dtype", "bf16"),
        ("indicators", {"pos": "++", "neg": "!!"}),
        ("template_sha256", "0" * 64),
        ("base_model", "another/model"),
        ("base_revision", "v2"),
    ],
)
def test_an_expert_of_another_origin_is_refused_with_both_values(copy, name, value):
    file = copy / "tasks" / "02-sea" / "expert" / "expert.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, name: value}))
    final(copy, "02-sea", "expert/expert.json")
    with pytest.raises(Refusal) as refused:
        load_ensemble(copy)
    told = str(refused.value)
    assert told.startswith(f"{file}: its expert's {name} is {value!r}, and this run's is {said[name]!r}")
    assert "\n" not in told


def test_a_run_does_not_go_on_from_an_expert_of_another_origin(base, tmp_path):
    cfg = toy.compose(toy.data_in(base), tmp_path, "method=see", "order.tasks=[sky,sea]", "optim.epochs=1")
    directory = toy.run(cfg).directory
    file = directory / "tasks" / "01-sky" / "expert" / "expert.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "indicators": {"pos": "yes", "neg": "no"}}))
    final(directory, "01-sky", "expert/expert.json")
    (directory / "results.json").unlink()
    with Ledger(directory) as ledger:
        del ledger.content["stages"]["02-sea"]
        ledger.commit()
    with pytest.raises(Refusal, match=f"^{file}: its expert's indicators is "):
        toy.run(cfg)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_an_expert_with_a_number_that_is_none_is_neither_loaded_nor_saved(copy, tmp_path, number):
    file = copy / "tasks" / "02-sea" / WEIGHTS
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = number
    save_file(tensors, file, {"format": "pt"})
    final(copy, "02-sea", WEIGHTS)
    with pytest.raises(Refusal, match=rf"^{file}: {name} holds nan or inf, so it is no usable expert"):
        load_ensemble(copy)
    with pytest.raises(Refusal, match="holds nan or inf"):
        write_tensors(tensors, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_tensors_too_many_too_few_or_of_another_size_are_refused_with_their_names(copy):
    file = copy / "tasks" / "02-sea" / WEIGHTS
    tensors = load_file(file)
    name = min(tensors)
    for other in ({name: None}, {"more": torch.zeros(1)}, {name: torch.zeros(2, 2)}):
        changed = {key: tensor for key, tensor in {**tensors, **other}.items() if tensor is not None}
        save_file(changed, file, {"format": "pt"})
        final(copy, "02-sea", WEIGHTS)
        with pytest.raises(Refusal, match=f"^{file} does not hold an expert of this run: {min(other)} differs"):
            load_ensemble(copy)


def test_an_expert_whose_files_lack_a_part_is_refused_in_one_line(base, tmp_path):
    cfg = toy.compose(toy.data_in(base), tmp_path, "method=moses", "order.tasks=[sky]", "optim.epochs=1")
    directory = toy.run(cfg).directory
    file = directory / "tasks" / "01-sky" / "expert" / "subexpert.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "key"}, file)
    final(directory, "01-sky", "expert/subexpert.safetensors")
    with pytest.raises(
        Refusal, match=rf"^{file.parent} does not hold what this run's method saves \(KeyError: 'key'\)"
    ):
        load_ensemble(directory)


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\0" * 30)
    with pytest.raises(Refusal, match=f"^{tmp_path}/a.safetensors cannot be read as safetensors: "):
        read_tensors(tmp_path / "a.safetensors")
