"""The command as a function: where its flags stand, what several jobs tell, and where its output goes."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.text import Text

from see_lightning.cli import run as cli
from see_lightning.config.validation import validate
from see_lightning.errors import ConfigError, with_cause
from see_lightning.frame import Output, frame, print_exactly

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """What each job was given, instead of running it."""
    monkeypatch.chdir(tmp_path)
    jobs = []

    def job(cfg, **_):
        validate(cfg)
        jobs.append(list(HydraConfig.get().overrides.task))
        if cfg.seed == 13:
            raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cli, "job", job)
    yield jobs
    for handler in list(logging.getLogger().handlers):  # Hydra's, on a stream that ends with the test
        if isinstance(getattr(handler, "stream", None), Output):
            logging.getLogger().removeHandler(handler)


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 1
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "argv",
    [
        ["-m", "method=seqft,mtl", "seed=1"],
        ["method=seqft,mtl", "-m", "seed=1"],
        ["method=seqft,mtl", "seed=1", "-m"],
        ["method=seqft,mtl", "--multirun", "seed=1"],
    ],
)
def test_flags_stand_anywhere(ran, argv):
    cli.main(argv)
    assert ran == [["method=seqft", "seed=1"], ["method=mtl", "seed=1"]]


def test_each_refusal_of_several_jobs_is_told_when_it_happens_and_all_at_the_end(ran, capsys):
    *told, head, first, second = refused(capsys, "ratio=0.1,7,8", "method=see", "-m")
    assert ran == [["ratio=0.1", "method=see"]]
    assert [line[:16] for line in told] == ["error: ratio=7: ", "error: ratio=8: "]
    assert head == "2 of 3 jobs failed:"
    assert ["  " + line.removeprefix("error: ") for line in told] == [first, second]


def test_a_fault_in_one_of_several_jobs_ends_none_of_the_others_and_keeps_its_traceback(ran, capsys):
    lines = refused(capsys, "seed=13,1", "-m")
    assert len(ran) == 2
    assert lines[0].startswith("Traceback")
    assert lines[-2:] == ["1 of 2 jobs failed:", "  seed=13: RuntimeError: a fault of ours"]


def test_a_fault_in_a_single_job_keeps_its_traceback(ran):
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main(["seed=13"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["-m", "--cfg", "job"], "--cfg and --info show one configuration: leave out -m"),
        (["--resolve"], "--resolve flag can only be used"),
        (["--config-dir", "/nowhere"], "'/nowhere' not found"),
        (["--optim.lr=1"], "there is no option --optim.lr=1; a setting is written without hyphens: optim.lr=1"),
        (["--method", "see"], "a setting is written without hyphens: method=..."),
        (["+ratio=1"], "Either remove + prefix: 'ratio=1'"),
        (["trainer.max_epochs=3"], "there is no setting 'trainer.max_epochs'. It is optim.epochs here."),
        (["+trainer.max_epochs=3"], "trainer.max_epochs is set by the run itself. It is optim.epochs here."),
        (["learning_rate=1"], "It is optim.lr here."),
        (["+optim.learning_rate=1"], "It is optim.lr here."),
        (["per_device_train_batch_size=1"], "It is optim.global_batch_size here."),
        (["adapter.r=1"], "It is adapter.rank here."),
        (["target_modules=[a]"], "It is adapter.targets here."),
        (["trainer.limit_train_batches=2"], "is added: +trainer.limit_train_batches=..."),
        (["ratio=None"], "ratio cannot be null"),
        (["adapter.targets=1"], "adapter.targets must be a list of names, all-linear or null; got 1."),
        (["optim.lr=inf"], "optim.lr must be a finite number; got inf."),
        (["model.system_prompt=a ${b}"], r"for the text itself write \${...}."),
        (["model.system_prompt=a ${b"], r"for the text itself write \${...}."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_told_in_one_line(ran, capsys, argv, told):
    (line,) = refused(capsys, *argv)
    assert line.startswith("error: ")
    assert told in line
    assert ran == []


def test_what_an_interpolation_s_refusal_says_to_type_works(ran):
    cli.main([r'model.system_prompt="a \${b} c"'])
    cli.main([r"model.system_prompt=a \${b"])
    assert len(ran) == 2


def test_a_setting_of_lightning_is_added_in_debugging_too(ran):
    cli.main(["debug=fast", "+trainer.limit_train_batches=2"])
    assert len(ran) == 1


# ---------------------------------------------------------------------------------------------- the frame


def test_what_an_encoding_lacks_is_written_as_an_escape(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with frame():
        print("café ─")
    assert raw.getvalue() == b"caf\\xe9 \\u2500\n"


def test_a_refusal_that_the_encoding_lacks_is_told(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(SystemExit) as end, frame():
        raise ConfigError("no café")
    assert (end.value.code, raw.getvalue()) == (2, b"no caf\\xe9\n")


def test_a_process_without_standard_output_goes_on(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with frame():
        print("to nobody")


CLOSED = """
import sys
from see_lightning.frame import Output, frame
from see_lightning.errors import with_cause
with frame():
    for _ in range(100_000):
        print("a line that fills the pipe")
        print("and one there", file=sys.stderr)
    open(sys.argv[1], "w").write("finished")
