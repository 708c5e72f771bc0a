"""Runs of the harness in fresh processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from harness.errors import Interrupted


def run_job(words: list[str], folder: Path) -> int:
    """Run one training in a fresh process, its words on standard error, and return its exit code."""
    return run_process([sys.executable, "-m", "harness", *words, f"out={hydra_quote(folder)}"], sys.stderr)


def hydra_quote(path: Path | str) -> str:
    """Return a path as a value in Hydra's override grammar."""
    # In quotes a backslash stands for itself, except before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(path))
    return f"'{escaped}'"


def run_process(command: list[str], output: IO[str] | None = None) -> int:
    """Run a child, pass SIGTERM and SIGINT on to it, and return its exit code; its words go to `output`, if given.

    Raises:
        Interrupted: such a signal came; the child has ended.
    """
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: Any) -> None:
        received.append(number)
        # A terminal's Ctrl-C reaches the whole process group by itself.
        if child is not None and (number == signal.SIGTERM or not sys.stdin.isatty()):
            child.send_signal(number)

    # Before the child is there: a signal that comes while it is being started must not leave it behind.
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(command, stdout=output, stderr=output)
        if received:
            child.terminate()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
    return code if code >= 0 else 128 - code
