"""Tasks with their splits and score, and the benchmark they come from."""

import hashlib
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from see_lightning.data.checks import RowChecks
from see_lightning.data.example import Example, joined
from see_lightning.data.reader import Reader
from see_lightning.data.split import Split
from see_lightning.errors import ConfigError, DataError, listed, nearest
from see_lightning.seeds import seed

MERGED = "all"

Rule = Literal["protocol", "training", "number"]  # what tells how long an answer may become


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned and tested under one name.

    Args:
        name: also the name of its expert.
        train: training examples, shuffled.
        test: test examples, shuffled.
        score: name of the score, see ``evaluation.scores``.
        max_new_tokens: longest answer that is generated, in tokens.
        notices: what the reader found worth telling about the data.
        held_out: further training examples that nobody is trained on; their prompts are all different, and none of them
            stands in ``train`` or ``test``.
        rule: where ``max_new_tokens`` comes from.
        reserved: tokens that a test prompt must leave for its answer; None: ``max_new_tokens``.
        context: most tokens of a prompt with its answer; None: any number.
    """

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    score: str
    max_new_tokens: int
    notices: tuple[str, ...] = ()
    held_out: tuple[Example, ...] = ()
    rule: Rule = "training"
    reserved: int | None = None
    context: int | None = field(default=None, compare=False)

    def limit(self, prompt_tokens: int) -> int:
        """Most tokens that are generated behind a prompt: what the task allows, or what the context leaves.

        >>> Task("qa", (), (), "rouge_l", 512, context=600).limit(200)
        400
        """
        return self.max_new_tokens if self.context is None else min(self.max_new_tokens, self.context - prompt_tokens)

    def digest(self) -> str:
        """Number of training rows, and sha256 over every id, prompt and reference: tells whether a run's data changed."""
        return f"{len(self.train)}:{self.rows_sha256()}"

    def asked(self) -> str:
        """sha256 over all that answers to the task and their scores are made from."""
        return hashlib.sha256(f"{self.rows_sha256()} {self.score} {self.max_new_tokens}".encode()).hexdigest()

    def rows_sha256(self) -> str:
        """sha256 over the rows, the training rows first."""
        text = "\x1e".join(joined((e.id, e.prompt, *e.references)) for e in (*self.train, *self.test))
        return hashlib.sha256(text.encode()).hexdigest()


def is_same_data(noted: str | None, now: str | None) -> bool:
    """Whether two of ``Task.digest`` are of the same rows; older ones lack the number of training rows.

    >>> is_same_data("2:ab", "2:ab"), is_same_data("ab", "2:ab"), is_same_data("3:ab", "2:ab")
    (True, True, False)
    """
    if noted is None or now is None:
        return noted == now
    (number, rows), (our_number, our_rows) = (digest.rpartition(":")[::2] for digest in (noted, now))
    return rows == our_rows and (number == our_number or "" in (number, our_number))


