"""A task list that only got longer: what a shorter run has finished is taken over, and nothing else."""

from pathlib import Path
from unittest.mock import patch

import pytest
from omegaconf import OmegaConf

from see_lightning import load_ensemble
from see_lightning.config.former_names import with_former_names
from see_lightning.config.trust import read_settings, sealed_settings
from see_lightning.engine import grow, launch, session, start
from see_lightning.engine.ledger import Ledger
from tests.nightly import all_but
from tests.runs import toy

SKY, SKY_SEA, SKY_ICE = "order.tasks=[sky]", "order.tasks=[sky,sea]", "order.tasks=[sky,ice]"


def all_files(directory):
    """Every file but those of the lock."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


def grown_from(directory):
    return Ledger(directory).read().content["about"].get("grown_from")


@pytest.mark.parametrize("method", all_but(["see", "seqft"], ["see", "seqft", "replay", "stl"]))
def test_a_grown_run_trains_the_new_task_alone_and_ends_like_a_whole_one(base, tmp_path, method):
    choice = f"method={method}"
    whole = toy.whole(base, choice)
    shorter = toy.run(toy.compose(toy.data_in(base), tmp_path, choice, SKY_SEA))
    before = all_files(shorter.directory)
    grown = toy.run(toy.compose(toy.data_in(base), tmp_path, choice))
    assert (shorter.fits, grown.fits) == (2, 1)
    assert grown.directory != shorter.directory
    assert grown_from(grown.directory) == str(shorter.directory)
    assert toy.kept(grown.directory) == toy.kept(whole.directory)
    assert all_files(shorter.directory) == before


def test_only_a_run_on_the_first_tasks_is_taken_over(base, tmp_path):
    """[sky, ice] cannot grow out of [sky, sea], though both begin with sky; it can out of [sky]."""
    data = toy.data_in(base)
    toy.run(toy.compose(data, tmp_path / "a", SKY_SEA))
    apart = toy.run(toy.compose(data, tmp_path / "a", SKY_ICE))
    assert (apart.fits, grown_from(apart.directory)) == (2, None)
    toy.run(toy.compose(data, tmp_path / "b", SKY))
    grown = toy.run(toy.compose(data, tmp_path / "b", SKY_ICE))
    assert grown.fits == 1
    assert toy.kept(grown.directory) == toy.kept(apart.directory)


@pytest.mark.parametrize("other", ["optim.lr=2e-3", "ratio=0.25", "seed=2", "benchmark.default.max_new_tokens=3"])
def test_a_run_with_other_settings_is_not_taken_over(base, tmp_path, other):
    toy.run(toy.compose(toy.data_in(base), tmp_path, SKY, other))
    with patch.object(start, "adopt", side_effect=AssertionError("taken over")):
        toy.run(toy.compose(toy.data_in(base), tmp_path, SKY_ICE))


def test_the_longest_of_several_shorter_runs_is_taken_over(base, tmp_path):
    data = toy.data_in(base)
    toy.run(toy.compose(data, tmp_path, SKY))
    longer = toy.run(toy.compose(data, tmp_path, SKY_SEA))
    assert longer.fits == 1
    grown = toy.run(toy.compose(data, tmp_path))
    assert (grown.fits, grown_from(grown.directory)) == (1, str(longer.directory))


def test_an_unfinished_shorter_run_gives_what_it_has_finished(base, tmp_path):
    data = toy.data_in(base)
    note_answers = Ledger.note_answers

    def note_first_stage(ledger, stage, task, blocks, facts):
        if stage == "02-sea":
            raise InterruptedError
        note_answers(ledger, stage, task, blocks, facts)

    with patch.object(Ledger, "note_answers", note_first_stage), pytest.raises(InterruptedError):
        toy.run(toy.compose(data, tmp_path, SKY_SEA))
    grown = toy.run(toy.compose(data, tmp_path))
    # sky is finished; sea is trained but unanswered, which is no less than trained.
    assert grown.fits == 1
    assert toy.kept(grown.directory) == toy.kept(toy.whole(base).directory)


def test_data_named_by_the_data_root_grow_too(base, tmp_path):
    """``${paths.data}`` is resolved in the file of the shorter run, but not in the command of the longer one."""
    root = toy.data_in(base).parent
    where = (f"paths.data={root}", "benchmark.reader.folder=${paths.data}/data")
    shorter = toy.run(toy.compose(toy.data_in(base), tmp_path, SKY, *where))
    grown = toy.run(toy.compose(toy.data_in(base), tmp_path, SKY_ICE, *where))
    assert (grown.fits, grown_from(grown.directory)) == (1, str(shorter.directory))


def test_a_growth_that_was_killed_is_done_again(base, tmp_path):
    cfg = toy.compose(toy.data_in(base), tmp_path / "runs")
    shorter = toy.run(toy.compose(toy.data_in(base), tmp_path / "runs", SKY_SEA))
    write_bytes, commit = Path.write_bytes, Ledger.commit

    def killed_while_copying() -> None:
        def write_half(path, content):
            write_bytes(path, content[: len(content) // 2])
            if path.name == "adapter_model.safetensors":
                toy.die()

        with patch.object(Path, "write_bytes", write_half):
            launch.launch(cfg, "test")

    def killed_before_the_commit() -> None:
        def die_if_grown(ledger):
            if "grown_from" in ledger.content["about"]:
                toy.die()
            commit(ledger)

        with patch.object(Ledger, "commit", die_if_grown):
            launch.launch(cfg, "test")

    def killed_after_the_commit() -> None:
        with patch.object(session, "run_stages", side_effect=lambda _: toy.die()):
            launch.launch(cfg, "test")

    for attempt in (killed_while_copying, killed_before_the_commit, killed_after_the_commit):
        assert toy.forked(attempt, tmp_path / "log") == -9, (tmp_path / "log").read_text()[-2000:]
    grown = toy.run(cfg)
    assert (grown.fits, grown_from(grown.directory)) == (1, str(shorter.directory))
    assert toy.kept(grown.directory) == toy.kept(toy.whole(base).directory)


def test_a_damaged_expert_of_the_shorter_run_is_refused_by_name(base, tmp_path):
    shorter = toy.run(toy.compose(toy.data_in(base), tmp_path, SKY))
    weights = shorter.directory / "tasks" / "01-sky" / "expert" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(grow.LedgerError, match=f"^{weights} is damaged: sha256 .* was written, .* is there"):
        toy.run(toy.compose(toy.data_in(base), tmp_path, SKY_ICE))


def test_of_a_shorter_run_on_other_data_nothing_is_taken_over_and_that_is_said(base, tmp_path, capfd):
    data = toy.write_tasks(tmp_path / "data")
    shorter = toy.run(toy.compose(data, tmp_path / "runs", SKY))
    file = data / "sky.train.jsonl"
    file.write_text(file.read_text().replace('"x"', '"w"'))
    longer = toy.run(toy.compose(data, tmp_path / "runs", SKY_ICE))
    assert (longer.fits, grown_from(longer.directory)) == (2, None)
    told = f"nothing is taken over from {shorter.directory}: sky (train: 4 rows added, 4 removed) changed since"
    assert told in capfd.readouterr().err


def test_a_run_in_the_folder_of_a_methods_former_name_is_loaded_and_grows(base, tmp_path):
    made = toy.run(toy.compose(toy.data_in(base), tmp_path, "method=moram", SKY)).directory
    settings = OmegaConf.to_container(read_settings(made / "config.yaml"))
    (made / "config.yaml").write_text(sealed_settings(OmegaConf.create(with_former_names(settings))))
    former = tmp_path / "jsonl" / "mora"
    made.parents[1].rename(former)
    assert load_ensemble(former / made.parent.name / made.name).method.pool.names
    grown = toy.run(toy.compose(toy.data_in(base), tmp_path, "method=moram", SKY_SEA))
    assert (grown.fits, grown_from(grown.directory)) == (1, str(former / made.parent.name / made.name))
