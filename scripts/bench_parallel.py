"""Cost of DDP, FSDP and checkpoints, and gain of compilation under FSDP: tokens/s over those of the first variant.

    python scripts/bench_parallel.py --rounds 15 [settings of the harness]
    python scripts/bench_parallel.py --case compile model=llama-30m     FSDP on two processes, compiled over eager
    python scripts/bench_parallel.py --case threads model=llama-30m     two processes over one of two threads

Every run is a fresh process; the variants take turns, so that a noisy machine disturbs all alike. `window` is the ratio
of the timed windows, which exclude saves; `with saves` includes their time. Each is the geometric mean over the rounds
with its 95 % interval (Student's t of the logarithms of each round's ratio).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from harness_runs import geometric_mean, in_turn, run_harness

from harness.text import layered_settings

DEFAULTS = ("workload.steps=120", "workload.timing_warmup_steps=20", "workload.eval_every=0", "workload.seq_len=128",
            "fingerprint=false")  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
TWO = (*TORCHRUN[:-1], "--nproc-per-node=2")
ON_TWO = ("parallel=fsdp", "backend.threads=1", "workload.micro_batch_size=8", "track=tuned")
Variant = tuple[tuple[str, ...], tuple[str, ...]]
# Of each case, the first variant is the one that others are compared with.
CASES: dict[str, dict[str, Variant]] = {
    "cost": {
        "plain": ((), ()),
        "ddp, one process": (TORCHRUN, ("parallel=ddp",)),
        "fsdp, one process": (TORCHRUN, ("parallel=fsdp",)),
        "checkpoint every 100": ((), ("checkpoint.every=100",)),
    },
    "compile": {
        "fsdp, eager": (TWO, (*ON_TWO, "track.compile=no")),
        "fsdp, compiled": (TWO, ON_TWO),
    },
    "threads": {
        "one process, two threads": ((), ("backend.threads=2", "workload.micro_batch_size=8")),
        "fsdp, two of one thread": (TWO, ("parallel=fsdp", "backend.threads=1", "workload.micro_batch_size=8")),
        "tensor, two of one thread": (
            TWO,
            ("parallel=mesh", "parallel.tensor=2", "backend.threads=1", "workload.micro_batch_size=8"),
        ),
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--case", choices=CASES, default="cost")
    parser.add_argument("overrides", nargs="*", help="settings of the harness, as on its command line")
    options = parser.parse_args()
    variants = CASES[options.case]
    first = next(iter(variants))
    windows: dict[str, list[float]] = {name: [] for name in variants}
    with_saves: dict[str, list[float]] = {name: [] for name in variants}
    saves: list[float] = []
    for number in range(options.rounds):
        found = {}
        for name in in_turn(variants, number):
            launcher, overrides = variants[name]
            record, _ = run_harness(layered_settings(DEFAULTS, overrides, options.overrides), launcher)
            found[name] = record
        for name, record in found.items():
            timing = record["timing"]
            ratio = timing["tokens_per_second"] / found[first]["timing"]["tokens_per_second"]
            windows[name].append(ratio)
            seconds = timing["training_seconds"]
            with_saves[name].append(ratio * seconds / (seconds + timing["checkpoint_seconds"]))
            if timing["checkpoint_seconds"]:
                work, every = record["config"]["workload"], record["config"]["checkpoint"]["every"]
                saves.append(timing["checkpoint_seconds"] / math.ceil(work["steps"] / every))
        print(f"round {number + 1}: " + ", ".join(f"{name} {windows[name][-1]:.4f}" for name in variants), flush=True)
    print(f"\n{'over ' + first:<30} {'window':>24} {'with saves':>24}")
    for name in list(variants)[1:]:
        print(f"{name:<30} {interval(windows[name]):>24} {interval(with_saves[name]):>24}")
    if saves:
        print(f"one save: {statistics.median(saves):.3f} s")
    return 0


def interval(ratios: list[float]) -> str:
    """Return the geometric mean of ratios with its 95 % interval, as text."""
    mean, low, high = geometric_mean(ratios)
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]" if len(ratios) > 1 else f"{mean:.4f}"


if __name__ == "__main__":
    sys.exit(main())
