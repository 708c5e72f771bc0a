"""Cost of monitoring a run, and growth of memory and open files in a long run.

    python scripts/bench_operations.py overhead --pairs 300      intervals with and without a sensor that is read
    python scripts/bench_operations.py soak --minutes 30         one run with all monitoring; memory and files every 5 s

All monitoring: log=json, a metrics file, telemetry from a sensor that is read every second. The sensor is RAPL's code
over a fake /sys, since most machines hide theirs: a reading costs the same, its values mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness_runs import geometric_mean
from scipy import stats

WORK = ("backend=cpu", "model=tiny", "workload.eval_every=0", "workload.lr_warmup_steps=2")
# An interval is about as long as the time between two readings.
INTERVAL_STEPS = 4
# Runs the harness with a CPU whose energy counters lie in our own folder. With read.json the counters are read in the
# intervals that it lists; in the others the last reading is repeated.
PROGRAM = """
import json, sys
from functools import partial
from pathlib import Path
from typing import Any
place = Path(sys.argv[1])
import harness.backends.cpu as cpu
from harness.backends.rapl import open_rapl
cpu.open_rapl = partial(open_rapl, place / "powercap")
if (place / "read.json").exists():
    from harness.backends.rapl import Rapl
    from harness.training.monitoring.telemetry import Telemetry
    plan, reading, last = iter(json.loads((place / "read.json").read_text())), True, None
    begins, read = Telemetry.interval_begins, Rapl.read
    def begins_by_plan(self, phase):
        global reading
        reading = phase == "measured" and next(plan)
        begins(self, phase)
    def read_by_plan(self):
        global last
        if reading:
            last = read(self)
        return last
    Telemetry.interval_begins, Rapl.read = begins_by_plan, read_by_plan
from harness.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
SAMPLE_PERIOD_SECONDS = 5.0
# Growth is measured after imports, first steps and caches, and after the first minutes, in which malloc's arena grows
# by a few MiB in one or two jumps.
SETTLING_SECONDS = 300.0
PRINT_PERIOD_SECONDS = 180.0
# Three floats of 24 bytes, each with a pointer of 8 in a list.
BYTES_KEPT_PER_STEP = 96


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    overhead_parser = verbs.add_parser("overhead")
    overhead_parser.add_argument("--pairs", type=int, default=300)
    soak_parser = verbs.add_parser("soak")
    soak_parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _fake_counters(place / "powercap")
        return overhead(place, options.pairs) if options.verb == "overhead" else soak(place, options.minutes)


def overhead(place: Path, pairs: int) -> int:
    """Print the time of intervals in which the sensor is read over that of intervals in which it is not.

    The intervals alternate within one process, in pairs of random order: identical processes differ by more than the
    effect. JSON lines and the metrics file are written between intervals, outside the timing.
    """
    random = np.random.default_rng(1)
    read = [bool(one) for first in random.integers(0, 2, pairs) for one in (first, 1 - first)]
    (place / "read.json").write_text(json.dumps(read))
    out = place / "run"
    steps = 20 + 2 * pairs * INTERVAL_STEPS
    sizes = [f"workload.steps={steps}", f"workload.interval_steps={INTERVAL_STEPS}"]
    with _start(place, [*WORK, *sizes, f"out={out}"]) as process:
        if process.wait() != 0:
            print((place / "output.log").read_text()[-2000:], file=sys.stderr)
            return 1
    record = json.loads((out / "record.json").read_text())
    seconds = np.array([interval["seconds"] for interval in record["timing"]["intervals"]]).reshape(pairs, 2)
    order = np.array(read).reshape(pairs, 2)
    ratios = list(seconds[order] / seconds[~order])
    mean, low, high = geometric_mean(ratios)
    print(f"{pairs} pairs of intervals of {1000 * np.median(seconds):.0f} ms, "
          f"{record['telemetry']['readings']} readings in the window, half of them repeated")  # fmt: skip
    print(f"read over not read: geometric mean {mean:.4f}, 95 % interval {low:.4f} to {high:.4f}; "
          f"median {np.median(ratios):.4f}")  # fmt: skip
    return 0


def soak(place: Path, minutes: float) -> int:
    """Train for `minutes` with all monitoring, and print the course of resident memory and open files."""
    out = place / "run"
    samples: list[tuple[float, int, int]] = []
    with _start(place, [*WORK, "workload.steps=100000000", f"out={out}"]) as process:
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes and process.poll() is None:
            time.sleep(SAMPLE_PERIOD_SECONDS)
            samples.append((time.monotonic() - began, _resident_bytes(process.pid), _open_files(process.pid)))
        process.terminate()
        code = process.wait()
    settled = [sample for sample in samples if sample[0] >= min(SETTLING_SECONDS, 20 * minutes)]
    hours = np.array([seconds / 3600 for seconds, _, _ in settled])
    mebibytes = np.array([size / 2**20 for _, size, _ in settled])
    fit: Any = stats.linregress(hours, mebibytes)
    margin = fit.stderr * stats.t.ppf(0.975, len(settled) - 2)
    files = [count for _, _, count in settled]
    record = json.loads((out / "record.json").read_text())
    print(f"{settled[-1][0] / 60:.1f} minutes, {record['timing']['measured_steps']:,} measured steps, ended {code} "
          f"({record['status']}), {record['telemetry']['readings']} readings of the sensor")  # fmt: skip
    every = max(1, round(PRINT_PERIOD_SECONDS / SAMPLE_PERIOD_SECONDS))
    course = ", ".join(f"{size / 2**20:.2f} at {seconds / 60:.0f}" for seconds, size, _ in samples[every - 1 :: every])
    print(f"resident memory in MiB, at minutes: {course}")
    print(f"  after {settled[0][0] / 60:.0f} minutes: {mebibytes.min():.2f} to {mebibytes.max():.2f} MiB; "
          f"slope {fit.slope:+.2f} ± {margin:.2f} MiB/h")  # fmt: skip
    steps = len(record["losses"]["train"])
    print(f"  the record holds a loss, a norm and a time for each of {steps:,} steps: "
          f"{BYTES_KEPT_PER_STEP * steps / 2**20:.2f} MiB at the end")  # fmt: skip
    print(f"open files: first {files[0]}, last {files[-1]}, {min(files)} to {max(files)}")
    return 0


def _start(place: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    """Start a run with all monitoring."""
    monitoring = ["log=json", "telemetry=true", f"metrics_file={place / 'harness.prom'}"]
    command = [sys.executable, "-c", PROGRAM, str(place), *overrides, *monitoring]
    with open(place / "output.log", "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "PYTHONUNBUFFERED": "1"})


def _fake_counters(folder: Path) -> None:
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram")):
        (folder / zone).mkdir(parents=True)
        (folder / zone / "name").write_text(f"{name}\n")
        (folder / zone / "energy_uj").write_text("1000000\n")
        (folder / zone / "max_energy_range_uj").write_text("262143328850\n")


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
