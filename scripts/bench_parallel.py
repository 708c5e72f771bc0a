"""What DDP and checkpoints cost: tokens/s with them over tokens/s without, and how long a save stops the run.

    python scripts/bench_parallel.py --pairs 5 [settings of the harness]

Every run is a fresh process; the variants take turns, so that a noisy machine disturbs all alike. `window` is the ratio
of the timed windows, from which saves are left out; `with saves` counts their time as if they were training.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

DEFAULTS = ("workload.steps=220", "workload.warmup_steps=20", "workload.eval_every=0", "workload.seq_len=128")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), ()),
    "ddp, one process": (TORCHRUN, ("parallel=ddp",)),
    "fsdp, one process": (TORCHRUN, ("parallel=fsdp",)),
    "checkpoint every 100": ((), ("checkpoint.every=100",)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="settings of the harness, as on its command line")
    options = parser.parse_args()
    windows: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with_saves: dict[str, list[float]] = {name: [] for name in VARIANTS}
    saves: list[float] = []
    for pair in range(options.pairs):
        order = list(VARIANTS) if pair % 2 == 0 else list(reversed(VARIANTS))
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
        saves.append(found["checkpoint every 100"]["checkpoint_seconds"] / 3)
        print(f"round {pair + 1}: " + ", ".join(f"{name} {windows[name][-1]:.4f}" for name in VARIANTS), flush=True)
    print(f"\n{'median over plain':<22} {'window':>8} {'with saves':>11}")
    for name in VARIANTS:
        print(f"{name:<22} {statistics.median(windows[name]):>8.4f} {statistics.median(with_saves[name]):>11.4f}")
    print(f"one save (of three): {statistics.median(saves):.3f} s")
    return 0


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
