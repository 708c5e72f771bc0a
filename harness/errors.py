"""Errors that the user can fix, and the exit code of each."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any


class ExitCode(IntEnum):
    """The process's exit codes; harness/docs/how-a-run-works.md has the same table."""

    OK = 0
    NOT_AS_EXPECTED = 1
    """Answer no to what a command was asked: `--expect`, a run that hangs, a plan that does not fit."""
    USAGE = 2
    BACKEND_UNAVAILABLE = 3
    NOT_COMPARABLE = 4
    RUN_FAILED = 5
    SIGHUP = 128 + signal.SIGHUP
    SIGINT = 128 + signal.SIGINT
    SIGUSR1 = 128 + signal.SIGUSR1
    SIGTERM = 128 + signal.SIGTERM


class UserError(Exception):
    """An error that the user can fix: shown as one line, never as a traceback.

    The message names the key or file, what was found, what was expected, and the remedy.
    """

    exit_code = ExitCode.USAGE
    fields: Mapping[str, Any] = MappingProxyType({})
    """Fields of the log line with log=json, beside the message."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class ConfigError(UserError):
    """A setting is misspelled, of the wrong type, out of range, or contradicts another one."""


def config_error(problems: Sequence[str]) -> ConfigError:
    """Return one error for everything that is wrong with the settings: one problem as it is, several numbered."""
    if len(problems) == 1:
        return ConfigError(problems[0])
    numbered = "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
    return ConfigError(f"{len(problems)} problems: {numbered}")


class DataError(UserError):
    """The input data cannot be read, or does not fit the model."""


class RecordError(UserError):
    """A record cannot be read, or is not one of this harness."""


class CheckpointError(UserError):
    """A checkpoint is damaged, or belongs to another run. Every process of the run finds the same."""

    exit_code = ExitCode.RUN_FAILED


class BackendUnavailable(UserError):
    """The named backend cannot run here. Nothing is ever substituted for it."""

    exit_code = ExitCode.BACKEND_UNAVAILABLE


class RunFailed(UserError):
    """A run started and failed; `status` is the one of its record."""

    exit_code = ExitCode.RUN_FAILED

    def __init__(self, message: str, status: str = "failed", *, shared: bool = False) -> None:
        super().__init__(message)
        self.status = status
        # Whether every process of the run fails in the same way at the same place.
        self.shared = shared

    def in_run(self, folder: Path) -> RunFailed:
        """Return the same failure with the folder of its run in message and fields."""
        named = RunFailed(f"{self}; the record is in {folder}", self.status, shared=self.shared)
        named.fields = {"run": str(folder), "status": self.status}
        return named


class EndedWithAll(UserError):
    """One process of several ends because of a failure that another one reports."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = ExitCode(exit_code)


class Interrupted(BaseException):
    """The user or the scheduler asked the process to end (SIGINT, SIGTERM, SIGHUP or SIGUSR1).

    Derived from BaseException, as KeyboardInterrupt is, so that no `except Exception` swallows it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
