"""What each knob of track=tuned gives on this device: tokens/s and peak memory with it, without it, and of portable.

    python scripts/bench_track.py --rounds 3                          llama-30m, 512 tokens, bf16
    python scripts/bench_track.py --rounds 3 model=gpt2-124m workload.micro_batch_size=8
    python scripts/bench_track.py --variant 'track=tuned' --variant 'track=tuned OMP_PROC_BIND=close'

Every run is a fresh process and the runs of a round take turns. A knob belongs into a backend's `tuned()` only if it
wins here. The last column is the model FLOP/s over the measured bf16 peak, if `python -m harness peak` was run before.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

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
    "tuned, adamw=foreach": ("track=tuned", "track.adamw=foreach"),
    "tuned, all activations kept": ("track=tuned", "track.activation_memory_budget=1.0"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    told = "instead of the knobs, once for each: settings, and VARIABLE=value for the environment"
    parser.add_argument("--variant", action="append", default=[], metavar="WORDS", help=told)
    parser.add_argument("overrides", nargs="*", help="settings of the harness, as on its command line")
    options = parser.parse_args()
    variants = {"portable": (), **{words: tuple(shlex.split(words)) for words in options.variant}}
    if not options.variant:
        variants = VARIANTS
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for number in range(options.rounds):
        for name in list(variants) if number % 2 == 0 else list(reversed(variants)):
            found[name].append(run([*WORK, *options.overrides], variants[name]))
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


def run(words: list[str], variant: Sequence[str]) -> dict[str, Any]:
    """Return the record of one run; of a variant's words those in capitals are for its environment."""
    variables = [word for word in variant if word.split("=", 1)[0].isupper()]
    words = [*words, *(word for word in variant if word not in variables)]
    env = {**os.environ, **dict(word.split("=", 1) for word in variables)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "harness", *words, f"out={out}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode != 0:
            sys.exit(done.stderr[-3000:])
        return json.loads((out / "record.json").read_text())


if __name__ == "__main__":
    sys.exit(main())
