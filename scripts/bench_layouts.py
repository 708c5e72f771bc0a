"""Bubble and exposed communication as the record has them, against what they have to be.

    python scripts/bench_layouts.py bubble      pipelines of 2 and 4 ranks, with three numbers of micro-batches
    python scripts/bench_layouts.py exposed     every axis, with collectives that take longer

In `bubble` each block sleeps for a set time, twice of it in the backward pass, so that processes that share cores are
as fast as if each had a device. In `exposed` each collective of one axis takes at least a set time from its start: the
step becomes longer by as much as the exposed communication of that axis, if that is measured right.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from harness.text import layered_settings  # noqa: E402
from tests.layouts import MODELS, WORK  # noqa: E402
from tests.ranks import end_ranks, record, start_ranks  # noqa: E402

SHORT = ("workload.steps=9", "workload.timing_warmup_steps=3", "workload.eval_every=0", "workload.lr_warmup_steps=3",
         "fingerprint=false")  # fmt: skip
SIZES, MICRO_BATCHES, SCHEDULES = (2, 4), (4, 8, 16), ("gpipe", "1f1b", "zero_bubble")
AXES = {
    "tensor": "tensor=2",
    "shard": "shard=2",
    "context": "context=2",
    "pipeline": "pipeline=2",
    "data": "data=2 shard=2",
}


def train(layout: str, fault: str, settings: list[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the section `parallel` of the record of a run."""
    size = math.prod(int(part.split("=")[1]) for part in layout.split())
    axes = [f"parallel.{part}" for part in layout.split()]
    own = layered_settings(WORK, MODELS["mha"], SHORT, settings, ["parallel=mesh", *axes, "out=run"])
    with tempfile.TemporaryDirectory() as folder:
        started = start_ranks(size, own, Path(folder), fault=fault, variables=dict.fromkeys(range(size), variables))
        for ended in end_ranks(started, 600):
            if ended.code:
                sys.exit(ended.err)
        return record(Path(folder) / "run")["parallel"]


def bubbles(block_seconds: float) -> None:
    print("| schedule | ranks | stages each | micro-batches | measured | (p - 1) / (v m + p - 1) |")
    print("|---|---:|---:|---:|---:|---:|")
    cases = [(schedule, size, 1) for schedule in SCHEDULES for size in SIZES] + [("1f1b", 2, 2)]
    for schedule, size, each in cases:
        for count in MICRO_BATCHES:
            # The output projection does not sleep, so that equal numbers of blocks make equal stages.
            blocks = "-".join([str(4 // (size * each))] * size * each)
            settings = [f"workload.global_batch_size={count}", f"parallel.pipeline_schedule={schedule}",
                        f"parallel.pipeline_blocks={blocks}", f"parallel.pipeline_virtual_stages={each}"]  # fmt: skip
            found = train(f"pipeline={size}", "sleeping blocks", settings, {"BLOCK_SECONDS": str(block_seconds)})
            bubble = found["bubble"]
            print(f"| {schedule} | {size} | {each} | {count} | {bubble['measured_share']:.3f} | "
                  f"{bubble['ideal_share']:.3f} |", flush=True)  # fmt: skip


def exposed(slow_seconds: float) -> None:
    print("| axis | layout | collectives slower by | step longer by, ms | exposed longer by, ms | ratio |")
    print("|---|---|---:|---:|---:|---:|")
    for axis, layout in AXES.items():
        steps, waits = [], []
        for seconds in (0.0, slow_seconds):
            variables = {"SLOW_AXIS": axis, "SLOW_SECONDS": str(seconds)}
            ranks = train(layout, "slow collectives", [], variables)["ranks"]
            steps.append(statistics.fmean(rank["step_seconds"] for rank in ranks))
            waits.append(statistics.fmean(rank["axes"][axis]["exposed_communication_seconds"] for rank in ranks))
        longer, waited = steps[1] - steps[0], waits[1] - waits[0]
        print(f"| {axis} | {layout} | {1000 * slow_seconds:.0f} ms | {1000 * longer:.1f} | {1000 * waited:.1f} | "
              f"{waited / longer:.3f} |", flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bubble", "exposed"))
    parser.add_argument(
        "--milliseconds", type=float, default=20.0, help="of a block's forward pass, or of a collective"
    )
    options = parser.parse_args()
    (bubbles if options.what == "bubble" else exposed)(options.milliseconds / 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
