"""What long runs of several processes meet with: how each is brought about, and what is to come of it.

The tests (integration/test_faults.py) hold every outcome fast, and `scripts/fault_table.py` writes it down for people.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.records.run_folder import checkpoint_steps
from tests.cann_emulator.build import build, environment
from tests.conftest import TINY
from tests.emulated.failures import CASES
from tests.ranks import WORDS, Ended, end_ranks, run_harness, run_ranks, shared_zygote, start_ranks
from tests.zygote import Forked, Zygote

FAILED, REFUSED, SIGTERM, SIGINT = 5, 2, 143, 130
KEPT = (*TINY, "checkpoint.every=2", "resume=auto", "out=run")
LONG = (*KEPT, "workload.steps=100000", "workload.eval_every=0")
SHORT = (*KEPT, "workload.steps=40", "workload.eval_every=0")
ON_TEXT = ("data=text", "data.path=corpus.txt")

BringAbout = Callable[[Path], list[Ended]]


class Fault(NamedTuple):
    """One thing that can befall a run in the folder `run`."""

    bring_about: BringAbout
    """Returns how each process ended, rank 0 first."""
    exit_code: int
    status: str | None
    """Of the record; None where there is to be none, since nothing was run."""
    said: str
    """What the user is told: in the one line of the error, or else in the summary."""
    spared: tuple[int, ...] = ()
    """Processes that were killed from outside and say nothing."""


def ranks(fault: str, *more: str, kill_after: bool = False) -> BringAbout:
    """Two processes, with a fault of tests/ranks.py. `kill_after`: rank 1 does not end by itself, nor is waited for."""

    def bring_about(folder: Path) -> list[Ended]:
        timeout = "parallel.timeout_seconds=6" if fault == "hung" else "parallel.timeout_seconds=60"
        started = start_ranks(2, [*WORDS, timeout, *more, "out=run"], folder, fault=fault)
        if kill_after:
            started[0].wait(timeout=60)
            started[1].kill()
        return end_ranks(started)

    return bring_about


def alone(*words: str, fault: str = "none") -> BringAbout:
    return lambda folder: [run_harness(folder, *words, fault=fault)]


def changing_data(folder: Path) -> list[Ended]:
    """A file of token ids that is written to while a run has it mapped."""
    (folder / "corpus.bin").write_bytes(bytes(range(128)) * 400)
    on_file = ("data=tokens", "data.path=corpus.bin", "model.vocab_size=65536")
    return [run_harness(folder, *TINY, *on_file, "out=run", fault="data changed")]


def cut_off(folder: Path, *words: str) -> Path:
    """Leave a run that was killed after its second checkpoint, and return its folder."""
    process = shared_zygote().start(["harness", *(words or LONG)], folder, os.environ)
    await_checkpoints(process, folder / "run", 2)
    process.kill()
    process.wait()
    return folder / "run"


def await_checkpoints(process: Forked, folder: Path, count: int) -> None:
    while len(checkpoint_steps(folder)) < count:
        assert process.poll() is None, process.said("err")
        time.sleep(0.02)


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / f"step-{checkpoint_steps(folder)[-1]:08d}"


def resumed_after(change: Callable[[Path], object], words: Sequence[str] = LONG) -> BringAbout:
    """A run that is cut off, changed in its folder, and resumed."""

    def bring_about(folder: Path) -> list[Ended]:
        change(cut_off(folder, *words))
        return [run_harness(folder, *words)]

    return bring_about


def flip_a_bit(run: Path) -> None:
    file = newest(run) / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def manifest(**changes: object) -> Callable[[Path], object]:
    def change(run: Path) -> object:
        file = newest(run) / "manifest.json"
        return file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def remove_newest(run: Path) -> None:
    checkpoint = newest(run)
    checkpoint.rename(run.parent / "moved-away")


def bring_back_older_steps(run: Path) -> None:
    """As from a copy of the folder that was made before its newest checkpoint."""
    steps = run / "steps.jsonl"
    kept = steps.read_text().splitlines(keepends=True)[: checkpoint_steps(run)[-1] - 1]
    steps.write_text("".join(kept))


def data_changed_between(folder: Path) -> list[Ended]:
    words = [*LONG, *ON_TEXT]
    (folder / "corpus.txt").write_text("What is written down once more is not what was read. " * 400)
    cut_off(folder, *words)
    (folder / "corpus.txt").write_text("What is written down anew cannot be what was read. " * 400)
    return [run_harness(folder, *words)]


def missing_rank(folder: Path) -> list[Ended]:
    started = start_ranks(2, [*WORDS, "parallel.timeout_seconds=5", "out=run"], folder)
    started[1].kill()
    return end_ranks(started)


def world_of(variables: dict[str, str], rank: int | None = None) -> BringAbout:
    """Two processes of which the launcher told one, or both, something wrong."""

    def bring_about(folder: Path) -> list[Ended]:
        told = dict.fromkeys(range(2) if rank is None else [rank], variables)
        return run_ranks(2, [*WORDS, "parallel.timeout_seconds=5", "out=run"], folder, variables=told)

    return bring_about


def taken_port(folder: Path) -> list[Ended]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [*WORDS, "parallel.timeout_seconds=5", "out=run"]
        return run_ranks(2, words, folder, port=taken.getsockname()[1])


def two_on_one_folder(folder: Path) -> list[Ended]:
    with shared_zygote().start(["harness", *LONG], folder, os.environ) as first:
        await_checkpoints(first, folder / "run", 1)
        return [run_harness(folder, *LONG)]


def told_to_stop(number: signal.Signals) -> BringAbout:
    """Two processes, both told to stop while they train."""

    def bring_about(folder: Path) -> list[Ended]:
        started = start_ranks(2, [*LONG, "workload.global_batch_size=8", "parallel=fsdp"], folder)
        await_checkpoints(started[0], folder / "run", 1)
        for process in started:
            process.send_signal(number)
        return end_ranks(started)

    return bring_about


def told_twice(folder: Path) -> list[Ended]:
    """One process that is told to stop in a step that does not end, and told again."""
    with shared_zygote().start(["tests.ranks", "stuck", *LONG], folder, os.environ) as process:
        await_checkpoints(process, folder / "run", 1)
        for _ in range(2):
            time.sleep(1.0)
            process.send_signal(signal.SIGTERM)
        return end_ranks([process])


def on_emulated_device(name: str) -> BringAbout:
    """A device that fails; raises Missing where none can be emulated."""

    def bring_about(folder: Path) -> list[Ended]:
        cann = build()
        zygote = Zygote(["torch_npu", "harness.backends.npu"], environment(cann))
        try:
            variables = {**os.environ, **environment(cann), **CASES[name].variables}
            return end_ranks([zygote.start(["harness", *CASES[name].words, "out=run"], folder, variables)])
        finally:
            zygote.close()

    return bring_about


FAULTS: dict[str, Fault] = {
    # Memory, numbers
    "out of memory on rank 1": Fault(ranks("out of memory"), FAILED, "oom", "rank 1: out of memory"),
    "loss not finite": Fault(
        alone(*TINY, "workload.learning_rate=1e30", "out=run"), FAILED, "diverged", "at step 2 (samples 4 to 7)"
    ),
    "gradient not finite": Fault(
        alone(*TINY, "out=run", fault="bad gradient"), FAILED, "diverged", "the gradient norm became inf at step 5"
    ),
    "more than nonfinite_limit updates skipped": Fault(
        alone(*TINY, "on_nonfinite=skip", "nonfinite_limit=1", "out=run", fault="bad gradient"),
        FAILED,
        "diverged",
        "after 1 updates had been skipped (nonfinite_limit)",
    ),
    "loss spike": Fault(
        alone(*TINY, "workload.steps=80", "loss_spike_factor=1.5", "out=run", fault="loss spike"),
        FAILED,
        "loss_spike",
        "times the median of the 50 steps before",
    ),
    # Disks and files
    "disk full on rank 0": Fault(ranks("disk full"), FAILED, "failed", "rank 0: steps.jsonl: cannot be written"),
    "disk full while saving": Fault(
        alone(*KEPT, fault="disk full while saving"), FAILED, "failed", "cannot be written: File too large"
    ),
    "checkpoint truncated": Fault(
        resumed_after(lambda run: os.truncate(newest(run) / "__0_0.distcp", 100)),
        FAILED,
        "bad_checkpoint",
        "is damaged: it has 100 bytes",
    ),
    "checkpoint with one bit changed": Fault(
        resumed_after(flip_a_bit), FAILED, "bad_checkpoint", "its checksum is not the one in manifest.json"
    ),
    "checkpoint of another workload": Fault(
        resumed_after(manifest(workload_id="0" * 16)), FAILED, "bad_checkpoint", "is of workload 0000000000000000"
    ),
    "checkpoint of a newer version": Fault(
        resumed_after(manifest(format_version=99)), FAILED, "bad_checkpoint", "is newer than this harness reads"
    ),
    "checkpoint without its manifest": Fault(
        resumed_after(lambda run: (newest(run) / "manifest.json").unlink()),
        FAILED,
        "bad_checkpoint",
        "manifest.json: cannot be read",
    ),
    "data file changed while it is read": Fault(
        changing_data, FAILED, "failed", "has changed since the run began to read it"
    ),
    "data file changed before a resume": Fault(
        data_changed_between, FAILED, "bad_checkpoint", "the data are not what the run began with"
    ),
    "bad data on rank 1": Fault(
        ranks("bad data"), FAILED, "failed", "rank 1: data.path=corpus.bin: holds token id 999"
    ),
    # Ranks
    "rank 1 killed (SIGKILL)": Fault(ranks("killed"), FAILED, "rank_lost", "rank 1: its process has gone", (1,)),
    "rank 1 frozen (SIGSTOP)": Fault(
        ranks("frozen", kill_after=True), FAILED, "rank_lost", "rank 1: its process has gone", (1,)
    ),
    "rank 1 hangs": Fault(ranks("hung"), FAILED, "hung", "what each was doing is in hung.txt"),
    "a fault of our own on rank 1": Fault(
        ranks("our fault"), FAILED, "failed", "rank 1: ZeroDivisionError: a fault of our own", (1,)
    ),
    "rank 1 has other software": Fault(
        ranks("other software"), FAILED, "rank_mismatch", "rank 1 differs from rank 0 in its software"
    ),
    "rank 1 has other data": Fault(
        ranks("other data"), FAILED, "rank_mismatch", "rank 1 differs from rank 0 in its data"
    ),
    "rank 1 has other weights": Fault(
        ranks("other weights"), FAILED, "rank_mismatch", "rank 1 differs from rank 0 in the initial weights"
    ),
    # The launcher's part
    "no launcher": Fault(alone(*WORDS, "out=run"), REFUSED, None, "torchrun --nproc-per-node=N -m harness"),
    "rank 1 does not come": Fault(missing_rank, REFUSED, None, "did not come within 5 s", (1,)),
    "MASTER_PORT is taken": Fault(taken_port, REFUSED, None, "is taken by another process", (1,)),
    "WORLD_SIZE too large": Fault(
        world_of({"WORLD_SIZE": "4"}), REFUSED, None, "2, 3 of the ranks 0 to 3 did not come", (1,)
    ),
    "RANK beyond WORLD_SIZE": Fault(
        world_of({"RANK": "7"}, rank=1), REFUSED, None, "RANK: found 7, expected less than 2"
    ),
    "RANK is no number": Fault(world_of({"RANK": "one"}), REFUSED, None, "RANK: found 'one'"),
    # Devices and clocks
    "device lost in mid-run": Fault(
        on_emulated_device("vector core exception 507035"), FAILED, "device_fault", "507035"
    ),
    "wall clock set forward by an hour": Fault(
        alone(*TINY, "out=run", fault="clock jumps"), 0, "ok", "the wall clock was set by +3,600 s"
    ),
    # Stopping and going on
    "SIGTERM to both ranks": Fault(told_to_stop(signal.SIGTERM), SIGTERM, "interrupted", "interrupted"),
    "SIGINT to both ranks": Fault(told_to_stop(signal.SIGINT), SIGINT, "interrupted", "interrupted"),
    "a second SIGTERM in a step that does not end": Fault(told_twice, SIGTERM, "interrupted", "interrupted"),
    "two processes on one folder": Fault(two_on_one_folder, REFUSED, None, "another process is at work on the run"),
    "resumed with the newest checkpoint gone": Fault(
        resumed_after(remove_newest, SHORT), 0, "ok", "the last went on from step"
    ),
    "resumed with steps older than the checkpoint": Fault(
        resumed_after(bring_back_older_steps), FAILED, "failed", "does not hold the steps 1 to"
    ),
}
