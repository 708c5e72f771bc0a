"""The argument parser of the verbs: --help is built from its options, and a mistake is one line."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from harness.commands import VERBS
from harness.errors import UserError
from harness.regular_files import open_regular
from harness.text import capitalized, did_you_mean, shortened

HELP_WIDTH = 100
JUNIT_HEAD_BYTES = 1000


class Parser(argparse.ArgumentParser):
    """Parses one verb's command line.

    Args:
        verb: one of VERBS, whose summary is the first line of the help.
        description: the paragraph after the summary.
        exit_codes: the last paragraph of the help.
        usage: the forms of the command, if argparse's own usage is too long.
        notes: text before the exit codes; its line breaks are kept.
    """

    def __init__(
        self, verb: str, description: str, exit_codes: str, *, usage: str | None = None, notes: str = ""
    ) -> None:
        super().__init__(
            prog=f"python -m harness {verb}",
            usage=usage,
            description=_wrapped(f"{capitalized(VERBS[verb])}\n\n{description}"),
            epilog=_wrapped(f"{notes}\n\nexit codes: {exit_codes}".strip()),
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=HELP_WIDTH),
            allow_abbrev=False,
        )
        self._verb = verb
        self._checks: list[Callable[[argparse.Namespace], None]] = []

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Return the options.

        Raises:
            UserError: an option is unknown, or a value is none that it takes.
            SystemExit: --help was given, and printed.
        """
        options, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            hint = did_you_mean(unknown[0].split("=", 1)[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        for check in self._checks:
            check(options)
        return options

    def add_check(self, check: Callable[[argparse.Namespace], None]) -> None:
        """Let a function check the options once they are parsed; it may raise UserError."""
        self._checks.append(check)

    def actions(self) -> list[argparse.Action]:
        """Return the options and positional arguments."""
        return list(self._actions)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self._verb}: {shortened(message, 300)}; python -m harness {self._verb} --help")


def add_expectation(parser: Parser, choices: Sequence[str], meaning: str) -> None:
    """Add --expect, and --junit for its result."""
    parser.add_argument("--expect", choices=choices, help=meaning)
    parser.add_argument(
        "--junit", type=expand_path, metavar="FILE", help="also write the result of --expect as JUnit XML"
    )
    parser.add_check(_check_junit)


def _check_junit(options: argparse.Namespace) -> None:
    """Check --junit, and remove the result of an earlier command, lest it stand for this one's if this one fails.

    Raises:
        UserError: there is no --expect, or the file cannot be removed, or is none of JUnit XML.
    """
    file = options.junit
    if file is not None and options.expect is None:
        raise UserError("--junit: found no --expect, whose result it is; add that, or leave --junit out")
    if file is None or not os.path.lexists(file):
        return
    try:
        with open_regular(file) as opened:
            if b"<testsuite" not in opened.read(JUNIT_HEAD_BYTES):
                raise UserError(f"--junit: {file} holds something else than JUnit XML; choose another file")
        file.unlink()
    except OSError as error:
        raise UserError(f"--junit: {file} cannot be replaced: {error.strerror}; choose another file") from error


def expand_path(path: str) -> Path:
    """Return a path with ~ expanded to a home folder.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: found no home folder of that user; write out the path") from error


def _wrapped(text: str) -> str:
    lines = (
        textwrap.fill(line, HELP_WIDTH, break_on_hyphens=False, subsequent_indent=_indent(line))
        for line in text.split("\n")
    )
    return "\n".join(lines)


def _indent(line: str) -> str:
    return " " * (len(line) - len(line.lstrip()) + 2) if line.startswith(" ") else ""
