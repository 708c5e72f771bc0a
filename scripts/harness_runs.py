"""Runs of the harness for the benchmarks in this folder, each in a fresh process, and the interval of their ratios."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scipy import stats

from harness.environment import CpuContention, memory_limit_bytes

T = TypeVar("T")
# Of the cores' time, by other processes, beside which a run is measured.
MAX_BUSY = 0.05


def run_harness(
    overrides: Sequence[str],
    launcher: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    checkout: Path | None = None,
) -> tuple[dict[str, Any], float]:
    """Return the record of one run and the seconds of its whole process; a failed run ends the script.

    Args:
        launcher: arguments of Python before `-m harness`.
        env: variables to add to the environment.
        checkout: a folder with the files of another commit, to run its harness.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, *launcher, "-m", "harness", *overrides, f"out={out}"]
        own = {} if checkout is None else {"PYTHONPATH": str(checkout)}
        began = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {}), **own}, cwd=checkout
        )
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            sys.exit(f"the harness failed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
        return json.loads((out / "record.json").read_text()), seconds


def touch_memory() -> None:
    """Write to most of the free memory once, in a process of its own.

    The first touch of a page of a fresh virtual machine is several times slower than later ones, in the host: runs that
    come first would seem slow.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count = int(0.7 * min(free, memory_limit_bytes() or free))
    done = subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({count}, numpy.uint8)"], check=False)
    if done.returncode:
        print(f"the memory was not warmed: exit code {done.returncode}", file=sys.stderr)


def wait_until_idle(limit_seconds: float = 300.0) -> None:
    """Wait until other processes leave the cores alone, at most this long, and say so if they do not."""
    began = time.monotonic()
    while True:
        contention = CpuContention()
        time.sleep(1.0)
        busy = contention.other_fraction()
        if busy is None or busy <= MAX_BUSY:
            return
        if time.monotonic() - began >= limit_seconds:
            print(f"other processes use {busy:.0%} of the cores: the next run is measured beside them", file=sys.stderr)
            return


def in_turn(names: Iterable[T], number: int) -> list[T]:
    """Return the order of a round: reversed in every other one, so that caches and clocks favor no name."""
    return list(names)[:: 1 if number % 2 == 0 else -1]


def geometric_mean(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the geometric mean and its 95 % interval, by Student's t of the logarithms; NaN bounds for one ratio."""
    logarithms = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logarithms)
    if len(ratios) < 2:
        return math.exp(mean), math.nan, math.nan
    half = stats.t.ppf(0.975, len(ratios) - 1) * statistics.stdev(logarithms) / math.sqrt(len(ratios))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)
