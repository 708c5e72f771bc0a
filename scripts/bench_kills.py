"""Kills and resumes one training at random moments, saves included, and compares the result with an unbroken run.

    python scripts/bench_kills.py --kills 50

A small training on the CPU saves a checkpoint after every fourth step. Each process gets SIGKILL at a random moment
after it began to train. At the end the norms of the weights, all losses, all digests and the checkpoint's tensors have
to equal those of an uninterrupted run, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch

OVERRIDES = (
    "model=tiny", "workload=smoke", "workload.steps=600", "workload.timing_warmup_steps=2", "workload.interval_steps=2",
    "workload.seq_len=64", "workload.global_batch_size=4", "workload.micro_batch_size=2", "workload.eval_every=100",
    "workload.eval_sequences=4", "checkpoint.every=4", "resume=auto",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        finish(whole)
        in_save = killed = 0
        while killed < options.kills and not (cut / "record.json").exists():
            process = start(cut)
            assert process.stderr is not None
            while process.poll() is None and "step" not in process.stderr.readline():
                pass
            time.sleep(moments.uniform(0.0, 0.4))
            process.kill()
            process.communicate()
            killed += 1
            in_save += any(path.name.startswith(".") for path in (cut / "checkpoints").glob(".*"))
        finish(cut)
        found, expected = (json.loads((one / "record.json").read_text()) for one in (cut, whole))
        attempts = found["attempts"]
        print(f"{killed} kills, {in_save} of them during a save; {len(attempts)} attempts")
        print("resumed from steps:", *(attempt["from_step"] for attempt in attempts))
        same = {part: found[part] == expected[part] for part in ("workload_id", "digests", "losses", "weights")}
        same["checkpoint tensors"] = last_tensors(cut) == last_tensors(whole)
        for part, equal in same.items():
            print(f"{part}: {'the same bits' if equal else 'DIFFERENT'}")
        return 0 if all(same.values()) else 1


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", *OVERRIDES, f"out={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder: Path) -> None:
    process = start(folder)
    _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(errors)


def last_tensors(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor in the newest checkpoint."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    newest = max((folder / "checkpoints").glob("step-*"))
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        dcp_to_torch_save(newest, file.name)
        tensors = torch.load(file.name, weights_only=True)
    return {name: tensor.numpy().tobytes() for name, tensor in sorted(tensors.items())}


if __name__ == "__main__":
    sys.exit(main())
