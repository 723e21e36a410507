"""The script for a GPU, at tiny shapes on this machine's device: every part gives its figures."""

import json

import pytest
import torch

from benchmarks import common, gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_ends_at_once(tmp_path):
    with pytest.raises(common.ConfigError, match="no GPU is here"):
        gpu.main(["--out", str(tmp_path / "gpu.json")])
    assert not list(tmp_path.iterdir())


def test_an_unknown_shape_is_refused():
    with pytest.raises(common.ConfigError, match="--shapes has '8b'; there are 0.5b, 7b"):
        gpu.main(["--shapes", "8b"])


@pytest.mark.filterwarnings("ignore")
def test_every_part_gives_its_figures_at_tiny_shapes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(common, "is_there", lambda package: package != "trl")
    gpu.main(["--tiny", "--shapes", "7b", "--experts", "1,3", "--out", str(tmp_path / "gpu.json")])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == json.loads((tmp_path / "gpu.json").read_text())
    assert not [name for name, part in told.items() if isinstance(part, dict) and "error" in part]
    assert told["answers"]["equal"] == told["answers"]["queries"] > 0
    assert told["resume"]["equal"] == told["resume"]["answers"] > 0
    assert told["resume"]["tasks_trained_before"] in (1, 2)
    assert told["train 7b"]["SFTTrainer"].startswith("the peers of this benchmark need trl")
    assert all(told["train 7b"][kind]["tokens_a_second"] > 0 for kind in ("lora", "activated_lora"))
    estimates = [row["estimate_bytes"] for row in told["memory 7b"].values()]
    assert len(estimates) == 4
    assert estimates[0] > estimates[1] > estimates[3] < estimates[2], "checkpointing and nf4 take less"
    assert {f"{who}, {kind}, {n}" for who in ("ours", "PEFT one by one") for kind in ("lora", "activated_lora")
            for n in (1, 3)} == set(told["latency 7b"])  # fmt: skip


def test_a_fault_of_one_part_is_told_and_time_that_is_over_leaves_the_others_out(tmp_path, monkeypatch):
    def broken(bench):
        raise ZeroDivisionError("x / 0")

    def waits(bench):
        bench.ends = 0
        return {"fine": 1}

    monkeypatch.setattr(gpu, "parts", lambda shapes: {"one": broken, "two": waits, "three": waits})
    bench = gpu.Bench(tmp_path, tiny=True, ends=gpu.time.monotonic() + 60, experts=[1])
    found = gpu.measure(bench, tmp_path / "gpu.json", ["7b"])
    assert found["one"] == {"error": "ZeroDivisionError: x / 0"}
    assert (found["two"], found["three"]) == ({"fine": 1}, {"error": "TimeoutError: time was over"})
