"""Kills and resumes one training at random moments, saves included, and compares the result with an unbroken run.

    python scripts/bench_kills.py --kills 50
    python scripts/bench_kills.py --kills 20 --layout 'tensor=2 pipeline=2'
    python scripts/bench_kills.py --kills 20 --asynchronous

A small training on the CPU saves a checkpoint after every fourth step. At a random moment after it began to train one
rank, or every one, gets SIGKILL; the others have to end by themselves. At the end the norms of the weights, all losses,
all digests and the checkpoint's tensors have to equal those of an unbroken run, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch  # noqa: E402

from tests.layouts import ONE_PROCESS, start  # noqa: E402
from tests.ranks import record  # noqa: E402
from tests.zygote import Forked  # noqa: E402

OVERRIDES = (
    "model=tiny", "workload=smoke", "workload.steps=600", "workload.timing_warmup_steps=2", "workload.interval_steps=2",
    "workload.seq_len=64", "workload.global_batch_size=4", "workload.micro_batch_size=2", "workload.eval_every=100",
    "workload.eval_sequences=4", "checkpoint.every=4", "resume=auto",
)  # fmt: skip
# A kill comes within the time of this number of steps, two saves included.
STEPS_BEFORE_A_KILL = 8
# For the ranks that were not killed to notice it, and for a run to end.
END_TIMEOUT_SECONDS, RUN_TIMEOUT_SECONDS = 60, 3600
RUN_FAILED = 5


def main() -> int:
    options = parse()
    asynchronous = ["checkpoint.asynchronous=true"] if options.asynchronous else []
    overrides = [*OVERRIDES, *asynchronous, f"workload.steps={options.steps}"]
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole, cut = folder / "whole", folder / "cut"
        finish(start(folder, options.layout, overrides, "whole"))
        timing = record(whole)["timing"]
        step_seconds = (timing["training_seconds"] + timing["checkpoint_seconds"]) / options.steps
        in_save = all_ranks = killed = 0
        slowest_end = 0.0
        while killed < options.kills:
            started = start(folder, options.layout, overrides, "cut")
            await_training(started)
            time.sleep(moments.uniform(0.0, STEPS_BEFORE_A_KILL * step_seconds))
            if any(process.poll() is not None for process in started):
                sys.exit(f"the training ended after {killed} kills; give it more --steps")
            victims = started if moments.random() < 0.5 else [moments.choice(started)]
            slowest_end = max(slowest_end, kill(victims, started))
            killed, all_ranks = killed + 1, all_ranks + (len(victims) == len(started))
            in_save += any(path.name.startswith(".") for path in (cut / "checkpoints").glob(".*"))
        finish(start(folder, options.layout, overrides, "cut"))
        print(f"{options.layout}: {killed} kills, {all_ranks} of all ranks, {in_save} during a save")
        print(f"the ranks that were not killed ended within {slowest_end:.1f} s")
        return compare(cut, whole)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--layout", default=ONE_PROCESS, metavar="'AXIS=N ...'")
    parser.add_argument("--asynchronous", action="store_true", help="write checkpoints while the training goes on")
    return parser.parse_args()


def await_training(started: Sequence[Forked]) -> None:
    while all(process.poll() is None for process in started) and "step" not in started[0].output("err"):
        time.sleep(0.01)


def kill(victims: Sequence[Forked], started: Sequence[Forked]) -> float:
    """Kill some processes, and return the seconds in which the others ended. Exit if they do not end as they should."""
    for process in victims:
        process.kill()
    began = time.monotonic()
    for rank, process in enumerate(started):
        process.wait(timeout=END_TIMEOUT_SECONDS)
        if process not in victims and process.returncode != RUN_FAILED:
            sys.exit(f"rank {rank} ended with {process.returncode}: {process.output('err')}")
    return time.monotonic() - began


def finish(started: Sequence[Forked]) -> None:
    for process in started:
        process.wait(timeout=RUN_TIMEOUT_SECONDS)
        if process.returncode != 0:
            sys.exit(process.output("err"))


def compare(cut: Path, whole: Path) -> int:
    """Print which results are the same bits, and return the exit code."""
    found, expected = record(cut), record(whole)
    print(f"{len(found['attempts'])} attempts, from steps", *(attempt["from_step"] for attempt in found["attempts"]))
    same = {part: found[part] == expected[part] for part in ("workload_id", "digests", "losses", "weights")}
    same["checkpoint tensors"] = last_tensors(cut) == last_tensors(whole)
    for part, equal in same.items():
        print(f"{part}: {'the same bits' if equal else 'DIFFERENT'}")
    return 0 if all(same.values()) else 1


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
