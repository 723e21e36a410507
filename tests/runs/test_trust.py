"""A run's folder of someone else is data: nothing in it runs, and what is not as a run writes it is told by its name."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from see_lightning import load_ensemble
from see_lightning.cli import ask, calibrate, figures, perplexity, transfer
from see_lightning.cli.publish import publish
from see_lightning.cli.runs import list_runs
from see_lightning.config.trust import SEAL, Trust, allowed, load_config, read_settings, refuse_code, sealed_settings
from see_lightning.engine.ledger import Ledger
from see_lightning.errors import Refusal
from see_lightning.files.run_files import DEPTH, LedgerError, read_file, seal
from see_lightning.files.run_shapes import FILES
from see_lightning.reporting.runs import read_run
from tests.contracts.conftest import PLANTED_PY
from tests.runs import toy


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.getbasetemp() / "toy"


@pytest.fixture
def run(base, tmp_path):
    """A finished run, at a place where it may be spoiled."""
    directory = tmp_path / "runs" / "jsonl" / "see" / "0a1b2c3d" / "seed=3"
    shutil.copytree(toy.whole(base).directory, directory)
    return directory


def rewrite(run, change, *, sealed=False):
    """Change the settings in a folder, as one who knows of the seal, or leaves it out, can."""
    path = run / "config.yaml"
    settings = read_settings(path)
    change(settings)
    path.write_text(sealed_settings(settings) if sealed else OmegaConf.to_yaml(settings))
    return path


def told(capsys, command, *arguments):
    """The one line with which a command refuses."""
    with pytest.raises(SystemExit) as stopped:
        command.main(list(map(str, arguments)))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# ---------------------------------------------------------------------------------------------- classes


CANARY = "from pathlib import Path\nPath({!r}).write_text('it ran')\nclass Method: pass\nclass Reader: pass\n"


def at_method(settings):
    settings.method["_target_"] = "canary.Method"


def at_reader(settings):
    settings.benchmark.reader["_target_"] = "canary.Reader"


def at_foreign(settings):
    reader = {"_target_": "canary.Reader"}
    settings.ood = {"sources": {"x": {"_target_": "see_lightning.tasks.task.Benchmark", "reader": reader}}}


def below_an_argument(settings):
    settings.method.indicators = {"_target_": "canary.Method"}


def in_a_list(settings):
    settings.method.more = [[{"_target_": "canary.Method"}]]


def at_the_trainer(settings):
    settings.trainer.plugins = [{"_target_": "canary.Method"}]


def at_the_logger(settings):
    settings.logger = {"_target_": "canary.Method"}


def a_function(settings):
    settings.method["_target_"] = "os.system"


def at_another_place(settings):
    settings.method["_target_"] = "lightning.Trainer"


def positional(settings):
    settings.method["_args_"] = ["x"]


@pytest.mark.parametrize("change", [
    at_method, at_reader, at_foreign, below_an_argument, in_a_list, at_the_trainer, at_the_logger, a_function, at_another_place,
    positional,
])  # fmt: skip
def test_classes_that_are_not_the_package_s_own_are_refused_before_they_are_imported(
    run, tmp_path, monkeypatch, change
):
    ran = tmp_path / "ran"
    (run / "canary.py").write_text(CANARY.format(str(ran)))
    monkeypatch.syspath_prepend(run)
    path = rewrite(run, change, sealed=True)
    with pytest.raises(Refusal, match=f"^{re.escape(str(path))} names .* would run as code. .*--trust"):
        load_ensemble(run)
    assert not ran.exists()
    assert "canary" not in sys.modules


@pytest.mark.parametrize("command", [ask, perplexity, transfer, calibrate], ids=lambda one: one.__name__)
def test_every_command_that_loads_a_run_refuses_them(run, capsys, command):
    path = rewrite(run, at_method)
    assert told(capsys, command, run, *(["query"] if command is ask else [])).startswith(f"{path} names canary.Method")


def test_every_class_of_the_package_s_own_configurations_is_allowed_at_its_place():
    assert "see_lightning.methods.see.See" in allowed()["method"]
    assert allowed().keys() == {
        "method", "benchmark", "benchmark.reader", "trainer", "trainer._partial_", "trainer.plugins.*", "logger", "logger.logger",
        "logger.logger._partial_", "router", "router._recursive_", "rule",
    }  # fmt: skip


def test_a_reader_s_own_class_is_found_in_the_working_folder_once_it_is_named(run, tmp_path, monkeypatch, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "my_own_method.py").write_text(PLANTED_PY)

    def change(settings):
        settings.method = {"_target_": "my_own_method.Planted", "bang": "!"}

    path = rewrite(run, change)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.chdir(mine)
    with pytest.raises(Refusal, match=r"names my_own_method.Planted as its method.*--trust my_own_method.Planted"):
        load_config(path)
    monkeypatch.chdir(run)  # what lies there is not the reader's own
    with pytest.raises(Refusal, match=r"my_own_method.Planted cannot be imported: No module.*PYTHONPATH=DIR"):
        load_config(path, Trust(("my_own_method.Planted",)))
    monkeypatch.chdir(mine)
    assert load_config(path, Trust(("my_own_method.Planted",))).method.bang == "!"
    assert sys.path[-1] == str(mine), "behind all else"
    assert load_config(path), "what a program has imported itself needs no word more"


PLANTED = ("torch", "yaml", "typing", "omegaconf", "canary", "argparse")


def test_nothing_is_imported_from_the_folder_that_a_command_is_given_in(run, tmp_path):
    ran = tmp_path / "ran"
    for name in PLANTED:
        (run / f"{name}.py").write_text(CANARY.format(str(ran)))
    path = rewrite(run, at_method)
    words = [sys.executable, "-m", "see_lightning.ask", ".", "query"]
    package = os.path.dirname(os.path.dirname(sys.modules["see_lightning"].__file__))
    done = subprocess.run(words, cwd=run, env=os.environ | {"PYTHONPATH": package}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"{path.name} names canary.Method")
    assert not ran.exists()


# ---------------------------------------------------------------------------------------------- code and weights of a model


def test_code_that_comes_with_a_model_runs_by_the_reader_s_word_alone(run, tmp_path):
    ran, model = tmp_path / "ran", run / "model"
    model.mkdir()
    (model / "code.py").write_text(CANARY.format(str(ran)))
    auto = {"AutoConfig": "code.Method", "AutoTokenizer": ["code.Method", None], "AutoModelForCausalLM": "code.Method"}
    (model / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto}))
    (model / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))

    def change(settings, remote=True):
        settings.model = {**settings.model, "source": "hub", "name": str(model), "trust_remote_code": remote}

    path = rewrite(run, change)
    with pytest.raises(Refusal, match=f"^{re.escape(str(path))} has model.trust_remote_code.*--trust-remote-code"):
        load_ensemble(run)
    rewrite(run, lambda settings: change(settings, remote=False))
    with pytest.raises(Refusal):
        load_ensemble(run, trust_remote_code=True)
    assert not ran.exists()
    rewrite(run, change)
    with pytest.raises(Refusal):
        load_ensemble(run, trust_remote_code=True)
    assert ran.exists(), "the test's own bait works"


class Bomb:
    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return os.mkdir, (str(self.ran),)


def test_pickled_weights_run_nothing(base, tmp_path):
    from see_lightning.config.schema import ModelConfig
    from see_lightning.models.base import load_model
    from see_lightning.models.tiny import tiny_model, tiny_tokenizer

    ran, model = tmp_path / "ran", tmp_path / "model"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    (model / "model.safetensors").unlink()
    torch.save({"weights": Bomb(ran)}, model / "pytorch_model.bin")
    with pytest.raises(Refusal):
        load_model(ModelConfig(source="hub", name=str(model)), tmp_path, "fp32")
    assert not ran.exists()


# ---------------------------------------------------------------------------------------------- config.yaml


def test_an_edited_setting_is_told_and_not_taken(run, capsys):
    path = run / "config.yaml"
    text = path.read_text()
    assert "alpha: 256.0" in text
    path.write_text(text.replace("alpha: 256.0", "alpha: 2.0"))
    line = told(capsys, ask, run, "query")
    assert line.startswith(f"{path} is not as the run wrote it")
    assert "giving the run's command with another value" in line


def test_a_run_from_before_there_were_digests_is_read(run):
    answers = [reply.text for reply in load_ensemble(run).answer(["skysky1?"])]
    for name in ("ledger.json", "results.json", "rows.json"):
        (run / name).write_text(json.dumps(read_file(run / name)))
    path = run / "config.yaml"
    path.write_text(path.read_text().rpartition(SEAL)[0])
    assert [reply.text for reply in load_ensemble(run).answer(["skysky1?"])] == answers
    assert read_run(run / "results.json").metrics


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize("added", [
    BOMB, "a: !!python/object/apply:os.system [x]\n", "a: !mine x\n", "a: ${oc.env:HOME}\n", "a: '${seed}'\n", 'a: "\\x24{seed}"\n',
    "'${seed}': 1\n", "a: ???\n", "a: " + "[" * 100_000 + "\n", "a: " + "{x: " * 50 + "\n", "seed: 4\n", "no_such: 1\n", "? [a]\n: b\n",
    'a: "\\UFFFFFFFF"\n', "a: \x07\n", "--- {}\n", "a: " + "9" * 5000 + "\n", "ratio: [\n", "#" + "x" * 1_000_000,
])  # fmt: skip
def test_what_no_run_writes_into_its_settings_is_refused(run, monkeypatch, added):
    path = run / "config.yaml"
    path.write_text(path.read_text().rpartition(SEAL)[0] + added)
    with pytest.raises(LedgerError, match=f"^{re.escape(str(path))} ") as error:
        load_config(path)
    assert len(str(error.value)) < 700
    assert os.environ["HOME"] not in str(error.value).removeprefix(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"7", b"text", b"\xff\xfe\x00", b"method: 5\nbenchmark: 7\n"]
)
def test_settings_of_another_shape_are_refused(run, capsys, content):
    (run / "config.yaml").write_bytes(content)
    assert told(capsys, ask, run, "query").startswith(f"{run / 'config.yaml'} ")


@pytest.mark.parametrize(
    ("name", "value"), [("optim.lr", -1), ("order.tasks", "x"), ("method.ratio", "much"), ("method.nothing", 1)]
)
def test_settings_that_cannot_be_used_are_told_by_their_file(run, name, value):
    path = rewrite(run, lambda settings: OmegaConf.update(settings, name, value))
    with pytest.raises(LedgerError, match=f"^{re.escape(str(path))} "):
        load_config(path)


def test_the_cache_is_the_reader_s(run, monkeypatch):
    path = rewrite(run, lambda settings: OmegaConf.update(settings, "paths.cache", "/home/else"))
    monkeypatch.setenv("SEE_CACHE", "/mine")
    assert load_config(path).paths.cache == "/mine"


def test_a_run_whose_settings_were_deleted_gets_them_from_its_command(base, tmp_path):
    cfg = toy.compose(toy.data_in(base), tmp_path / "runs")
    directory = toy.run(cfg).directory
    text = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(text[:100])
    with pytest.raises(LedgerError, match="give the run's command again, which writes it"):
        toy.run(cfg)
    (directory / "config.yaml").unlink()
    toy.run(cfg)
    assert (directory / "config.yaml").read_text() == text


# ---------------------------------------------------------------------------------------------- the other files


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff", b"\x00", b'{"a": ' + b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}',
    b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "\\ud800"}', b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1),
])  # fmt: skip
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_object_of_a_run_is_refused_by_name(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=f"^{re.escape(str(path))} is damaged: ") as error:
        read_file(path)
    assert FILES[name][1] in str(error.value)


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(LedgerError, match=r"results.json cannot be read: Is a directory"):
        read_file(tmp_path / "results.json")
    with pytest.raises(LedgerError, match=r"ledger.json cannot be read: No such file"):
        read_file(tmp_path / "ledger.json")


def as_before(path, content):
    """Whether a file holds what it did, or is told to be damaged."""
    try:
        return read_file(path).items() >= content.items()
    except LedgerError as error:
        return str(error).startswith(f"{path} is damaged")


def test_a_flipped_bit_changes_nothing_or_is_told(run):
    files = [run / name for name in ("ledger.json", "results.json", "rows.json")]
    draw = random.Random(0)
    for path in files:
        whole, content = path.read_bytes(), read_file(path)
        for _ in range(60):
            spoilt = bytearray(whole)
            spoilt[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(spoilt)
            assert as_before(path, content)
        path.write_bytes(whole)


def test_a_number_that_was_edited_is_told_by_all_that_show_it(base, run, tmp_path, capsys):
    path = run / "results.json"
    content = json.loads(path.read_text())
    content["metrics"]["AR"] = 99.0
    path.write_text(json.dumps(content))
    document = tmp_path / "RESULTS.md"
    document.write_text("<!-- scores: jsonl -->\n<!-- end -->\n")
    for show in (
        lambda: toy.run(toy.compose(toy.data_in(base), tmp_path / "runs")),
        lambda: read_run(path),
        lambda: publish(tmp_path / "results", document, [run]),
    ):
        with pytest.raises(LedgerError, match=f"^{re.escape(str(path))} is damaged: its sha256"):
            show()
    assert told(capsys, figures, tmp_path / "runs").startswith(f"{path} is damaged")
    assert [one.state for one in list_runs([tmp_path / "runs"])] == ["damaged"]


@pytest.mark.parametrize("spoil", [
    lambda ledger: ledger["about"].pop("dtype"),
    lambda ledger: ledger["about"].update(data=[]),
    lambda ledger: ledger["about"]["numbers"].update(order=5),
    lambda ledger: ledger["stages"].update({"../../up": {"trained": None, "answers": {}}}),
    lambda ledger: ledger["stages"]["01-sky"]["trained"]["files"].update({"../../../up": "0"}),
    lambda ledger: ledger["stages"]["01-sky"].update(trained=[]),
    lambda ledger: ledger["stages"]["01-sky"]["answers"].update(sky=None),
    lambda ledger: ledger.pop("stages"),
])  # fmt: skip
def test_a_ledger_of_another_shape_is_refused_by_name(run, spoil):
    path = run / "ledger.json"
    ledger = read_file(path)
    spoil(ledger)
    path.write_text(json.dumps(seal(ledger)))
    with pytest.raises(LedgerError, match=f"^{re.escape(str(path))} is damaged"):
        load_ensemble(run)


def test_a_damaged_run_beside_another_is_left_out_with_a_note(base, tmp_path, capsys):
    runs = tmp_path / "runs"
    first = toy.run(toy.compose(toy.data_in(base), runs, "order.tasks=[sky]")).directory
    (first / "ledger.json").write_text((first / "ledger.json").read_text().replace('"steps": ', '"steps": 1', 1))
    capsys.readouterr()
    second = toy.run(toy.compose(toy.data_in(base), runs, "order.tasks=[sky,sea]"))
    assert second.fits == 2, "nothing is taken over from it"
    assert f"note: left out, as a run beside this one: {first / 'ledger.json'} is damaged" in capsys.readouterr().err
    assert Ledger(second.directory).read().content["stages"]


@pytest.mark.parametrize("place", ["by", "body"])
def test_a_router_within_a_router_may_be_any_of_the_package_and_no_other(place):
    ours = {
        "router": {
            "_target_": "see_lightning.routing.joint.Joint",
            place: {"_target_": "see_lightning.routing.knn.Knn"},
        }
    }
    refuse_code(Path("config.yaml"), ours)
    ours["router"][place]["_target_"] = "mine.Router"
    with pytest.raises(Refusal, match="names mine.Router as its router"):
        refuse_code(Path("config.yaml"), ours)
