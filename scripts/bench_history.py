"""Simulated histories: how often a planted step is found, one is found where there is none, and its cause is named.

    python scripts/bench_history.py
    python scripts/bench_history.py --series 2000 --step 0.02
    python scripts/bench_history.py --records 10000        how long as many records take

Each series has 100 measurements with 1 % noise: independent, autocorrelated (order 1), in bursts of up to four, or with
heavy tails. The step lies at a random place, ten or more from the ends; found is one within five of it. With it the
version of one package changes, and those of others elsewhere.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from harness.analysis.run_history import changes_at, make_history
from harness.analysis.step_detection import find_steps
from harness.records.load import load_tree
from harness.records.record import write_record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
COUNT, NEAR, MARGIN = 100, 5, 10
KINDS = ("independent", "autocorrelated 0.3", "autocorrelated 0.5", "bursts", "heavy tails")
MIN_FOUND, MAX_FALSE, MIN_NAMED = 0.80, 0.05, 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--step", type=float, default=0.03)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--records", type=int, help="only read this many records")
    options = parser.parse_args()
    if options.records:
        print(f"{options.records} records: {seconds_of(options.records):.1f} s, "
              f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")  # fmt: skip
        return 0
    print("| noise | step found | cause named, if found | others found beside it | any where there is none |")
    print("|---|---|---|---|---|")
    held = True
    for kind in KINDS:
        found, named, others, alone = simulate(kind, options)
        print(f"| {kind} | {found:.3f} | {named:.3f} | {others:.3f} | {alone:.3f} |", flush=True)
        held &= found >= MIN_FOUND and named >= MIN_NAMED and alone <= MAX_FALSE
    return 0 if held else 1


def simulate(kind: str, options: argparse.Namespace) -> tuple[float, ...]:
    """Return the shares of the table's columns."""
    source = np.random.default_rng([7, KINDS.index(kind)])
    found = named = others = alone = 0
    for _ in range(options.series):
        alone += bool(find_steps(np.exp(noise(kind, options.noise, source)).tolist()))
        place = int(source.integers(MARGIN, COUNT - MARGIN + 1))
        series = noise(kind, options.noise, source)
        series[place:] += np.log1p(options.step)
        steps = find_steps(np.exp(series).tolist())
        near = [step for step in steps if abs(step.place - place) <= NEAR]
        others += len(steps) > len(near[:1])
        if near:
            found += 1
            # Two innocent packages change at places of their own.
            at = {"guilty": place, "a": int(source.integers(1, COUNT)), "b": int(source.integers(1, COUNT))}
            facts = [{name: "2" if number >= change else "1" for name, change in at.items()} for number in range(COUNT)]
            changes = changes_at(facts, near[0].place, 0, COUNT)
            named += any(change.what == "guilty" for change in changes)
    return found / options.series, named / max(1, found), others / options.series, alone / options.series


def noise(kind: str, size: float, source: np.random.Generator) -> np.ndarray:
    """Return the logarithms of a series' noise."""
    if kind.startswith("autocorrelated"):
        autocorrelation = float(kind.split()[1])
        found = source.normal(0, size, COUNT)
        for number in range(1, COUNT):
            found[number] = autocorrelation * found[number - 1] + np.sqrt(1 - autocorrelation**2) * found[number]
        return found
    if kind == "heavy tails":
        return source.standard_t(2.5, COUNT) * size / 1.6
    found = source.normal(0, size, COUNT)
    if kind == "bursts":
        for first in np.flatnonzero(source.random(COUNT) < 0.02):
            found[first : first + source.integers(1, 5)] += source.uniform(0.03, 0.15)
    return found


def seconds_of(count: int) -> float:
    """Return the seconds from a folder of this many records to their steps."""
    # Imported here: the tests lie beside this folder, not in a package of theirs.
    from tests.records import make_record

    began_at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    record = make_record()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            run = Path(folder) / str(number)
            run.mkdir()
            started = (began_at + timedelta(hours=number)).isoformat()
            write_record(run, {**record, "started_at": started})
        began = time.perf_counter()
        make_history(load_tree([Path(folder)])[0])
        return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
