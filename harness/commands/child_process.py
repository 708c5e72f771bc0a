"""Runs of the harness in child processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from harness.errors import Interrupted
from harness.signals import stop_signals

# Exit code of a process that the kernel killed, as a host does that has run out of memory.
KILLED = 137


def harness_command(overrides: list[str], launcher: Sequence[str] = ()) -> list[str]:
    """Return the command line of a run in a fresh interpreter.

    Args:
        launcher: of several processes: `torchrun` and its options, or a command that starts another one, such as srun.
    """
    if launcher and launcher[0] != "torchrun":
        return [*launcher, sys.executable, "-m", "harness", *overrides]
    return [sys.executable, "-m", "harness", *launcher, *overrides]


def run_job(overrides: list[str], folder: Path) -> int:
    """Run one training in a child process, with its output on standard error, and return its exit code."""
    return run_process(harness_command([*overrides, f"out={hydra_quote(folder)}"]), sys.stderr)


def hydra_quote(path: Path | str) -> str:
    """Return a path as a value of Hydra's override grammar, in quotes only where it needs them."""
    # With a slash it is no number and no keyword.
    if "/" in str(path) and re.fullmatch(r"[\w./-]+", str(path), re.ASCII):
        return str(path)
    # In quotes a backslash stands for itself, except before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(path))
    return f"'{escaped}'"


def run_process(command: list[str], output: IO[str] | None = None) -> int:
    """Run a child process, forward the signals to stop to it, and return its exit code.

    Args:
        output: destination of the child's standard output and error, or None for this process's own.

    Raises:
        Interrupted: such a signal came; the child has ended.
    """
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: Any) -> None:
        received.append(number)
        # The child takes a signal that a terminal or a scheduler sent to it as well for the same request.
        if child is not None:
            child.send_signal(number)

    # Installed before the child starts: a signal during the start must not leave the child behind.
    before = {number: signal.signal(number, forward) for number in stop_signals()}
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
