"""What DDP and checkpoints cost: tokens/s with them over tokens/s without, and how long a save stops the run.

    python scripts/bench_parallel.py --rounds 15 [settings of the harness]

Every run is a fresh process; the variants take turns, so that a noisy machine disturbs all alike. `window` is the ratio
of the timed windows, from which saves are left out; `with saves` counts their time as if they were training. Each is
the geometric mean over the rounds with its 95 % interval (Student's t of the logarithms of each round's ratio).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scipy import stats

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

DEFAULTS = ("workload.steps=120", "workload.timing_warmup_steps=20", "workload.eval_every=0", "workload.seq_len=128")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), ()),
    "ddp, one process": (TORCHRUN, ("parallel=ddp",)),
    "fsdp, one process": (TORCHRUN, ("parallel=fsdp",)),
    "checkpoint every 100": ((), ("checkpoint.every=100",)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("overrides", nargs="*", help="settings of the harness, as on its command line")
    options = parser.parse_args()
    windows: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with_saves: dict[str, list[float]] = {name: [] for name in VARIANTS}
    saves: list[float] = []
    for number in range(options.rounds):
        order = list(VARIANTS) if number % 2 == 0 else list(reversed(VARIANTS))
        found = {}
        for name in order:
            launcher, words = VARIANTS[name]
            found[name] = run(launcher, [*DEFAULTS, *options.overrides, *words])
        plain = found["plain"]["tokens_per_second"]
        for name, timing in found.items():
            speed = timing["tokens_per_second"]
            windows[name].append(speed / plain)
            seconds = timing["training_seconds"]
            with_saves[name].append(speed / plain * seconds / (seconds + timing["checkpoint_seconds"]))
        saves.append(found["checkpoint every 100"]["checkpoint_seconds"] / 2)
        print(f"round {number + 1}: " + ", ".join(f"{name} {windows[name][-1]:.4f}" for name in VARIANTS), flush=True)
    print(f"\n{'over plain':<22} {'window':>24} {'with saves':>24}")
    for name in list(VARIANTS)[1:]:
        print(f"{name:<22} {interval(windows[name]):>24} {interval(with_saves[name]):>24}")
    print(f"one save (of two): {statistics.median(saves):.3f} s")
    return 0


def interval(ratios: list[float]) -> str:
    """Return the geometric mean of ratios with its 95 % interval, in words."""
    logarithms = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logarithms)
    if len(ratios) < 2:
        return f"{math.exp(mean):.4f}"
    half = stats.t.ppf(0.975, len(ratios) - 1) * statistics.stdev(logarithms) / math.sqrt(len(ratios))
    return f"{math.exp(mean):.4f} [{math.exp(mean - half):.4f}, {math.exp(mean + half):.4f}]"


def run(launcher: tuple[str, ...], words: list[str]) -> dict[str, float]:
    """Return the record's timing part of one run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, *launcher, "-m", "harness", *words, f"out={out}"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stderr)
        return json.loads((out / "record.json").read_text())["timing"]


if __name__ == "__main__":
    sys.exit(main())
