"""One command makes a run of every method; a typed method or seed makes that one alone."""

import pytest

from see_lightning.cli.run import main
from see_lightning.config.search_path import CONF
from see_lightning.engine import launch

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
WHOLE = ["coso", "osft"]  # they train whole layers alone, with another learning rate


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """A function that gives the command and the configuration of every job that a command would start."""

    def start(*words: str):
        found = []
        monkeypatch.setattr(launch, "launch", lambda cfg, command: found.append((command, cfg)))
        main([*words, f"paths.runs={tmp_path}"])
        return found

    return start


def test_every_method_has_a_job_with_the_same_rows_and_a_command_of_its_own(launched, tmp_path):
    jobs = launched("experiment=rivals_superni_5")
    assert [command for command, _ in jobs] == [
        f"python run.py method={method} experiment=rivals_superni_5 paths.runs={tmp_path}"
        for method in METHODS
        if method not in WHOLE
    ]
    for _, cfg in jobs:
        assert (cfg.order.name, cfg.train_size, cfg.test_size, cfg.seed) == ("rivals_superni_5", 60, 20, 0)
        assert list(cfg.order.tasks) == ["qa", "qg", "sa", "sum", "trans"]
        assert cfg.method.get("ratio", 0.2) == 0.2


def test_methods_of_whole_layers_have_jobs_in_the_same_table_with_a_learning_rate_of_their_own(launched):
    for_lora = [cfg for _, cfg in launched("experiment=rivals_superni_5", "method=seqft")]
    jobs = [cfg for _, cfg in launched("experiment=rivals_superni_5_whole")]
    assert [cfg.method["_target_"].rpartition(".")[2] for cfg in jobs] == ["Coso", "Osft", "SeqFt", "Mtl"]
    for cfg in jobs:
        assert (cfg.order.name, cfg.train_size, cfg.test_size, cfg.seed) == ("rivals_superni_5", 60, 20, 0)
        assert cfg.adapter.full
        assert cfg.optim.lr < for_lora[0].optim.lr


@pytest.mark.parametrize("flag", [[], ["-m"]])
def test_a_typed_method_is_the_only_one(launched, flag):
    ((command, cfg),) = launched(*flag, "experiment=rivals_superni_5", "method=olora")
    assert cfg.method["_target_"] == "see_lightning.methods.olora.OLora"
    assert {"experiment=rivals_superni_5", "method=olora"} <= set(command.split())


def test_the_full_experiment_has_three_seeds_of_the_chosen_methods(launched):
    jobs = launched("-m", "experiment=rivals_superni_5_full", "method=see,replay")
    assert [(cfg.method["_target_"].rpartition(".")[2], cfg.seed) for _, cfg in jobs] == [
        (name, seed) for seed in (0, 1, 2) for name in ("See", "Replay")
    ]
    assert {(cfg.order.name, cfg.train_size, cfg.test_size, cfg.ratio) for _, cfg in jobs} == {
        ("rivals_superni_5_full", 120, 40, 0.1)
    }
    ((_, cfg),) = launched("experiment=rivals_superni_5_full", "method=seqft", "seed=1")
    assert cfg.seed == 1