def changed_data(noted: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the tasks of ``noted`` whose digests differ now, or that are not there."""
    return [task for task, digest in noted.items() if not is_same_data(digest, now.get(task))]


def told_apart(foreign: Sequence[Task], tasks: Sequence[Task]) -> list[Task]:
    """Foreign tasks, with a notice where queries of theirs are none, for an own task trains on them."""
    trained = {content(row.prompt): task.name for task in tasks for row in task.train}
    found = []
    for task in foreign:
        known = [trained[content(row.prompt)] for row in task.test if content(row.prompt) in trained]
        own = ", ".join(dict.fromkeys(known))
        told = f"{task.name}: {len(known)} of {len(task.test)} foreign queries stand in the training rows of {own}"
        found.append(replace(task, notices=(*task.notices, told)) if known else task)
    return found


def merge(tasks: Sequence[Task]) -> Task:
    """All tasks as one, for a method that learns them together; it has no test split of its own."""
    examples = tuple(example for task in tasks for example in task.train)
    return Task(name=MERGED, train=examples, test=(), score="", max_new_tokens=0)


#: What may be set of a task: how it is scored, and where its rows come from.
TASK_SETTINGS = ("score", "max_new_tokens", "package", "licence", "citation")


class Benchmark:
    """A family of tasks: where it is read from and how each task is scored.

    Args:
        name: for the report.
        version: of the data and of these settings; a change of either makes other numbers.
        licence: of the data.
        citation: what to cite when using it.
        reader: turns files into examples.
        tasks: settings by task: ``score``, if need be ``max_new_tokens``, and for the report ``licence`` and ``citation``.
        default: settings of the tasks that ``tasks`` leaves out.
        paraphrases: by task, what its prompts' definition says in other words, see ``tasks.variants``.
        max_new_tokens: longest answer to a task that sets none: a number of tokens, ``protocol`` (what the benchmark's
            authors generate) or ``training`` (as long as the task's training answers are, see ``longest_answer``).
        protocol_max_new_tokens: what the benchmark's authors generate; None where there is no protocol.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        licence: str,
        citation: str,
        reader: Reader,
        tasks: dict[str, dict[str, object]],
        default: dict[str, object] | None = None,
        paraphrases: dict[str, str] | None = None,
        max_new_tokens: int | str = "training",
        protocol_max_new_tokens: int | None = None,
    ) -> None:
        self.name, self.version, self.licence, self.citation = name, version, licence, citation
        self.reader, self.tasks, self.default = reader, tasks, default or {}
        self.paraphrases = paraphrases or {}
        self.max_new_tokens, self.protocol_max_new_tokens = max_new_tokens, protocol_max_new_tokens

    def check_names(self, tasks: Collection[str], setting: str = "benchmark") -> None:
        """Refuse settings of a task that there is not, and such as no task has: nothing would ever read them.

        Args:
            tasks: further names that are known.
            setting: where the benchmark is configured.

        Raises:
            ConfigError: there are some.
        """
        for place, settings in (
            ("default", self.default),
            *((f"tasks.{name}", one) for name, one in self.tasks.items()),
        ):
            for key in settings or {}:
                if key not in TASK_SETTINGS:
                    raise ConfigError(
                        f"{setting}.{place} has a setting {key!r} that no task takes.{nearest(key, TASK_SETTINGS)} There are:"
                        f" {', '.join(TASK_SETTINGS)}."
                    )
        try:
            found = self.reader.tasks()
        except DataError:
            return  # without the data nobody knows their names
        for place, named in (("tasks", self.tasks), ("paraphrases", self.paraphrases)):
            for name in named:
                if name not in found and name not in tasks:
                    raise ConfigError(
                        f"{setting}.{place} names {name!r}, but there is no such task.{nearest(name, [*tasks, *found])} There"
                        f" are: {listed(found)}."
                    )

    def settings(self, name: str) -> tuple[str, Rule, int | None]:
        """A task's score, what tells its longest answer, and that in tokens, None where its training answers tell.

        Raises:
            ConfigError: one of them is not configured, or is no such thing.
        """
        settings = {**self.default, **self.tasks.get(name, {})}
        if "score" not in settings:
            if name in self.tasks:
                raise ConfigError(f"benchmark {self.name} sets no score for task {name!r}.")
            raise ConfigError(
                f"benchmark {self.name} has no task {name!r}.{nearest(name, self.tasks)} There are:"
                f" {', '.join(self.tasks) or 'none'}. A task of yours needs a score: benchmark.default.score=rouge_l."
            )
        own = settings.get("max_new_tokens")
        place = "benchmark.max_new_tokens" if own is None else f"max_new_tokens of task {name!r}"
        return (str(settings["score"]), *self._longest(place, self.max_new_tokens if own is None else own))

    def _longest(self, place: str, given: object) -> tuple[Rule, int | None]:
        """The rule that a setting names, and the tokens of the longest answer by it."""
        if given == "training":
            return "training", None
        tokens = self.protocol_max_new_tokens if given == "protocol" else given
        if tokens is None:
            raise ConfigError(
                f"{place}=protocol, but benchmark {self.name} has no published protocol; use training, or a number of tokens,"
                f" such as 128."
            )
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise ConfigError(
                f"{place} must be a whole number, at least 1; got {tokens!r}. It may also be protocol or training."
                f"{nearest(str(tokens), ('protocol', 'training'))}"
            )
        return "protocol" if given == "protocol" else "number", tokens

    def task(
        self,
        name: str,
        *,
        checks: RowChecks,
        tokens: Callable[[str], int],
        train_size: int | None,
        test_size: int | None,
        held_out: int = 0,
    ) -> Task:
        """Read a task and keep ``train_size`` and ``test_size`` of its rows, drawn by its name alone.

        The draw does not hang on the run's seed, so runs with other seeds are tested on the same queries; neither does the
        longest answer hang on ``train_size``.

        Args:
            name: of the task.
            checks: of its rows.
            tokens: counts an answer's tokens.
            train_size: training rows to keep; None keeps all.
            test_size: test rows to keep; None keeps all.
            held_out: training rows to set aside, with different prompts that stand neither in training nor in the test:
                those that come next; where too few are left, the last of those kept, with all that repeat them.

        Raises:
            DataError: the data are missing or malformed, or hold fewer rows than asked for.
            ConfigError: as in ``settings``; or too few different prompts to set aside.
        """
        score, rule, max_new_tokens = self.settings(name)
        split = self.reader.read(name, checks)
        train, set_aside = _set_aside(split, train_size, held_out, name)
        asked = len(split.train) if train_size is None else train_size
        fewer = (
            f"{name}: {len(train)} of {asked} training rows are trained on, for {held_out} others had to be held out"
        )
        usual = longest_answer([tokens(example.target) for example in split.train or split.test])
        return Task(
            name=name,
            train=train,
            held_out=set_aside,
            test=_draw(split.test, test_size, f"{name}-test", "test_size"),
            score=score,
            max_new_tokens=max_new_tokens or usual,
            notices=(*split.notices, *([fewer] if len(train) < asked else [])),
            rule=rule,
            reserved=min(max_new_tokens or usual, usual),
        )


def longest_answer(lengths: Sequence[int]) -> int:
    """Room for an answer in tokens: the 99th percentile of the training answers' lengths, a quarter of it, and four more.

    Under the rule ``training`` a model that finds no end is cut there, and counted as truncated; under any rule test
    prompts leave that much room.

    >>> longest_answer([2] * 99 + [50])
    7
    """
    percentile = sorted(lengths)[max(0, math.ceil(0.99 * len(lengths)) - 1)]
    return math.ceil(1.25 * percentile) + 4


def content(prompt: str) -> str:
    r"""What makes a prompt another one: its words, not the blanks between them.

    >>> content(" Is it\n\nkind? ") == content("Is it kind?")
    True
    """
    return " ".join(prompt.split())


def _set_aside(
    split: Split, train_size: int | None, held_out: int, name: str
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The training rows to keep, and ``held_out`` others that share no prompt with them."""
    rows = _draw(split.train, None, f"{name}-train", "train_size")
    kept = len(_draw(split.train, train_size, f"{name}-train", "train_size"))
    if not held_out:
        return rows[:kept], ()
    contents = [content(row.prompt) for row in rows]
    taken = {content(row.prompt) for row in split.test}
    trained = set(contents[:kept])
    aside: dict[str, int] = {}  # what is set aside, and which row of it
    for place in [*range(kept, len(rows)), *reversed(range(kept))]:
        if len(aside) == held_out:
            break
        if contents[place] not in taken and (place < kept or contents[place] not in trained):
            aside.setdefault(contents[place], place)
    train = tuple(row for row, own in zip(rows[:kept], contents, strict=False) if own not in aside)
    if len(aside) < held_out or not train:
        different = set(contents)
        free = len(different - taken)
        repeats = f" with {free} different prompts that no test row has" if free < len(rows) else ""
        raise ConfigError(
            f"{held_out} training rows of {name} were to be held out, but it has {len(rows)}{repeats}, and at least one is"
            f" needed to train on; hold out {free - (free == len(different))} or fewer."
        )
    return train, tuple(rows[place] for place in sorted(aside.values()))


def _draw(rows: Sequence[Example], size: int | None, name: str, key: str) -> tuple[Example, ...]:
    """Shuffle, for some files are sorted by label, and keep the first ``size``."""
    if size is not None and size > len(rows):
        raise ConfigError(f"{key}={size}, but {name} has {len(rows)} rows; give {key}={len(rows)} or less.")
    shuffled = random.Random(seed(0, name, "subset")).sample(list(rows), len(rows))
    return tuple(shuffled[:size])
