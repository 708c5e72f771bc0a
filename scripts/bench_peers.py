"""The harness against other trainers on the same work: tokens/s, peak memory, start-up time.

    python scripts/bench_peers.py                                llama-30m, 512 tokens, bf16, five rounds
    python scripts/bench_peers.py model=gpt2-124m workload.global_batch_size=8

The peers are Hugging Face Trainer, accelerate, Lightning Fabric with litgpt's GPT, and a bare PyTorch loop, each in two
ways: `plain` is bf16 and the library's defaults; `best` has torch.compile, fused AdamW, and the fastest attention and
micro-batch size, found by a search before the rounds (the attention first, then the size). The harness's track=tuned
gets the same search for its size; track=portable, as another reference, none. Every run is a fresh process and the runs
of a round take turns, so that a noisy machine disturbs all alike. The peers are installed into their own environment
(--environment, created on first use), without the harness.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from harness_runs import geometric_mean, in_turn, run_harness

from harness.composition import load
from harness.config import Config, intermediate_size
from harness.environment import allowed_cores
from harness.errors import UserError
from harness.text import layered_settings
from harness.workload.data import open_dataset

PROGRAMS = Path(__file__).resolve().parent / "peers"
ENVIRONMENT = Path.home() / ".cache" / "training-harness" / "peers"
REQUIREMENTS = ("transformers==5.24.0", "accelerate==1.15.0", "lightning==2.6.6", "litgpt==0.5.9")
PEERS = {
    "HF Trainer": ("hf_trainer.py", ("sdpa", "eager")),
    "accelerate": ("accelerate_loop.py", ("sdpa", "eager")),
    "Fabric + litgpt": ("fabric_litgpt.py", ("sdpa",)),
    "bare PyTorch": ("bare_loop.py", ("sdpa",)),
}
WORK = ("model=llama-30m", "workload=gpt2", "workload.seq_len=512", "workload.global_batch_size=16",
        "workload.micro_batch_size=4", "workload.steps=7", "workload.timing_warmup_steps=2", "workload.eval_every=0",
        "workload.lr_warmup_steps=2", "precision=bf16")  # fmt: skip
OURS = "harness, track=tuned"
# A run of the search: two compiled and warm steps are enough to find the fastest.
SEARCH_STEPS = {"steps": 4, "timing_warmup_steps": 2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    parser.add_argument("--only", action="append", default=[], help="name of a peer; may be repeated")
    parser.add_argument("overrides", nargs="*", help="settings of the work, as on the harness's command line")
    options = parser.parse_args()
    try:
        config = load(layered_settings(WORK, options.overrides))
    except UserError as error:
        parser.error(str(error))
    python = environment(options.environment)
    with tempfile.TemporaryDirectory() as folder:
        tokens = write_tokens(config, Path(folder))
        ours = layered_settings(WORK, options.overrides)
        tuned = layered_settings(ours, ["track=tuned"])
        size = search_harness(tuned, sizes(asdict(config.workload)))
        runs: dict[str, Any] = {
            OURS: lambda: harness(layered_settings(tuned, [size])),
            "harness, track=portable": lambda: harness(layered_settings(ours, ["track=portable"])),
        }
        for name, (program, attentions) in PEERS.items():
            if options.only and name not in options.only:
                continue
            work = describe(config, tokens)
            plain = {**work, "compile": False, "tuned": False, "attention": "sdpa"}
            best = search(name, python, program, work, attentions)
            runs[f"{name}, plain"] = lambda program=program, work=plain: peer(python, program, work)
            runs[f"{name}, best"] = lambda program=program, work=best: peer(python, program, work)
        found = rounds(runs, options.rounds)
    print_table(found)
    return 0


def environment(folder: Path) -> Path:
    """Return the Python of the peers' environment, and create that first if need be."""
    python = folder / "bin" / "python"
    if not python.exists():
        torch = subprocess.run(
            [sys.executable, "-c", "from importlib.metadata import version; print(version('torch').split('+')[0])"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        print(f"installing the peers into {folder} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", f"torch=={torch}", *REQUIREMENTS], check=True)
    return python


def write_tokens(config: Config, folder: Path) -> Path:
    """Write the tokens of all steps, the same for every trainer, and return the file."""
    dataset = open_dataset(config)
    count = config.workload.steps * config.workload.global_batch_size
    path = folder / "tokens.bin"
    dataset.train(0, count).astype(np.int32).tofile(path)
    return path


def describe(config: Config, tokens: Path) -> dict[str, Any]:
    """Return the fields of `Work` in peers/common.py that all peers share."""
    work = config.workload
    return {
        "tokens": str(tokens),
        "model": {**asdict(config.model), "intermediate_size": intermediate_size(config.model)},
        "seq_len": work.seq_len,
        "global_batch_size": work.global_batch_size,
        "micro_batch_size": work.micro_batch_size,
        "steps": work.steps,
        "timing_warmup_steps": work.timing_warmup_steps,
        "learning_rate": work.learning_rate,
        "threads": config.backend.threads or allowed_cores(),
        "device": config.backend.name,
    }


def search(name: str, python: Path, program: str, work: dict[str, Any], attentions: tuple[str, ...]) -> dict[str, Any]:
    """Return a peer's fastest settings: the attention at the given micro-batch size, then the size."""
    tried: dict[tuple[str, int], float] = {}

    def fastest(candidates: list[tuple[str, int]]) -> tuple[str, int]:
        for attention, size in candidates:
            if (attention, size) not in tried:
                choice = {"compile": True, "tuned": True, "attention": attention, "micro_batch_size": size}
                tried[attention, size] = peer(python, program, {**work, **choice, **SEARCH_STEPS})["tokens_per_second"]
                print_speed(f"{name}, {attention}", size, tried[attention, size])
        return max(candidates, key=lambda candidate: tried[candidate])

    attention, _ = fastest([(attention, work["micro_batch_size"]) for attention in attentions])
    attention, size = fastest([(attention, size) for size in sizes(work)])
    return {**work, "compile": True, "tuned": True, "attention": attention, "micro_batch_size": size}


def sizes(work: dict[str, Any]) -> list[int]:
    """Return the micro-batch sizes to try: the configured one, its half and its double, if they divide the batch."""
    size, batch = work["micro_batch_size"], work["global_batch_size"]
    return [each for each in (size // 2, size, 2 * size) if each and batch % each == 0]


def search_harness(overrides: list[str], tried_sizes: list[int]) -> str:
    """Return the harness's fastest micro-batch size, as a setting."""
    steps = [f"workload.{key}={value}" for key, value in SEARCH_STEPS.items()]
    tried = {}
    for size in tried_sizes:
        setting = f"workload.micro_batch_size={size}"
        tried[setting] = harness(layered_settings(overrides, steps, [setting]))["tokens_per_second"]
        print_speed(OURS, size, tried[setting])
    return max(tried, key=lambda setting: tried[setting])


def print_speed(name: str, size: int, speed: float) -> None:
    print(f"{name}, micro-batch size {size}: {speed:,.0f} tokens/s", flush=True)


def peer(python: Path, program: str, work: dict[str, Any]) -> dict[str, float]:
    """Return the measurements of one run of a peer."""
    command = [str(python), str(PROGRAMS / program), json.dumps({**work, "began": time.time()})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{program} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def harness(overrides: list[str]) -> dict[str, float]:
    """Return the same measurements of one run of the harness."""
    record, seconds = run_harness(overrides)
    timing = record["timing"]
    return {
        "tokens_per_second": timing["tokens_per_second"],
        "peak_memory_bytes": record["memory"]["peak_allocated_bytes"],
        # The whole process less the time after the first step; it includes writing the record.
        "start_up_seconds": seconds - timing["training_seconds"] + timing["first_step_seconds"],
        "loss": record["losses"]["train"][-1],
    }


def rounds(runs: dict[str, Any], count: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for number in range(count):
        for name in in_turn(runs, number):
            found[name].append(runs[name]())
            print(f"round {number + 1}: {name}: {found[name][-1]['tokens_per_second']:,.0f} tokens/s", flush=True)
    return found


def print_table(found: dict[str, list[dict[str, float]]]) -> None:
    print(f"\n| {'run':<28} | tokens/s | {OURS} over it, 95 % interval | peak MiB | start-up s | last loss |")
    print("|---|---|---|---|---|---|")
    for name, each in found.items():
        pairs = zip(found[OURS], each, strict=True)
        ratios = [mine["tokens_per_second"] / other["tokens_per_second"] for mine, other in pairs]
        median = {key: statistics.median(run[key] for run in each) for key in each[0]}
        print(
            f"| {name:<28} | {median['tokens_per_second']:,.0f} | {interval(ratios)} | "
            f"{median['peak_memory_bytes'] / 2**20:,.0f} | {median['start_up_seconds']:.1f} | {median['loss']:.3f} |"
        )


def interval(ratios: list[float]) -> str:
    """Return the median of ratios and the 95 % interval of their geometric mean, as text."""
    _, low, high = geometric_mean(ratios)
    median = f"{statistics.median(ratios):.3f}"
    return f"{median} [{low:.3f}, {high:.3f}]" if len(ratios) > 1 else median


if __name__ == "__main__":
    sys.exit(main())
