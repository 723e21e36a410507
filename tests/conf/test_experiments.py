"""What an experiment sets for its own method, router or foreign queries gives way where another option was typed."""

import pytest

from see_lightning.cli.run import main
from see_lightning.engine import launch


@pytest.fixture
def launched(monkeypatch, capsys):
    """A function that gives the configuration with which a command would start, and what the command printed."""

    def start(*words: str):
        found = []
        monkeypatch.setattr(launch, "launch", lambda cfg, command: found.append(cfg))
        main(words)
        return found[0], capsys.readouterr().err

    return start


@pytest.mark.parametrize("none", ["ood=none", "ood=None", "~ood"])
def test_none_wins_over_an_experiments_foreign_queries(launched, none):
    assert launched("experiment=superni_5_ood")[0].ood["size"] == 30
    cfg, told = launched("experiment=superni_5_ood", none)
    assert cfg.ood is None
    assert told == ""


def test_settings_for_the_experiments_own_method_are_left_out_with_a_note(launched):
    whole, told = launched("experiment=superni_5_ood", "method=see", "method.margin=0.5")
    assert (whole.method.general_negatives, whole.method.margin, told) == (48, 0.5, "")
    cfg, told = launched("experiment=superni_5_ood", "method=seqft")
    assert set(cfg.method) == set(launched("method=seqft")[0].method)
    assert cfg.optim.loss_reduction == "examples", "what all methods have stays"
    assert told == (
        "note: calibrate_on, general_negatives, ood_examples, target_recall of experiment=superni_5_ood left out:"
        " method=seqft has no such settings\n"
    )


@pytest.mark.parametrize("none", ["router=null", "~router"])
def test_no_router_of_its_own_is_that_of_the_method(launched, none):
    cfg, told = launched("experiment=superni_5_robust", none)
    assert cfg.router is None
    assert "note: target_recall of experiment=superni_5_robust left out: router=null has no settings\n" in told


def test_the_robust_experiment_evaluates_every_wording_in_one_command(launched):
    cfg, _ = launched("experiment=superni_5_robust", "seed=1")
    assert list(cfg.variants) == ["input_only", "paraphrased", "paraphrased_2", "paraphrased_3"]
    assert list(cfg.ood.variants) == ["input_only"]
    assert len(cfg.ood.tasks) == 15
    assert all(len(cfg.benchmark.paraphrases[task]) == 3 for task in cfg.order.tasks)


def test_the_protocol_of_trace_has_its_papers_rows_unless_others_are_typed(launched):
    assert launched("experiment=trace", "method=seqft")[0].benchmark.name == "trace_5000"
    assert launched("experiment=trace", "method=seqft", "benchmark=trace_500")[0].benchmark.name == "trace_500"
