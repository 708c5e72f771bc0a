"""Gain of each setting of track=tuned on this device: tokens/s and peak memory with it, without it, and of portable.

    python scripts/bench_track.py --rounds 3                          llama-30m, 512 tokens, bf16
    python scripts/bench_track.py --rounds 3 model=gpt2-124m workload.micro_batch_size=8
    python scripts/bench_track.py --variant 'track=tuned' --variant 'track=tuned OMP_PROC_BIND=close'

Every run is a fresh process and the runs of a round take turns. A setting belongs into a backend's `tuned_defaults()`
only if it is faster here. The last column is the MFU of the measured bf16 peak; run `python -m harness peak` first.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from harness_runs import in_turn, run_harness

from harness.text import layered_settings

WORK = ("model=llama-30m", "workload=gpt2", "workload.seq_len=512", "workload.global_batch_size=16",
        "workload.micro_batch_size=4", "workload.steps=9", "workload.timing_warmup_steps=3", "workload.eval_every=0",
        "workload.lr_warmup_steps=2", "precision=bf16")  # fmt: skip
VARIANTS = {
    "portable": (),
    "tuned": ("track=tuned",),
    "tuned, compile=no": ("track=tuned", "track.compile=no"),
    "tuned, compile=model": ("track=tuned", "track.compile=model"),
    "tuned, attention=stock": ("track=tuned", "track.attention=stock"),
    "tuned, cross_entropy=stock": ("track=tuned", "track.cross_entropy=stock"),
    "tuned, gradient_accumulation=stock": ("track=tuned", "track.gradient_accumulation=stock"),
    "tuned, adamw=foreach": ("track=tuned", "track.adamw=foreach"),
    "tuned, all activations kept": ("track=tuned", "track.activation_memory_budget=1.0"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    text = "a run instead of the built-in ones: settings, and VARIABLE=value for the environment; may be repeated"
    parser.add_argument("--variant", action="append", default=[], metavar="SETTINGS", help=text)
    parser.add_argument("overrides", nargs="*", help="settings of the harness, as on its command line")
    options = parser.parse_args()
    variants = {"portable": (), **{text: tuple(shlex.split(text)) for text in options.variant}}
    if not options.variant:
        variants = VARIANTS
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for number in range(options.rounds):
        for name in in_turn(variants, number):
            found[name].append(run(layered_settings(WORK, options.overrides), variants[name]))
            print(f"round {number + 1}: {name}: {found[name][-1]['timing']['tokens_per_second']:,.0f}", flush=True)
    print("\n| run | tokens/s | over portable (each round) | peak MiB | first step s | MFU of the measured peak |")
    print("|---|---|---|---|---|---|")
    for name, records in found.items():
        speeds = [record["timing"]["tokens_per_second"] for record in records]
        base = [record["timing"]["tokens_per_second"] for record in found["portable"]]
        ratios = [speed / other for speed, other in zip(speeds, base, strict=True)]
        memory = statistics.median(record["memory"]["peak_allocated_bytes"] for record in records)
        first = statistics.median(record["timing"]["first_step_seconds"] for record in records)
        shares = [record["utilization"]["mfu_of_measured_peak"] for record in records]
        mfu = "unknown" if None in shares else f"{statistics.median(shares):.3f}"
        print(
            f"| {name} | {statistics.median(speeds):,.0f} | {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}) | {memory / 2**20:,.0f} | {first:.1f} | {mfu} |"
        )
    return 0


def run(overrides: list[str], variant: Sequence[str]) -> dict[str, Any]:
    """Return the record of one run. In a variant, names in capitals are environment variables."""
    variables = [pair for pair in variant if pair.split("=", 1)[0].isupper()]
    settings = [pair for pair in variant if pair not in variables]
    record, _ = run_harness(layered_settings(overrides, settings), env=dict(pair.split("=", 1) for pair in variables))
    return record


if __name__ == "__main__":
    sys.exit(main())
