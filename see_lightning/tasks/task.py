"""Tasks with their splits and score, and the benchmark they come from."""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from see_lightning.data.checks import RowChecks
from see_lightning.data.example import Example
from see_lightning.data.reader import Reader
from see_lightning.errors import ConfigError, DataError, listed, nearest
from see_lightning.tasks.paraphrases import paraphrase_texts
from see_lightning.tasks.selection import content, drawn, set_aside, with_validation

MERGED = "all"

#: The origin of the longest answer: the benchmark's protocol, the training answers, or a number in the settings.
Rule = Literal["protocol", "training", "number"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task: its training, validation, test and held-out examples, and how answers are generated and scored.

    Args:
        name: of the task, and of its expert.
        train: training examples, shuffled.
        test: test examples, shuffled.
        score: name of the score, see ``evaluation.scores``.
        max_new_tokens: most tokens of a generated answer.
        notices: one line for each fact about the data that the user should know.
        held_out: further training examples that no method is trained on. Their prompts are all different, and none of them
            is in ``train`` or ``test``.
        valid: validation examples, on which the loss is computed after each epoch; none of their prompts is in ``train``,
            ``test`` or ``held_out``.
        rule: origin of ``max_new_tokens``.
        reserved: tokens that a test prompt must leave for its answer; None is ``max_new_tokens``.
        context: most tokens of a prompt with its answer; None is no limit.
    """

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    score: str
    max_new_tokens: int
    notices: tuple[str, ...] = ()
    held_out: tuple[Example, ...] = ()
    valid: tuple[Example, ...] = ()
    rule: Rule = "training"
    reserved: int | None = None
    context: int | None = field(default=None, compare=False)

    @property
    def every_row(self) -> tuple[Example, ...]:
        """The examples of all kinds."""
        return (*self.train, *self.valid, *self.held_out, *self.test)

    def limit(self, prompt_tokens: int) -> int:
        """Most tokens to generate after a prompt: ``max_new_tokens``, or fewer if the context ends before.

        >>> Task("qa", (), (), "rouge_l", 512, context=600).limit(200)
        400
        """
        return self.max_new_tokens if self.context is None else min(self.max_new_tokens, self.context - prompt_tokens)

    def digest(self) -> str:
        """Number of training rows, and sha256 over every id, prompt and reference, by which a run detects changed data."""
        return f"{len(self.train)}:{self.rows_sha256()}"

    def asked(self) -> str:
        """sha256 over everything that determines the answers and their scores: rows, score, longest answer."""
        return hashlib.sha256(f"{self.rows_sha256()} {self.score} {self.max_new_tokens}".encode()).hexdigest()

    def rows_sha256(self) -> str:
        """sha256 over ids, prompts and references of the training rows, then the test rows, then the validation rows."""
        text = "\x1e".join(e.identity() for e in (*self.train, *self.test, *self.valid))
        return hashlib.sha256(text.encode()).hexdigest()


def is_same_data(noted: str | None, now: str | None) -> bool:
    """Whether two digests of a task are of the same rows. Digests of earlier versions lack the number of training rows.

    Args:
        noted: the recorded digest; None if there is none.
        now: the present digest; None if there is none.


    >>> is_same_data("2:ab", "2:ab"), is_same_data("ab", "2:ab"), is_same_data("3:ab", "2:ab")
    (True, True, False)
    """
    if noted is None or now is None:
        return noted == now
    (size, rows), (size_now, rows_now) = (digest.rpartition(":")[::2] for digest in (noted, now))
    return rows == rows_now and (size == size_now or "" in (size, size_now))


def changed_data(noted: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the recorded tasks whose data have changed or are missing.

    Args:
        noted: recorded digests by task.
        now: present digests by task.
    """
    return [task for task, digest in noted.items() if not is_same_data(digest, now.get(task))]


def told_apart(foreign: Sequence[Task], tasks: Sequence[Task]) -> list[Task]:
    """The foreign tasks, each with a notice if a task of the run trains on some of its queries.

    Args:
        foreign: tasks of which no expert should accept a query.
        tasks: the run's tasks.
    """
    trained = {content(row.whole_prompt): task.name for task in tasks for row in task.train}
    checked = []
    for task in foreign:
        known = [trained[content(row.whole_prompt)] for row in task.test if content(row.whole_prompt) in trained]
        own = ", ".join(dict.fromkeys(known))
        notice = f"{task.name}: {len(known)} of {len(task.test)} foreign queries are in the training rows of {own}"
        checked.append(replace(task, notices=(*task.notices, notice)) if known else task)
    return checked


def merge(tasks: Sequence[Task]) -> Task:
    """One task with the training and validation rows of all tasks, which methods learn together; it has no test rows."""
    train, valid = (
        tuple(example for rows in kind for example in rows)
        for kind in ((task.train for task in tasks), (task.valid for task in tasks))
    )
    return Task(name=MERGED, train=train, test=(), score="", max_new_tokens=0, valid=valid)


#: Settings of a task: how it is scored, and the origin of its rows.
TASK_SETTINGS = ("score", "max_new_tokens", "protocol_max_new_tokens", "package", "licence", "citation")


class Benchmark:
    """A family of tasks: its reader, and the score and longest answer of each task.

    Args:
        name: shown in the report.
        version: of the data and these settings; a change of either changes results.
        licence: of the data.
        citation: for publications that use the data.
        reader: reads the examples.
        tasks: settings by task: ``score``, optionally ``max_new_tokens`` and ``protocol_max_new_tokens``, and for the report
            ``licence`` and ``citation``.
        default: settings of the tasks that are not in ``tasks``.
        paraphrases: by task, a paraphrase of its prompts' definition or a list of them, see ``tasks.variants``.
        max_new_tokens: most tokens of an answer to a task that sets none: a number, ``protocol`` (as the benchmark's
            authors) or ``training`` (from the lengths of the task's training answers, see ``longest_answer``).
        protocol_max_new_tokens: most tokens that the benchmark's authors generate; None if there is no protocol.
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
        paraphrases: dict[str, str | Sequence[str] | None] | None = None,
        max_new_tokens: int | str = "training",
        protocol_max_new_tokens: int | None = None,
    ) -> None:
        self.name, self.version, self.licence, self.citation = name, version, licence, citation
        self.reader, self.tasks, self.default = reader, tasks, default or {}
        self.paraphrases = {task: paraphrase_texts(task, given) for task, given in (paraphrases or {}).items()}
        self.max_new_tokens, self.protocol_max_new_tokens = max_new_tokens, protocol_max_new_tokens

    def check_names(self, tasks: Collection[str], setting: str = "benchmark") -> None:
        """Refuse settings of unknown tasks and unknown settings of tasks, which would have no effect.

        Args:
            tasks: further known names of tasks.
            setting: key of the benchmark in the configuration.

        Raises:
            ConfigError: a task or a setting is unknown.
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
            return  # without the data, the names of its tasks are unknown
        for place, named in (("tasks", self.tasks), ("paraphrases", self.paraphrases)):
            for name in named:
                if name not in found and name not in tasks:
                    raise ConfigError(
                        f"{setting}.{place} names {name!r}, but there is no such task.{nearest(name, [*tasks, *found])} There"
                        f" are: {listed(found)}."
                    )

    def settings(self, name: str) -> tuple[str, Rule, int | None]:
        """A task's score, the rule of its longest answer, and most tokens by that rule; None under the rule ``training``.

        Raises:
            ConfigError: the score is not configured, or the longest answer is invalid.
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
        protocol = settings.get("protocol_max_new_tokens", self.protocol_max_new_tokens)
        return (str(settings["score"]), *self._longest(place, self.max_new_tokens if own is None else own, protocol))

    def _longest(self, place: str, given: object, protocol: object) -> tuple[Rule, int | None]:
        """The rule of a setting of ``max_new_tokens``, and the number of tokens; None under the rule ``training``.

        Args:
            place: key of the setting, for messages.
            given: its value.
            protocol: most tokens that the task's authors generate; None if there is no protocol.
        """
        if given == "training":
            return "training", None
        tokens = protocol if given == "protocol" else given
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
        valid_size: int = 0,
    ) -> Task:
        """Read a task and draw as many of its rows as the sizes say, seeded by the task's name alone.

        The draw does not depend on the run's seed, so runs with other seeds are tested on the same queries. The longest
        answer does not depend on ``train_size``.

        Args:
            name: of the task.
            checks: refuses or counts bad rows.
            tokens: counts an answer's tokens.
            train_size: training rows to keep; None keeps all.
            test_size: test rows to keep; None keeps all.
            held_out: training rows to hold out, with different prompts that are neither in training nor in the test. They
                are taken from the rows after the kept ones; if these are too few, from the end of the kept ones, with all
                rows that repeat their prompts.
            valid_size: validation rows, see ``selection.with_validation``.

        Raises:
            DataError: the data are missing or malformed.
            ConfigError: the task's settings are invalid, or it has fewer rows or fewer different prompts than needed.
        """
        score, rule, max_new_tokens = self.settings(name)
        split = self.reader.read(name, checks)
        tested = {content(row.whole_prompt) for row in split.test}
        rows, valid, found = with_validation(self.reader, split, checks, name, train_size, valid_size)
        train, aside = set_aside(rows, tested, train_size, held_out, name)
        wanted = len(rows) if train_size is None else train_size
        fewer = (
            f"{name}: {len(train)} of {wanted} training rows are trained on, for {held_out} others had to be held out"
        )
        usual = longest_answer([tokens(example.target) for example in split.train or split.test])
        return Task(
            name=name,
            train=train,
            held_out=aside,
            valid=valid,
            test=drawn(split.test, test_size, f"{name}-test", "test_size"),
            score=score,
            max_new_tokens=max_new_tokens or usual,
            notices=(*found, *([fewer] if len(train) < wanted else [])),
            rule=rule,
            reserved=min(max_new_tokens or usual, usual),
        )


def longest_answer(lengths: Sequence[int]) -> int:
    """Tokens to allow for an answer: 1.25 times the 99th percentile of the training answers' lengths, plus 4.

    Under the rule ``training`` an answer is cut there and counted as truncated. Under every rule a test prompt must leave
    this much room.

    Args:
        lengths: tokens of the training answers.

    >>> longest_answer([2] * 99 + [50])
    7
    """
    percentile = sorted(lengths)[max(0, math.ceil(0.99 * len(lengths)) - 1)]
    return math.ceil(1.25 * percentile) + 4
