"""Options of the verbs that take some: mistakes become one line, as everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from harness.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that neither prints usage nor ends the process."""

    def __init__(self, verb: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._verb = verb

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self._verb}: {message}; python -m harness {self._verb} --help")


def expand_path(written: str) -> Path:
    """Return a path in which ~ stands for a home.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(written).expanduser()
    except RuntimeError as error:
        raise UserError(f"{written}: no home is known for that user; write the path out") from error
