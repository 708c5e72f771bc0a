"""Warnings of the verbs that read many records."""

from __future__ import annotations

from collections.abc import Sequence

from harness import log
from harness.text import counted, printable

MAX_LINES_LEFT_OUT = 5


def log_left_out(problems: Sequence[str], without_speed: Sequence[tuple[str, str]]) -> None:
    """Warn of the runs that are left out: the first by a line each, the others by their number.

    Args:
        problems: lines about records that cannot be read.
        without_speed: path and reason of each run without a step time.
    """
    lines = [*problems, *(f"{path}: {reason}" for path, reason in without_speed)]
    for line in lines[:MAX_LINES_LEFT_OUT]:
        log.warning(f"left out: {printable(line)}")
    if len(lines) > MAX_LINES_LEFT_OUT:
        log.warning(f"left out: {counted(len(lines) - MAX_LINES_LEFT_OUT, 'run')} more")
