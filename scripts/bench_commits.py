"""Speed of track=tuned at several commits, on the shapes of bench_peers.py: did a change make it faster?

    python scripts/bench_commits.py HEAD~3 HEAD --shape stranger --micro-batch 1 --rounds 5

Each run is a fresh process, and the commits take turns. Ratios are of tokens/s, over those of the first commit, with a
95 % interval over rounds; the last losses show whether the commits compute the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from bench_peers import PROJECT, SHAPES, WORK, interval
from harness_runs import in_turn, run_harness, touch_memory

from harness.text import layered_settings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="+", metavar="COMMIT")
    parser.add_argument("--shape", action="append", default=[], choices=SHAPES, help="may be repeated; default: all")
    parser.add_argument("--micro-batch", type=int, default=1, help="or the global batch, if that is smaller")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting more, for all")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: found {options.rounds}, expected at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        checkouts = [checkout(commit, Path(scratch) / str(number)) for number, commit in enumerate(options.commits)]
        touch_memory()
        for shape in options.shape or SHAPES:
            size = min(options.micro_batch, batch_of(SHAPES[shape]))
            work = layered_settings(
                WORK, SHAPES[shape], ["track=tuned", f"workload.micro_batch_size={size}"], options.set
            )
            found: list[list[dict[str, Any]]] = [[] for _ in checkouts]
            for number in range(options.rounds):
                for index in in_turn(range(len(checkouts)), number):
                    found[index].append(run_harness(work, checkout=checkouts[index])[0])
            print_table(f"{shape}, micro-batch {size}", options.commits, found)
    return 0


def checkout(commit: str, folder: Path) -> Path:
    """Extract a commit's files into a folder."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=PROJECT, capture_output=True, check=False)
    if archive.returncode:
        sys.exit(f"{commit}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def batch_of(settings: list[str]) -> int:
    return next(int(item.partition("=")[2]) for item in settings if item.startswith("workload.global_batch_size="))


def print_table(title: str, commits: list[str], found: list[list[dict[str, Any]]]) -> None:
    print(f"\n{title}\n\n| commit | tokens/s | over {commits[0]}, 95 % | peak MiB | last loss |\n|---|---|---|---|---|")
    speeds = [[record["timing"]["tokens_per_second"] for record in records] for records in found]
    for commit, records, own in zip(commits, found, speeds, strict=True):
        ratios = [mine / first for mine, first in zip(own, speeds[0], strict=True)]
        peak = statistics.median(record["memory"]["peak_allocated_bytes"] for record in records)
        print(
            f"| {commit} | {statistics.median(own):,.0f} | {interval(ratios)} | {peak / 2**20:,.0f} | "
            f"{records[-1]['losses']['train'][-1]:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
