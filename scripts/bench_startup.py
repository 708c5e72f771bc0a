"""Start-up time of the harness and of other trainers: to the help text, and to the end of the first step.

    python scripts/bench_startup.py --rounds 5

The first step trains the harness's smallest model (tiny, 16 x 256 tokens, bf16), also in the programs of
bench_peers.py, and then llama-30m (4 x 512 tokens) with everything compiled: with an empty cache of compiled programs,
and with that of the run before. The harness runs once without the fingerprint, which the peers do not take, and once
with it. A peer's help text is that of its launcher; a peer without one imports its training classes instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from peer_runs import ENVIRONMENT, PEERS, describe, environment, peer, write_tokens

from harness.composition import load
from harness.records.steps import STEPS_FILE
from harness.text import layered_settings

WORK = (
    "precision=bf16",
    "workload.steps=3",
    "workload.timing_warmup_steps=1",
    "workload.eval_every=0",
    "workload.lr_warmup_steps=1",
)
COMPILED = ("model=llama-30m", "workload.seq_len=512", "workload.global_batch_size=4", "workload.micro_batch_size=4")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    options = parser.parse_args()
    python = environment(options.environment)
    helps: dict[str, list[str]] = {
        "harness --help": [sys.executable, "-m", "harness", "--help"],
        "accelerate launch --help": [str(python.with_name("accelerate")), "launch", "--help"],
        "import of transformers' Trainer": [str(python), "-c", "from transformers import Trainer"],
        "import of Fabric and litgpt": [str(python), "-c", "import lightning.fabric, litgpt"],
    }
    measured: dict[str, list[float]] = {name: [] for name in helps}
    stock: dict[str, list[float]] = {}
    cold: dict[str, list[float]] = {}
    warm: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = first_steps(python, Path(folder) / "plain", WORK, compiled=False)
        compiled = first_steps(python, Path(folder) / "compiled", layered_settings(WORK, COMPILED), compiled=True)
        for _ in range(options.rounds):
            for name, command in helps.items():
                measured[name].append(seconds(command))
            for place, name in enumerate(plain):
                stock.setdefault(name, []).append(plain[name]())
                cache = Path(folder) / f"cache-{place}"
                shutil.rmtree(cache, ignore_errors=True)
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
                cold.setdefault(name, []).append(compiled[name]())
                warm.setdefault(name, []).append(compiled[name]())
    print_table("to the help text", measured)
    print_table("from launch to the end of the first step of tiny", stock)
    print_table("the same of llama-30m, compiled, with an empty cache", cold)
    print_table("the same with the cache of the run before", warm)
    return 0


def first_steps(
    python: Path, folder: Path, settings: Sequence[str], *, compiled: bool
) -> dict[str, Callable[[], float]]:
    """Return for each trainer a function that runs it, and returns the seconds to the end of its first step."""
    folder.mkdir()
    config = load(list(settings))
    work = describe(config, write_tokens(config, folder))
    work = {**work, "compile": compiled, "tuned": compiled, "attention": "sdpa"}
    track = [f"track={'tuned' if compiled else 'portable'}"]

    def started(run: dict[str, Any]) -> float:
        if "failed" in run:
            sys.exit(run["failed"])
        return run["start_up_seconds"]

    def ours(*more: str) -> Callable[[], float]:
        return lambda: seconds_to_first_step(layered_settings(settings, track, more))

    found = {"harness": ours("fingerprint=false"), "harness, with its fingerprint": ours()}
    for name, (program, _) in PEERS.items():
        found[name] = lambda program=program: started(peer(python, program, work))
    return found


def seconds_to_first_step(settings: Sequence[str]) -> float:
    """Return the seconds from the launch of the harness to the first row of its steps.jsonl, appended at once."""
    with tempfile.TemporaryDirectory() as folder:
        steps = Path(folder) / "run" / STEPS_FILE
        began = time.perf_counter()
        command = [sys.executable, "-m", "harness", *settings, f"out={steps.parent}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and not (steps.exists() and steps.stat().st_size):
                time.sleep(0.01)
            found = time.perf_counter() - began
            _, errors = process.communicate()
        if process.returncode:
            sys.exit(errors)
    return found


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
