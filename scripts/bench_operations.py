"""What watching a run costs, and whether a long run stays as small as it began.

    python scripts/bench_operations.py overhead --pairs 300      blocks with and without a sensor that is read, in turn
    python scripts/bench_operations.py soak --minutes 30         one run with everything on; memory and files every 5 s

Everything: log=json, a metrics file, telemetry from a sensor that is read every second. The sensor is RAPL's own code
over a made-up /sys, since most machines hide theirs: the reading costs the same, its values mean nothing.
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
from scipy import stats

WORK = ("backend=cpu", "model=tiny", "workload.eval_every=0", "workload.lr_warmup_steps=2")
# A block is about as long as the time between two readings.
BLOCK_STEPS = 4
# Runs the harness with a CPU whose energy counters lie in a folder of our own, and reads them in some blocks alone, if
# read.json says in which.
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
    from harness.training import session, telemetry
    class Alternating(telemetry.Telemetry):
        reads = iter(json.loads((place / "read.json").read_text()))
        reading = False
        def interval_begins(self, phase):
            self.reading = phase == "measured" and next(self.reads)
            super().interval_begins(phase)
        def _read_on(self, sensor):
            while not self._enough.wait(sensor.period_seconds):
                if self.reading:
                    self._look(sensor)
    session.Telemetry = Alternating
from harness.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
SECONDS_BETWEEN_LOOKS = 5.0
# What imports, first steps and caches take is no growth; nor are the few MiB by which malloc's arena grows in one or
# two jumps in the first minutes, until it has met the largest hole it needs.
SECONDS_TO_SETTLE = 300.0
SECONDS_BETWEEN_FIGURES = 180.0
# Three floats of 24 bytes, each with its place of 8 in a list.
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
    """Print the time of blocks in which the sensor is read over that of blocks in which it is not.

    Within one process, block by block, in pairs of random order: processes that do the same differ by more than what
    is sought. JSON lines and the metrics file are written between blocks, where no clock runs.
    """
    random = np.random.default_rng(1)
    read = [bool(one) for first in random.integers(0, 2, pairs) for one in (first, 1 - first)]
    (place / "read.json").write_text(json.dumps(read))
    out = place / "run"
    steps = 20 + 2 * pairs * BLOCK_STEPS
    words = [*WORK, f"workload.steps={steps}", f"workload.interval_steps={BLOCK_STEPS}", *_watched(place), f"out={out}"]
    with _start(place, words) as process:
        if process.wait() != 0:
            print((place / "output.log").read_text()[-2000:], file=sys.stderr)
            return 1
    record = json.loads((out / "record.json").read_text())
    seconds = np.array([block["seconds"] for block in record["timing"]["intervals"]]).reshape(pairs, 2)
    order = np.array(read).reshape(pairs, 2)
    logarithms = np.log(seconds[order] / seconds[~order])
    low, high = _interval(logarithms)
    print(f"{pairs} pairs of blocks of {1000 * np.median(seconds):.0f} ms, "
          f"{record['telemetry']['readings']} readings in the window")  # fmt: skip
    print(f"read over not read: geometric mean {np.exp(logarithms.mean()):.4f}, 95 % interval {low:.4f} to {high:.4f}; "
          f"median {np.exp(np.median(logarithms)):.4f}")  # fmt: skip
    return 0


def soak(place: Path, minutes: float) -> int:
    """Train for so long with everything on, and print how resident memory and open files went."""
    out = place / "run"
    words = [*WORK, "workload.steps=100000000", *_watched(place), f"out={out}"]
    looks: list[tuple[float, int, int]] = []
    with _start(place, words) as process:
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes and process.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            looks.append((time.monotonic() - began, _resident_bytes(process.pid), _open_files(process.pid)))
        process.terminate()
        code = process.wait()
    settled = [look for look in looks if look[0] >= min(SECONDS_TO_SETTLE, 20 * minutes)]
    hours = np.array([seconds / 3600 for seconds, _, _ in settled])
    mebibytes = np.array([size / 2**20 for _, size, _ in settled])
    fit: Any = stats.linregress(hours, mebibytes)
    margin = fit.stderr * stats.t.ppf(0.975, len(settled) - 2)
    files = [count for _, _, count in settled]
    record = json.loads((out / "record.json").read_text())
    print(f"{settled[-1][0] / 60:.1f} minutes, {record['timing']['measured_steps']:,} measured steps, ended {code} "
          f"({record['status']}), {record['telemetry']['readings']} readings of the sensor")  # fmt: skip
    every = max(1, round(SECONDS_BETWEEN_FIGURES / SECONDS_BETWEEN_LOOKS))
    course = ", ".join(f"{size / 2**20:.2f} at {seconds / 60:.0f}" for seconds, size, _ in looks[every - 1 :: every])
    print(f"resident memory in MiB, at minutes: {course}")
    print(f"  after {settled[0][0] / 60:.0f} minutes: {mebibytes.min():.2f} to {mebibytes.max():.2f} MiB; "
          f"slope {fit.slope:+.2f} ± {margin:.2f} MiB/h")  # fmt: skip
    steps = len(record["losses"]["train"])
    print(f"  the record keeps a loss, a norm and a time of each of {steps:,} steps: "
          f"{BYTES_KEPT_PER_STEP * steps / 2**20:.2f} MiB at the end")  # fmt: skip
    print(f"open files: {files[0]} at first, {files[-1]} at last, {min(files)} to {max(files)}")
    return 0


def _watched(place: Path) -> list[str]:
    return ["log=json", "telemetry=true", f"metrics_file={place / 'harness.prom'}"]


def _start(place: Path, words: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(place), *words]
    with open(place / "output.log", "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "PYTHONUNBUFFERED": "1"})


def _interval(logarithms: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the geometric mean, by Student's t."""
    if len(logarithms) < 2:
        return float("nan"), float("nan")
    half = stats.sem(logarithms) * stats.t.ppf(0.975, len(logarithms) - 1)
    return float(np.exp(np.mean(logarithms) - half)), float(np.exp(np.mean(logarithms) + half))


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