"""


def test_a_closed_pipe_ends_no_run(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, str(tmp_path / "end")],
        stdout=write, stderr=write, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 0
    assert (tmp_path / "end").read_text() == "finished"


def test_an_output_without_room_ends_no_run_and_is_told_once(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", CLOSED.replace("100_000", "1_000").replace(', file=sys.stderr', ""), str(tmp_path / "end")],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == (
        "note: standard output cannot be written, so nothing more is printed: No space left on device\n"
    )
    assert (tmp_path / "end").read_text() == "finished"


def test_the_bottom_of_a_chain_of_errors_is_told():
    try:
        try:
            try:
                raise ImportError("the 'socksio' package is not installed\nmore")
            except ImportError as error:
                raise RuntimeError("cannot send the request") from error
        except RuntimeError as error:
            raise OSError("We couldn't connect to 'https://huggingface.co'") from error
    except OSError as error:
        told = with_cause(error)
    assert (
        told == "We couldn't connect to 'https://huggingface.co' (ImportError: the 'socksio' package is not installed)"
    )
    assert with_cause(ValueError("alone")) == "alone"
    assert with_cause(ValueError()) == "ValueError"


def test_a_launcher_s_empty_variables_do_not_reach_the_libraries(monkeypatch):
    monkeypatch.setenv("RANK", "")
    with frame():
        assert "RANK" not in os.environ


def test_a_log_handler_that_closes_streams_which_are_not_the_process_s_leaves_ours_open():
    before = sys.stderr
    with frame():
        assert before in (sys.stdout, sys.stderr)  # as absl's handler asks
        assert sys.stdout != sys.stderr
    assert not before.closed


HARMFUL = "a\x1b]0;title\x07\x1b[2Jb\rc\x9b31m\u202ed\x7f\x1b[8m"
SHOWN = r"a\x1b]0;title\x07\x1b[2Jb\x0dc\x9b31m\u202ed\x7f\x1b[8m"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_a_terminal_would_obey_is_shown_and_tables_and_bars_stay(monkeypatch, is_terminal):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with pytest.raises(SystemExit), frame():  # noqa: PT012
        print(HARMFUL)
        Console(highlight=False).print(Text(HARMFUL.replace("\r", ""), style="bold"))
        print("\r 3 of 4\x1b[K", end="\r\n")
        print("\x1b[1;31mhue\x1b[0m\tütf")
        print_exactly(HARMFUL)
        raise ConfigError(f"there is no {HARMFUL}")
    first, styled, bar, hue, exact, refusal = stream.getvalue().split("\n")[:6]
    assert first == SHOWN
    bold = ("\x1b[1m", "\x1b[0m") if is_terminal else ("", "")
    assert styled == SHOWN.replace("\\x0d", "").replace("\\x07", "").join(bold)  # rich drops a bell by itself
    assert bar == "\r 3 of 4\\x1b[K\r"
    assert hue == ("\x1b[1;31mhue\x1b[0m\tütf" if is_terminal else "\\x1b[1;31mhue\\x1b[0m\tütf")
    assert exact == (SHOWN if is_terminal else HARMFUL)
    assert refusal == f"there is no {SHOWN}".replace("\\x0d", " ")
