"""Cost of DDP, FSDP and checkpoints: tokens/s with them over tokens/s without, and the seconds of a save.

    python scripts/bench_parallel.py --rounds 15 [settings of the harness]

Every run is a fresh process; the variants take turns, so that a noisy machine disturbs all alike. `window` is the ratio
of the timed windows, which exclude saves; `with saves` includes their time. Each is the geometric mean over the rounds
with its 95 % interval (Student's t of the logarithms of each round's ratio).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from harness_runs import geometric_mean, in_turn, run_harness

from harness.text import layered_settings

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
        found = {}
        for name in in_turn(VARIANTS, number):
            launcher, overrides = VARIANTS[name]
            record, _ = run_harness(layered_settings(DEFAULTS, options.overrides, overrides), launcher)
            found[name] = record["timing"]
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
    """Return the geometric mean of ratios with its 95 % interval, as text."""
    mean, low, high = geometric_mean(ratios)
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]" if len(ratios) > 1 else f"{mean:.4f}"


if __name__ == "__main__":
    sys.exit(main())
