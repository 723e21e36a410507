"""The table of verbs: every spelling of every verb, its help without torch, and wrong words in one line."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from see_lightning.cli import calibrate, harness
from see_lightning.cli.command import Parser
from see_lightning.cli.verbs import VERBS, main

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "lightning", "transformers", "peft"}
#: Verbs of which `python -m see_lightning.VERB` is a spelling; an experiment's other spelling is `python run.py`.
MODULES = sorted(set(VERBS) - {"run"})


def start(*words: str, cwd: Path) -> tuple[int, str, list[str], set[str]]:
    """Python with some words: exit code, standard output, lines of standard error, modules imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    timed = re.compile(r"import time: +\S+ \| +\S+ \| +(\S+)")
    lines = done.stderr.splitlines()
    imported = {found[1] for line in lines if (found := timed.match(line))}
    return done.returncode, done.stdout, [line for line in lines if not line.startswith("import time:")], imported


def helped(capsys, started, *words) -> str:
    with pytest.raises(SystemExit) as end:
        started([*words, "--help"])
    assert end.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", MODULES)
def test_a_verb_and_its_module_give_the_same_help(verb, capsys):
    module = import_module("see_lightning." + ("data.__main__" if verb == "data" else verb.replace("-", "_")))
    text = helped(capsys, main, verb)
    assert text.strip()
    assert helped(capsys, module.main) == text


def test_run_gives_the_help_of_an_experiment(tmp_path):
    code, out, _, imported = start("-m", "see_lightning", "run", "--help", cwd=tmp_path)
    assert code == 0
    assert "== Groups (group=option) ==" in out
    assert not imported & HEAVY


HELP = """
import sys
from see_lightning.cli.verbs import VERBS, main
for verb in set(VERBS) - {"lm-eval"}:  # a program of others
    try:
        main([verb, "--help"])
    except SystemExit as end:
        assert not end.code, verb
main([])
found = {"torch", "lightning", "transformers", "peft"} & set(sys.modules)
assert not found, found
"""


def test_no_verb_s_help_imports_torch(tmp_path):
    code, _, errors, _ = start("-c", HELP, cwd=tmp_path)
    assert code == 0, errors


@pytest.mark.parametrize("module", ["see_lightning", "see_lightning.ask"])
def test_a_wrong_word_is_one_line_and_imports_no_torch(tmp_path, module):
    code, out, errors, imported = start(
        "-m", module, *(["comprae"] if module == "see_lightning" else ["RUN", "--tsk"]), cwd=tmp_path
    )
    assert (code, out) == (2, "")
    (line,) = errors
    assert ("Did you mean 'compare'?" if module == "see_lightning" else "--help lists what it takes.") in line
    assert not imported & HEAVY


def test_a_wrong_option_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", "--ot", "x", "runs"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("see-lightning compare: unrecognized arguments: --ot")
    assert "Did you mean '--out'?" in line


def test_no_verb_prints_the_table(capsys):
    main([])
    printed = capsys.readouterr().out
    assert re.findall(r"^  (\S+) ", printed, re.M) == list(VERBS)
    main(["--version"])
    assert capsys.readouterr().out == "0.1.0\n"


def test_the_page_of_commands_has_the_table():
    page = (ROOT / "docs" / "commands.md").read_text()
    assert dict(re.findall(r"^\| `(\w[\w-]*)` \| (.+) \|$", page, re.M)) == {
        name: verb.help for name, verb in VERBS.items()
    }


def test_every_module_that_is_a_program_is_in_the_table():
    package = ROOT / "see_lightning"
    programs = {
        path
        for path in (*package.glob("*.py"), *package.glob("*/__main__.py"))
        if 'if __name__ == "__main__"' in path.read_text()
    }
    verbs = {
        package / "data" / "__main__.py" if verb == "data" else package / f"{verb.replace('-', '_')}.py"
        for verb in MODULES
    }
    assert programs - {package / "__main__.py"} == verbs


def test_an_empty_word_too_many_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(["perplexity", "RUN", ""])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unrecognized arguments" in line


@pytest.mark.parametrize("words", [["--adapters", "base"], ["--voices", "base"], ["--voices=base"]])
def test_an_older_spelling_of_an_option_is_accepted(words):
    parser = Parser("harness", "")
    harness.add_arguments(parser)
    given = parser.parse(["RUN", *words, "--tasks", "toy"])
    assert (given.run_dir, given.adapters, given.tasks) == (Path("RUN"), ["base"], ["toy"])


def test_older_spellings_of_calibrate_are_accepted():
    parser = Parser("calibrate", "")
    calibrate.add_arguments(parser)
    given = parser.parse(["RUN", "--on", "train", "--keep=0.9", "--against", "5", "--leeway=0.5"])
    assert (given.on, given.target_recall, given.ood_examples, given.margin) == ("train", 0.9, 5, 0.5)
