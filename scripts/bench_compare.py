"""Scaling of `compare`: seconds and memory for 10, 100 and 1 000 records.

python scripts/bench_compare.py
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness_runs import run_harness

from harness.records.files import content_digest

# Runs a command and prints the peak resident set of it alone, in kilobytes.
MEASURE = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
    "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    options = parser.parse_args()
    record, _ = run_harness([])
    size = len(json.dumps(record))
    print(f"records of the default run: {len(record['losses']['train'])} steps, {size / 1e3:.0f} kB each")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(f"{'records':>8} {'seconds':>8} {'ms/record':>10} {'peak MB':>8}")
        for count in options.sizes:
            sides = [
                write(folder / f"{name}-{count}", record, count // 2, shift) for name, shift in (("a", 0), ("b", 1))
            ]
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, sys.executable, "-m", "harness", "compare", *sides],
                capture_output=True, text=True, check=True, env=os.environ,
            )  # fmt: skip
            seconds = time.perf_counter() - began
            code, kilobytes = map(int, done.stdout.split())
            assert code == 0, done.stderr
            print(f"{count:>8} {seconds:>8.2f} {1000 * seconds / count:>10.2f} {kilobytes / 1024:>8.0f}", flush=True)
    return 0


def write(folder: Path, record: dict[str, Any], count: int, shift: int) -> str:
    """Write `count` repeats with different step times, and return the folder."""
    for number in range(count):
        changed = copy.deepcopy(record)
        changed["finished_at"] += f" {shift} {number}"
        factor = 1 + 0.001 * ((7 * number + shift) % 11)
        timing = changed["timing"]
        for interval in timing["intervals"]:
            interval["seconds"] *= factor
        timing["measured_seconds"] = sum(interval["seconds"] for interval in timing["intervals"])
        timing["mean_step_seconds"] = timing["measured_seconds"] / timing["measured_steps"]
        timing["tokens_per_second"] = timing["tokens_per_step"] / timing["mean_step_seconds"]
        changed["content_sha256"] = content_digest(changed)
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "record.json").write_text(json.dumps(changed))
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
