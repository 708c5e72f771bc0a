"""Runs in fresh processes into folders of their own, of which an interrupted command repeats only what is missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.commands.child_process import harness_command, hydra_quote, run_process
from harness.errors import ExitCode
from harness.records.record import RECORD_FILE, read_record

LOG_FILE = "output.log"
INTERRUPTED_FOLDER = "interrupted"


@dataclass(frozen=True)
class EndedRun:
    """How a run ended."""

    exit_code: int
    message: str
    """The last line of its output, of one that failed."""


def status_of(target: Path) -> str | None:
    """Return the status in a run's record, or None without one."""
    return read_record(target)["status"] if (target / RECORD_FILE).is_file() else None


def run_into(target: Path, overrides: Sequence[str], launcher: Sequence[str] = ()) -> EndedRun:
    """Run into a folder, in a fresh process. What an interrupted run has left there is kept elsewhere.

    The output of a run that fails is kept beside its folder.

    Args:
        launcher: as of `harness_command`.

    Raises:
        Interrupted: a signal came; the run has ended.
    """
    output_file = target.parent / f"{target.name}.{LOG_FILE}"
    for path in (target, output_file):
        keep_interrupted(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    command = harness_command([*overrides, f"out={hydra_quote(target)}"], launcher)
    with open(output_file, "x", encoding="utf-8") as output:
        code = run_process(command, output)
    if code == ExitCode.OK:
        output_file.unlink()
        return EndedRun(code, "")
    lines = output_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return EndedRun(code, lines[-1] if lines else "no message")


def keep_interrupted(path: Path) -> None:
    """Move the files of an interrupted or failed run to a folder that no comparison reads."""
    if os.path.lexists(path):
        kept = path.parent.parent / INTERRUPTED_FOLDER
        kept.mkdir(exist_ok=True)
        number = 1
        while os.path.lexists(moved := kept / f"{path.parent.name}-{path.name}-{number}"):
            number += 1
        os.rename(path, moved)
