"""Faults of runs: how to cause each, and its expected outcome.

integration/test_faults.py checks every outcome, and `scripts/fault_table.py` writes them into integration/FAULTS.md.
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
from harness.text import layered_settings
from tests.cann_emulator.build import build, environment
from tests.emulated.failures import CASES
from tests.ranks import OVERRIDES, Ended, end_ranks, run_harness, run_ranks, shared_zygote, start_ranks
from tests.tiny import TINY
from tests.zygote import Forked, Zygote

FAILED, REFUSED, SIGTERM, SIGINT = 5, 2, 143, 130
KEPT = (*TINY, "checkpoint.every=2", "resume=auto", "out=run")
LONG = (*KEPT, "workload.steps=100000", "workload.eval_every=0")
SHORT = (*KEPT, "workload.steps=40", "workload.eval_every=0")
ON_TEXT = ("data=text", "data.path=corpus.txt")

STAGES = ("parallel=mesh", "model.num_hidden_layers=3", "parallel.pipeline=3", "fingerprint=false")
CUT_STAGES = (
    "parallel=mesh",
    "model.num_hidden_layers=2",
    "parallel.pipeline=2",
    "parallel.tensor=2",
    "fingerprint=false",
)

Scenario = Callable[[Path], list[Ended]]
"""Runs the harness with a fault in a folder, and returns how each process ended, rank 0 first."""


class Fault(NamedTuple):
    """A scenario and its expected outcome, for a run in the folder `run`."""

    run: Scenario
    exit_code: int
    status: str | None
    """Of the record; None if nothing ran, so that there is no record."""
    message: str
    """A part of the one-line error message, or of the summary if there is no error."""
    silent: tuple[int, ...] = ()
    """Ranks that were killed from outside and print no message."""


def ranks(fault: str, *more: str, size: int = 2, kill_after: bool = False) -> Scenario:
    """Processes with a fault of tests/ranks.py. `kill_after`: kill rank 1, which does not end by itself."""

    def run(folder: Path) -> list[Ended]:
        # Also the set-up has to get on within that time, on a busy machine.
        seconds = (6 if size == 2 else 12) if "hung" in fault else 60
        timeout = f"parallel.timeout_seconds={seconds}"
        started = start_ranks(size, layered_settings(OVERRIDES, [timeout, *more, "out=run"]), folder, fault=fault)
        if kill_after:
            started[0].wait(timeout=60)
            started[1].kill()
        return end_ranks(started)

    return run


def alone(*overrides: str, fault: str = "none") -> Scenario:
    """One process, with a fault of tests/ranks.py."""
    return lambda folder: [run_harness(folder, *overrides, fault=fault)]


def changing_data(folder: Path) -> list[Ended]:
    """A file of token ids that changes while a run has it mapped."""
    (folder / "corpus.bin").write_bytes(bytes(range(128)) * 400)
    on_file = ("data=tokens", "data.path=corpus.bin", "model.vocab_size=65536")
    return [run_harness(folder, *TINY, *on_file, "out=run", fault="data changed")]


def interrupt_run(folder: Path, *overrides: str) -> Path:
    """Start a run, kill it after its second checkpoint, and return its folder."""
    process = shared_zygote().start(["harness", *(overrides or LONG)], folder, os.environ)
    await_checkpoints(process, folder / "run", 2)
    process.kill()
    process.wait()
    return folder / "run"


def await_checkpoints(process: Forked, folder: Path, count: int) -> None:
    limit = time.monotonic() + 120
    while len(checkpoint_steps(folder)) < count:
        assert process.poll() is None, process.output("err")
        assert time.monotonic() < limit
        time.sleep(0.02)


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / f"step-{checkpoint_steps(folder)[-1]:08d}"


def resumed_after(change: Callable[[Path], object], overrides: Sequence[str] = LONG) -> Scenario:
    """A run that is killed, whose folder is changed, and that is resumed."""

    def run(folder: Path) -> list[Ended]:
        change(interrupt_run(folder, *overrides))
        return [run_harness(folder, *overrides)]

    return run


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


def restore_older_steps(run: Path) -> None:
    """Restore steps.jsonl as it was before the newest checkpoint."""
    steps = run / "steps.jsonl"
    kept = steps.read_text().splitlines(keepends=True)[: checkpoint_steps(run)[-1] - 1]
    steps.write_text("".join(kept))


def data_changed_between(folder: Path) -> list[Ended]:
    overrides = [*LONG, *ON_TEXT]
    (folder / "corpus.txt").write_text("The text that the run reads before it is killed... " * 400)
    interrupt_run(folder, *overrides)
    (folder / "corpus.txt").write_text("The text that the run reads after it is resumed... " * 400)
    return [run_harness(folder, *overrides)]


def missing_rank(folder: Path) -> list[Ended]:
    started = start_ranks(2, [*OVERRIDES, "parallel.timeout_seconds=5", "out=run"], folder)
    started[1].kill()
    return end_ranks(started)


def wrong_variables(variables: dict[str, str], rank: int | None = None) -> Scenario:
    """Two processes, both or one of them with wrong variables of the launcher."""

    def run(folder: Path) -> list[Ended]:
        by_rank = dict.fromkeys(range(2) if rank is None else [rank], variables)
        return run_ranks(2, [*OVERRIDES, "parallel.timeout_seconds=5", "out=run"], folder, variables=by_rank)

    return run


def taken_port(folder: Path) -> list[Ended]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        overrides = [*OVERRIDES, "parallel.timeout_seconds=5", "out=run"]
        return run_ranks(2, overrides, folder, port=taken.getsockname()[1])


def two_on_one_folder(folder: Path) -> list[Ended]:
    with shared_zygote().start(["harness", *LONG], folder, os.environ) as first:
        await_checkpoints(first, folder / "run", 1)
        return [run_harness(folder, *LONG)]


def signal_both(number: signal.Signals) -> Scenario:
    """Two processes that both get a signal while they train."""

    def run(folder: Path) -> list[Ended]:
        started = start_ranks(2, [*LONG, "workload.global_batch_size=8", "parallel=fsdp"], folder)
        await_checkpoints(started[0], folder / "run", 1)
        for process in started:
            process.send_signal(number)
        return end_ranks(started)

    return run


def two_sigterms(folder: Path) -> list[Ended]:
    """One process that gets SIGTERM twice in a step that does not end."""
    with shared_zygote().start(["tests.ranks", "stuck", *LONG], folder, os.environ) as process:
        await_checkpoints(process, folder / "run", 1)
        for _ in range(2):
            # Within two seconds, a second signal is the same request.
            time.sleep(2.2)
            process.send_signal(signal.SIGTERM)
        return end_ranks([process])


def on_emulated_device(name: str) -> Scenario:
    """A device that fails. Raises Missing if no device can be emulated."""

    def run(folder: Path) -> list[Ended]:
        cann = build()
        zygote = Zygote(["torch_npu", "harness.backends.npu"], environment(cann))
        try:
            variables = {**os.environ, **environment(cann), **CASES[name].variables}
            return end_ranks([zygote.start(["harness", *CASES[name].overrides, "out=run"], folder, variables)])
        finally:
            zygote.close()

    return run


FAULTS: dict[str, Fault] = {
    # Memory, numbers
    "out of memory on rank 1": Fault(ranks("out of memory"), FAILED, "oom", "rank 1: out of memory"),
    "loss not finite": Fault(
        alone(*TINY, "workload.learning_rate=1e30", "out=run"), FAILED, "diverged", "at step 2 (samples 4 to 7)"
    ),
    "gradient not finite": Fault(
        alone(*TINY, "fingerprint=false", "out=run", fault="bad gradient"),
        FAILED,
        "diverged",
        "the gradient norm became inf at step 5",
    ),
    "more than nonfinite_limit updates skipped": Fault(
        alone(*TINY, "on_nonfinite=skip", "nonfinite_limit=1", "out=run", fault="bad gradient"),
        FAILED,
        "diverged",
        "after 1 skipped update (nonfinite_limit)",
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
    "disk full while an asynchronous checkpoint is written": Fault(
        ranks("disk full while saving", "parallel=fsdp", *KEPT[-3:-1], "checkpoint.asynchronous=true"),
        FAILED,
        "failed",
        "cannot be written: File too large",
    ),
    "checkpoint truncated": Fault(
        resumed_after(lambda run: os.truncate(newest(run) / "__0_0.distcp", 100)),
        FAILED,
        "bad_checkpoint",
        "is damaged: it has 100 bytes",
    ),
    "checkpoint with one bit changed": Fault(
        resumed_after(flip_a_bit), FAILED, "bad_checkpoint", "its checksum differs from the one in manifest.json"
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
    "rank 1 killed (SIGKILL)": Fault(
        ranks("killed"), FAILED, "rank_lost", "rank 1: its process stopped responding", (1,)
    ),
    "rank 1 frozen (SIGSTOP)": Fault(
        ranks("frozen", kill_after=True), FAILED, "rank_lost", "rank 1: its process stopped responding", (1,)
    ),
    "rank 1 hangs": Fault(ranks("hung"), FAILED, "hung", "the stacks of all ranks are in hung.txt"),
    "a bug in the harness on rank 1": Fault(
        ranks("bug"), FAILED, "failed", "rank 1: ZeroDivisionError: a bug in the harness", (1,)
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
    # Layouts: rank 1 is a pipeline's middle stage, or the second of the two ranks that share the first of two stages
    "middle stage killed in a pass": Fault(
        ranks("killed in a pass", *STAGES, size=3),
        FAILED,
        "rank_lost",
        "rank 1 (pipeline 1): its process stopped responding",
        (1,),
    ),
    "middle stage hangs in a pass": Fault(
        ranks("hung in a pass", *STAGES, size=3), FAILED, "hung", "rank 1 (pipeline 1): no progress for 12 s"
    ),
    "middle stage out of memory in a pass": Fault(
        ranks("out of memory in a pass", *STAGES, size=3), FAILED, "oom", "rank 1 (pipeline 1): out of memory"
    ),
    "a bug in a pass of the middle stage": Fault(
        ranks("bug in a pass", *STAGES, size=3),
        FAILED,
        "failed",
        "rank 1 (pipeline 1): ZeroDivisionError: a bug in the harness",
        (1,),
    ),
    "a rank of tensor 2 x pipeline 2 killed in a pass": Fault(
        ranks("killed in a pass", *CUT_STAGES, size=4),
        FAILED,
        "rank_lost",
        "rank 1 (pipeline 0, tensor 1): its process stopped responding",
        (1,),
    ),
    "a rank of tensor 2 x pipeline 2 hangs": Fault(
        ranks("hung", *CUT_STAGES, size=4), FAILED, "hung", "rank 1 (pipeline 0, tensor 1): no progress for 12 s"
    ),
    "a rank of tensor 2 x pipeline 2 out of memory in a pass": Fault(
        ranks("out of memory in a pass", *CUT_STAGES, size=4),
        FAILED,
        "oom",
        "rank 1 (pipeline 0, tensor 1): out of memory",
    ),
    "a replica of a pipeline has other weights": Fault(
        ranks(
            "other weights",
            "parallel=mesh",
            "model.num_hidden_layers=2",
            "parallel.pipeline=2",
            "parallel.data=2",
            "workload.micro_batch_size=1",
            size=4,
        ),
        FAILED,
        "rank_mismatch",
        "differs from rank",
    ),
    # The launcher's part
    "no launcher": Fault(alone(*OVERRIDES, "out=run"), REFUSED, None, "torchrun --nproc-per-node=N -m harness"),
    "rank 1 does not join": Fault(missing_rank, REFUSED, None, "did not join within 5 s", (1,)),
    "MASTER_PORT is taken": Fault(taken_port, REFUSED, None, "is taken by another process", (1,)),
    "WORLD_SIZE too large": Fault(
        wrong_variables({"WORLD_SIZE": "4"}), REFUSED, None, "2, 3 of the ranks 0 to 3 did not join", (1,)
    ),
    "RANK beyond WORLD_SIZE": Fault(
        wrong_variables({"RANK": "7"}, rank=1), REFUSED, None, "RANK: found 7, expected less than 2"
    ),
    "RANK is not a number": Fault(wrong_variables({"RANK": "one"}), REFUSED, None, "RANK: found 'one'"),
    # Devices and clocks
    "device lost during a run": Fault(
        on_emulated_device("vector core exception 507035"), FAILED, "device_fault", "507035"
    ),
    "wall clock set forward by an hour": Fault(
        alone(*TINY, "out=run", fault="clock jumps"), 0, "ok", "the wall clock was set by +3,600 s"
    ),
    # Stopping and going on
    "SIGTERM to both ranks": Fault(signal_both(signal.SIGTERM), SIGTERM, "interrupted", "interrupted"),
    "SIGINT to both ranks": Fault(signal_both(signal.SIGINT), SIGINT, "interrupted", "interrupted"),
    "a second SIGTERM in a step that does not end": Fault(two_sigterms, SIGTERM, "interrupted", "interrupted"),
    "two processes on one folder": Fault(two_on_one_folder, REFUSED, None, "is locked by another process"),
    "resumed with the newest checkpoint gone": Fault(
        resumed_after(remove_newest, SHORT), 0, "ok", "the last resumed at step"
    ),
    "resumed with steps older than the checkpoint": Fault(
        resumed_after(restore_older_steps), FAILED, "failed", "does not hold the steps 1 to"
    ),
}
