"""Start-up time of the harness and of other trainers: to the help text, and to the end of the first step.

    python scripts/bench_startup.py --rounds 5

The first step trains the harness's smallest model (tiny, 16 x 256 tokens, bf16), also in the programs of
bench_peers.py. A peer's help text is that of its launcher; a peer without one imports its training classes instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import bench_peers

from harness.composition import load

WORK = (
    "precision=bf16",
    "workload.steps=3",
    "workload.timing_warmup_steps=1",
    "workload.eval_every=0",
    "workload.lr_warmup_steps=1",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--environment", type=Path, default=bench_peers.ENVIRONMENT)
    options = parser.parse_args()
    python = bench_peers.environment(options.environment)
    helps: dict[str, list[str]] = {
        "harness --help": [sys.executable, "-m", "harness", "--help"],
        "accelerate launch --help": [str(python.with_name("accelerate")), "launch", "--help"],
        "import of transformers' Trainer": [str(python), "-c", "from transformers import Trainer"],
        "import of Fabric and litgpt": [str(python), "-c", "import lightning.fabric, litgpt"],
    }
    with tempfile.TemporaryDirectory() as folder:
        config = load(list(WORK))
        work = bench_peers.describe(config, bench_peers.write_tokens(config, Path(folder)))
        plain = {**work, "compile": False, "tuned": False, "attention": "sdpa"}
        steps: dict[str, Callable[[], float]] = {"harness": lambda: bench_peers.harness(list(WORK))["start_up_seconds"]}
        for name, (program, _) in bench_peers.PEERS.items():
            steps[name] = lambda program=program: bench_peers.peer(python, program, plain)["start_up_seconds"]
        measured: dict[str, list[float]] = {name: [] for name in (*helps, *steps)}
        for _ in range(options.rounds):
            for name, command in helps.items():
                measured[name].append(seconds(command))
            for name, step in steps.items():
                measured[name].append(step())
    print_table("to the help text", {name: measured[name] for name in helps})
    print_table("from launch to the end of the first step of tiny", {name: measured[name] for name in steps})
    return 0


def seconds(command: list[str]) -> float:
    """Return the seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def print_table(title: str, measured: dict[str, list[float]]) -> None:
    print(f"\n| {title} | seconds, median | min to max |")
    print("|---|---|---|")
    for name, values in measured.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} to {max(values):.2f} |")


if __name__ == "__main__":
    sys.exit(main())
