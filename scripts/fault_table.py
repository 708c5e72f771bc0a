"""Writes tests/integration/FAULTS.md: what was done to runs of two processes, and what came of it.

    python scripts/fault_table.py > tests/integration/FAULTS.md

The tests (test_parallel.py, test_resume.py) bring about the same faults and hold the outcome fast; this shows it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from harness.attempts import checkpoint_steps  # noqa: E402
from tests.conftest import TINY  # noqa: E402
from tests.ranks import WORDS, Ended, end_ranks, run_harness, run_ranks, start_ranks  # noqa: E402

KEPT = (*TINY, "checkpoint.every=2", "resume=auto", "out=run")
LONG = (*KEPT, "workload.steps=100000", "workload.eval_every=0")


def ranks(fault: str, *more: str) -> Callable[[Path], Ended]:
    def bring_about(folder: Path) -> Ended:
        timeout = "parallel.timeout_seconds=6" if fault == "hung" else "parallel.timeout_seconds=60"
        started = start_ranks(2, [*WORDS, timeout, *more, "out=run"], folder, fault=fault)
        if fault == "frozen":
            started[0].wait(timeout=60)
            started[1].kill()
        return end_ranks(started)[0]

    return bring_about


def alone(*words: str) -> Callable[[Path], Ended]:
    return lambda folder: run_harness(folder, *words)


def damaged(change: Callable[[Path], object]) -> Callable[[Path], Ended]:
    def bring_about(folder: Path) -> Ended:
        cut_off(folder)
        newest = folder / "run" / "checkpoints" / f"step-{checkpoint_steps(folder / 'run')[-1]:08d}"
        change(newest)
        return run_harness(folder, *LONG)

    return bring_about


def cut_off(folder: Path) -> None:
    """Leave a run that was killed after its second checkpoint."""
    from tests.ranks import shared_zygote

    process = shared_zygote().start(["harness", *LONG], folder, os.environ)
    while len(checkpoint_steps(folder / "run")) < 2:
        time.sleep(0.02)
    process.kill()
    process.wait()


def manifest(**changes: object) -> Callable[[Path], object]:
    def change(checkpoint: Path) -> object:
        file = checkpoint / "manifest.json"
        return file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def missing_rank(folder: Path) -> Ended:
    started = start_ranks(2, [*WORDS, "parallel.timeout_seconds=5", "out=run"], folder)
    started[1].kill()
    return end_ranks(started)[0]


def taken_port(folder: Path) -> Ended:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [*WORDS, "parallel.timeout_seconds=5", "out=run"]
        return run_ranks(2, words, folder, port=taken.getsockname()[1])[0]


def two_on_one_folder(folder: Path) -> Ended:
    from tests.ranks import shared_zygote

    first = shared_zygote().start(["harness", *LONG], folder, os.environ)
    while not checkpoint_steps(folder / "run"):
        time.sleep(0.02)
    second = run_harness(folder, *LONG)
    first.kill()
    first.wait()
    return second


def stopped(folder: Path) -> Ended:
    started = start_ranks(2, [*LONG, "workload.global_batch_size=8", "parallel=fsdp"], folder)
    while not checkpoint_steps(folder / "run"):
        time.sleep(0.02)
    for process in started:
        process.send_signal(signal.SIGTERM)
    return end_ranks(started)[0]


FAULTS: dict[str, Callable[[Path], Ended]] = {
    "out of memory on rank 1": ranks("out of memory"),
    "bad data on rank 1": ranks("bad data"),
    "rank 1 killed (SIGKILL)": ranks("killed"),
    "rank 1 frozen (SIGSTOP)": ranks("frozen"),
    "rank 1 hangs": ranks("hung"),
    "a fault of our own on rank 1": ranks("our fault"),
    "disk full on rank 0": ranks("disk full"),
    "rank 1 has other software": ranks("other software"),
    "rank 1 has other data": ranks("other data"),
    "rank 1 has other weights": ranks("other weights"),
    "rank 1 does not come": missing_rank,
    "MASTER_PORT is taken": taken_port,
    "no launcher": alone(*WORDS, "out=run"),
    "SIGTERM to both ranks": stopped,
    "two processes on one folder": two_on_one_folder,
    "loss not finite": alone(*TINY, "workload.learning_rate=1e30", "out=run"),
    "checkpoint truncated": damaged(lambda folder: os.truncate(folder / "__0_0.distcp", 100)),
    "checkpoint of another workload": damaged(manifest(workload_id="0" * 16)),
    "checkpoint of a newer version": damaged(manifest(format_version=99)),
    "checkpoint without its manifest": damaged(lambda folder: (folder / "manifest.json").unlink()),
}


def main() -> None:
    print("# What was done to runs, and what came of it\n")
    print("Written by `python scripts/fault_table.py`; the tests hold it fast. Of several processes rank 0's words and")
    print("exit code are shown; the others say nothing and end with the same code.\n")
    print("| fault | exit code | record's status | seconds | what the user is told |\n|---|---|---|---|---|")
    for name, bring_about in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            ended = bring_about(Path(folder))
            seconds = time.monotonic() - began
            record = Path(folder) / "run" / "record.json"
            status = json.loads(record.read_text())["status"] if record.exists() else "no record"
            said = ended.errors[-1] if ended.errors else ended.err.strip().splitlines()[-1]
            said = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", said.replace(folder, "")).replace("|", "\\|")
        print(f"| {name} | {ended.code} | {status} | {seconds:.0f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
