"""What a run records of its starts, and how the commit of the code is read."""

import subprocess
from unittest.mock import patch

import pytest

from see_lightning.engine import record, session, start
from see_lightning.engine.ledger import Ledger
from tests.runs import toy

TWO = ("order.tasks=[sky,sea]", "optim.epochs=1", "method=seqft")


@pytest.fixture
def data(tmp_path):
    return toy.write_tasks(tmp_path / "data")


def started(cfg, *, stop=False, **versions):
    """A start under other versions, broken off once a stage is trained if it shall be."""
    commit = Ledger.commit_trained

    def commit_and_stop(ledger, *given):
        commit(ledger, *given)
        if stop:
            raise InterruptedError

    installed = record.versions() | versions
    with (
        patch.object(start, "versions", lambda: installed),
        patch.object(start, "commit", lambda: "one"),
        patch.object(Ledger, "commit_trained", commit_and_stop),
    ):
        try:
            return toy.run(cfg).directory
        except InterruptedError:
            return None


def test_a_start_that_differs_is_told_in_one_line_and_recorded(data, tmp_path, capfd):
    cfg = toy.compose(data, tmp_path / "runs", *TWO)
    started(cfg, stop=True)
    capfd.readouterr()
    started(cfg, stop=True, torch="9.9", threads="3")
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("going on with")]
    now = record.versions()
    assert told == [
        f"going on with torch 9.9, threads 3; the last start had torch {now['torch']}, threads {now['threads']}"
    ]
    directory = started(cfg, torch="9.9", threads="3")
    assert "going on with" not in capfd.readouterr().err
    results = toy.read_results(directory)
    assert [start["versions"]["torch"] for start in results["starts"]] == [now["torch"], "9.9"]
    first = results["starts"][0]
    assert first == {"command": "test", "commit": "one", "versions": now, "dtype": first["dtype"], "ranks": 1}
    assert results["versions"] == now


def test_a_start_like_the_last_one_writes_nothing(data, tmp_path):
    cfg = toy.compose(data, tmp_path / "runs", *TWO)
    started(cfg, stop=True)
    (ledger,) = tmp_path.glob("runs/**/ledger.json")
    before = ledger.read_bytes()
    with patch.object(session, "run_stages", side_effect=InterruptedError):
        started(cfg)
    assert ledger.read_bytes() == before


def test_a_run_of_an_earlier_version_goes_on_with_what_it_noted_as_its_first_start(data, tmp_path):
    cfg = toy.compose(data, tmp_path / "runs", *TWO)
    started(cfg, stop=True)
    (path,) = tmp_path.glob("runs/**/ledger.json")
    with Ledger(path.parent) as ledger:
        del ledger.content["about"]["starts"]
        ledger.content["about"]["versions"]["torch"] = "1.0"
        ledger.commit()
    starts = toy.read_results(started(cfg))["starts"]
    assert [start["versions"]["torch"] for start in starts] == ["1.0", record.versions()["torch"]]


def test_a_run_that_grows_has_the_starts_of_the_one_that_it_grew_from(data, tmp_path):
    started(toy.compose(data, tmp_path / "runs", *TWO), torch="1.0")
    grown = started(toy.compose(data, tmp_path / "runs", *TWO[1:]), torch="2.0")
    assert [start["versions"]["torch"] for start in toy.read_results(grown)["starts"]] == ["1.0", "2.0"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    (root / "see_lightning").mkdir(parents=True)
    (root / "see_lightning" / "__init__.py").write_text("")
    (root / "notes.md").write_text("")
    monkeypatch.setattr(record, "_root", lambda: root)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b")
    for command in ("init -q", "add .", "commit -qm first"):
        subprocess.run(["git", "-C", str(root), *command.split()], check=True)
    return root


def test_changes_that_are_not_committed_are_told_apart(checkout):
    clean = record.commit()
    assert len(clean) == 40
    (checkout / "notes.md").write_text("no code")
    assert record.commit() == clean
    found = {clean}
    for path, text in (("__init__.py", "a = 1"), ("__init__.py", "a = 2"), ("new.py", "b = 1"), ("new.py", "b = 2")):
        (checkout / "see_lightning" / path).write_text(text)
        found.add(record.commit())
    (checkout / "see_lightning" / "__init__.py").unlink()
    found.add(record.commit())
    assert len(found) == 6
    assert all(one.startswith(f"{clean}-dirty.") and len(one) == 40 + 15 for one in found - {clean})


def test_the_commit_of_a_checkout_of_another_user_is_read_and_nothing_that_it_configures_runs(checkout, monkeypatch):
    clean = record.commit()
    script = checkout / "spy"
    script.write_text(f"#!/bin/sh\ntouch {checkout}/spied\n")
    script.chmod(0o755)
    for setting in ("core.fsmonitor", "diff.external", "core.pager"):
        subprocess.run(["git", "-C", str(checkout), "config", setting, str(script)], check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True).returncode
    assert record.commit() == clean
    (checkout / "see_lightning" / "__init__.py").write_text("a = 1")
    assert record.commit().startswith(f"{clean}-dirty.")
    assert not (checkout / "spied").exists()


def test_a_package_within_somebody_elses_checkout_has_no_commit(checkout, monkeypatch):
    inner = checkout / "env" / "site-packages"
    (inner / "see_lightning").mkdir(parents=True)
    (inner / "see_lightning" / "__init__.py").write_text("")
    monkeypatch.setattr(record, "_root", lambda: inner)
    assert record.commit() is None
    assert record.why_no_commit() is None


def test_it_is_told_why_a_commit_is_not_known(checkout, data, tmp_path, capfd):
    (checkout / ".git" / "HEAD").write_text("broken")
    assert record.commit() is None
    toy.run(toy.compose(data, tmp_path / "runs", *TWO))
    (line,) = [one for one in capfd.readouterr().err.splitlines() if "not recorded" in one]
    assert line.startswith("note: the commit of this code is not recorded: fatal: ")
