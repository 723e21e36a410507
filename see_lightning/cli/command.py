"""The frame of a verb: its arguments, the command for the record, refusals in one line, and exit codes."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from see_lightning.errors import ConfigError, nearest
from see_lightning.frame import frame


class Parser(argparse.ArgumentParser):
    """Parses the words of one verb. A wrong word is refused in one line that names the nearest option.

    Args:
        verb: of the table.
        description: what the verb does, for ``--help``.
        epilog: files that it reads and writes, for ``--help``.
    """

    def __init__(self, verb: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=f"see-lightning {verb}", description=description, epilog=epilog)
        self.verb = verb

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse words, among which older spellings of options are accepted.

        Args:
            words: behind the verb, as typed.
        """
        return self.parse_intermixed_args([self._with_current_name(word) for word in words])

    def _with_current_name(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        from see_lightning.cli.old_names import current_name  # late: it imports Hydra

        return f"{current_name(self.verb, name)}{equals}{value}"

    def error(self, message: str) -> NoReturn:
        """Refuse the words; argparse calls this.

        Raises:
            ConfigError: always.
        """
        first, *_ = message.removeprefix("unrecognized arguments: ").split() or [""]  # an empty word is one too
        unknown = first.partition("=")[0]
        meant = nearest(unknown, self._option_string_actions) if unknown.startswith("--") else ""
        raise ConfigError(f"{self.prog}: {message}.{meant} {self.prog} --help lists what it takes.")

    def add_run_dir(self) -> None:
        """Add the directory of one run as an argument."""
        run_dir = "runs/<order>/<method>/<key>/seed=<n>, or runs/<order>/<method>/latest"
        self.add_argument("run_dir", type=Path, help=run_dir)

    def add_paths(self) -> None:
        """Add folders with finished runs, and the folder for output, as arguments."""
        self.add_argument(
            "paths",
            type=Path,
            nargs="+",
            metavar="PATH",
            help="a folder that holds runs at any depth, or a results.json",
        )
        folder = "where to write; by default the folder in which all the paths lie, if it is not a run's"
        self.add_argument("--out", type=Path, metavar="DIR", help=folder)

    def add_out(self, instead: str) -> None:
        """Add another file for the output as an option.

        Args:
            instead: the files that are written in the run's directory by default.
        """
        text = (
            f"write here instead of {instead} in the run's directory, which then stays as it is, as for a read-only run; no"
            f" link"
        )
        self.add_argument("--out", type=Path, metavar="FILE", help=text)


def command(
    verb: str, description: str, add_arguments: Callable[[Parser], None], epilog: str | None = None
) -> Callable[[Callable[[argparse.Namespace], None]], Callable[..., None]]:
    """Decorator: turn a function of parsed arguments into the ``main`` of a verb, which takes words.

    The namespace has the parsed arguments, and in ``command`` the whole command for the record.

    Args:
        verb: of the table.
        description: what the verb does, for ``--help``.
        add_arguments: adds the arguments of the verb to its parser.
        epilog: files that the verb reads and writes, for ``--help``.
    """

    def decorated(act: Callable[[argparse.Namespace], None]) -> Callable[..., None]:
        @frame()
        def main(words: Sequence[str] | None = None) -> None:
            words = list(sys.argv[1:] if words is None else words)
            parser = Parser(verb, description, epilog)
            add_arguments(parser)
            given = parser.parse(words)
            given.command = shlex.join(["see-lightning", verb, *words])
            act(given)

        return main

    return decorated


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: a whole number of at least ``least``."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a number of at least {least} is wanted; got {text!r}")
        return int(text)

    return read
