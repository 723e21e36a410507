"""Three hundred flipped bits over every file of a run: each is named, or all answers and reports are what they were."""

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from see_lightning import load_ensemble
from see_lightning.cli import compare, figures, perplexity, publish, route, study, transfer
from see_lightning.cli.run import main as run_main
from see_lightning.errors import Refusal
from tests.nightly import all_but
from tests.runs import toy

FLIPS = 300
ROUTERS = ("--router", "walk", "--router", "none", "--no-answers")
QUERIES = ["skysky104?", "seasea108?", "iceice112?"]
DOCUMENT = "<!-- scores: jsonl -->\n<!-- end -->\n"


def answers(run: Path, data: Path, out: Path) -> object:
    return load_ensemble(run, max_new_tokens=4).answer(QUERIES)


def report(run: Path, data: Path, out: Path) -> None:
    run_main([*toy.SETTINGS, f"benchmark.reader.folder={data}", f"paths.runs={run.parents[3]}"])


def published(run: Path, data: Path, out: Path) -> object:
    (out / "RESULTS.md").write_text(DOCUMENT)
    publish.main([str(out / "results"), str(out / "RESULTS.md"), "--add", str(run)])
    return (out / "RESULTS.md").read_text(), sorted(map(str, (out / "results").rglob("*.json")))


def written(main: Callable[..., None], run: Path, data: Path, out: Path) -> object:
    main([str(run), "--out", str(out)])
    return {path.name: path.read_text() for path in out.iterdir()}


#: What a reader of the run sees, all of it from its folder: answers, or what a command prints and writes.
SEEN: dict[str, Callable[[Path, Path, Path], object]] = {
    "answers": answers,
    "report": report,
    "compare": partial(written, compare.main),
    "figures": partial(written, figures.main),
    "publish": published,
    "study": lambda run, data, out: study.main([str(run), "--orders", "newest"]),
    "perplexity": lambda run, data, out: perplexity.main([str(run)]),
    "transfer": lambda run, data, out: transfer.main([str(run)]),
    "route": lambda run, data, out: route.main([str(run), *ROUTERS]),
}
#: Who reads a file, where that is not everybody.
READERS = {
    "study.json": ("report", "study"),
    "perplexity.json": ("perplexity", "figures", "publish"),
    "transfer.json": ("transfer", "figures", "publish"),
    "route.json": ("route", "publish", "study"),
    "route.csv": ("report",),
    "route.svg": ("report",),
    "rows.json": ("report",),
    "report.html": ("report",),
    "matrix.csv": ("report",),
    "answers.jsonl": ("study", "report"),
    "remembered.jsonl": ("study", "report"),
    "examples.jsonl": ("answers", "report"),
    "adapter_model.safetensors": ("answers", "report"),
    "adapter_config.json": ("answers",),
    "expert.json": ("answers",),
}


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """A finished run of which all was measured, in a place from which it is copied to always the same one."""
    directory = toy.whole(base).directory
    run = tmp_path_factory.mktemp("flips") / "kept" / toy.place_of(directory)
    shutil.copytree(directory, run)
    for command in (study, perplexity, transfer):
        command.main([str(run)])
    route.main([str(run), *ROUTERS])
    return run


@pytest.fixture(scope="module")
def expected(base, whole) -> dict[str, object]:
    return {}


def look(name: str, whole: Path, base: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes) -> object:
    """What is seen of the run when a file has some content, or how it is refused."""
    place = whole.parents[4]
    run, out = place / "runs" / toy.place_of(whole), place / "out"
    for folder in (place / "runs", out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, run)
    out.mkdir()
    if file:
        (run / file).write_bytes(content)
    capsys.readouterr()
    try:
        seen = SEEN[name](run, toy.data_in(base), out)
    except Refusal as error:
        return f"refused: {error}"
    except SystemExit as end:
        return f"refused with {end.code}: {capsys.readouterr().err}"
    told = capsys.readouterr()
    return seen, told.out


@pytest.mark.parametrize("part", all_but([0], range(10)))
def test_a_flipped_bit_is_named_or_changes_nothing(whole, base, expected, capsys, part):
    files = sorted(
        str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file() and ".lock" not in path.name
    )
    wrong = []
    for number in range(part * FLIPS // 10, (part + 1) * FLIPS // 10):
        draw = random.Random(number)
        file = files[number % len(files)]
        content = bytearray((whole / file).read_bytes())
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        content[place] ^= 1 << bit
        name = draw.choice(READERS.get(Path(file).name, tuple(SEEN)))
        flipped = f"bit {bit} of byte {place} of {file}, {name}"
        if name not in expected:
            expected[name] = look(name, whole, base, capsys, "", b"")
        try:
            seen = look(name, whole, base, capsys, file, bytes(content))
        except Exception as error:
            wrong.append(f"{flipped}: {type(error).__name__}: {str(error)[:150]}")
            continue
        if isinstance(seen, str):
            told = [line for line in seen.splitlines() if not line.startswith("note: ")]
            if len(told) != 1 or file not in told[0]:
                wrong.append(f"{flipped}: not named: {seen[:250]!r}")
        elif seen != expected[name]:
            wrong.append(f"{flipped}: in silence something else")
    assert not wrong, "\n".join(wrong)
