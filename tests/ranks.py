"""Starts the processes of one run without a launcher, each with its own words and variables, and one that misbehaves.

`python -m tests.ranks FAULT WORDS...` is one such process: the harness, with what FAULT names done to it.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.conftest import TINY
from tests.zygote import Forked, Zygote

# Both ranks' micro-batches fit into the tiny run's global batch, with accumulation; blocks are short.
WORDS = (*TINY, "workload.global_batch_size=8", "workload.steps=12", "workload.eval_every=6", "parallel=ddp")
FAULT_STEP = 5
# Later than the steps by whose median a spike is told.
SPIKE_STEP = 60


@dataclass
class Ended:
    """How one process ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(
    size: int,
    words: Sequence[str],
    folder: Path,
    *,
    fault: str = "none",
    port: int | None = None,
    variables: Mapping[int, Mapping[str, str]] | None = None,
    zygote: Zygote | None = None,
) -> list[Forked]:
    """Start one process a rank. `variables` are by rank, on top of those that torchrun would set."""
    port = port or free_port()
    started = []
    for rank in range(size):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **(variables or {}).get(rank, {}),
        }
        started.append((zygote or shared_zygote()).start(["tests.ranks", fault, *words], folder, env))
    return started


@cache
def shared_zygote() -> Zygote:
    """Return the zygote that all tests share; it ends with the tests."""
    zygote = Zygote()
    atexit.register(zygote.close)
    return zygote


def end_ranks(started: Sequence[Forked], timeout: float = 90) -> list[Ended]:
    """Wait until all have ended. None is left behind, whatever happens."""
    limit = time.monotonic() + timeout
    try:
        spoken = [process.communicate(timeout=max(1.0, limit - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        Ended(process.returncode, out, err)
        for process, (out, err) in zip(started, spoken, strict=True)
        if process.returncode is not None
    ]


def run_harness(folder: Path, *words: str, fault: str = "none", timeout: float = 120) -> Ended:
    """Run `python -m harness WORDS...` in a folder."""
    program = ["harness"] if fault == "none" else ["tests.ranks", fault]
    process = shared_zygote().start([*program, *words], folder, os.environ)
    return end_ranks([process], timeout)[0]


def run_ranks(size: int, words: Sequence[str], folder: Path, **options: Any) -> list[Ended]:
    return end_ranks(start_ranks(size, words, folder, **options))


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


# What can be done to a run. Each is called on every rank before the harness begins.


def at_step(rank: int, act: Callable[[], object], step: int = FAULT_STEP) -> None:
    """Have one rank do something when it asks for the batch of a step."""
    from harness.training.prefetch import Prefetcher

    ask, asked = Prefetcher.next, [0]

    def ask_and_act(self: Prefetcher) -> Any:
        asked[0] += 1
        if asked[0] >= step and int(os.environ.get("RANK", "0")) == rank:
            act()
        return ask(self)

    Prefetcher.next = ask_and_act


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_on_first_attempt() -> None:
    if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        at_step(1, die)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    time.sleep(1000)


def dawdle() -> None:
    time.sleep(0.05)


def run_out_of_memory() -> None:
    raise MemoryError("out of memory: 3 GiB were asked for")


def find_bad_data() -> None:
    from harness.errors import DataError

    raise DataError("data.path=corpus.bin: holds token id 999, expected ids below 256")


def stumble() -> None:
    raise ZeroDivisionError("a fault of our own")


def have_other_software() -> None:
    if os.environ["RANK"] == "1":
        from harness.backends.cpu import CpuBackend

        CpuBackend.versions = lambda self: {"torch": "1.0"}


def have_other_data() -> None:
    if os.environ["RANK"] == "1":
        from harness.workload.data.synthetic import SyntheticDataset

        train = SyntheticDataset.train
        SyntheticDataset.train = lambda self, first_sample, count: train(self, first_sample + 1, count)


def have_other_weights() -> None:
    if os.environ["RANK"] == "1":
        from harness.training.distributed import parallel

        build = parallel.build_model
        parallel.build_model = lambda model, seed, device, **more: build(model, seed + 1, device, **more)


def find_its_disk_full() -> None:
    if os.environ["RANK"] == "0":
        from harness.errors import RunFailed
        from harness.records.steps import StepsWriter

        append = StepsWriter.append

        def fail_later(self: StepsWriter, rows: Any) -> None:
            kept = list(rows)
            if kept[-1]["step"] >= FAULT_STEP:
                raise RunFailed("steps.jsonl: cannot be written: No space left on device; free some space")
            append(self, kept)

        StepsWriter.append = fail_later


def fill_the_disk() -> None:
    """Have the kernel refuse to let any file grow beyond what all but a checkpoint need."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def change_the_data() -> None:
    with open("corpus.bin", "ab") as file:
        file.write(b"more")


def have_a_clock_that_is_set() -> None:
    tell, shift = time.time, [0.0]
    time.time = lambda: tell() + shift[0]
    at_step(0, lambda: shift.__setitem__(0, 3600.0))


def get_stuck() -> None:
    """Stand still in a step, but hear signals."""
    if Path("run/checkpoints/step-00000002").exists():
        time.sleep(1000)


def have_an_infinite_gradient() -> None:
    import torch

    clip = torch.nn.utils.clip_grad_norm_
    calls = [0]

    def clip_and_act(parameters: Any, *args: Any, **options: Any) -> Any:
        kept = list(parameters)
        calls[0] += 1
        if calls[0] >= FAULT_STEP:
            kept[0].grad.fill_(float("inf"))
        return clip(kept, *args, **options)

    torch.nn.utils.clip_grad_norm_ = clip_and_act


def learn_far_too_fast() -> None:
    from harness.training import loop

    rate = loop.learning_rate
    loop.learning_rate = lambda step, work: rate(step, work) if step < SPIKE_STEP else 3.0


def run_out_of_memory_in_the_profile() -> None:
    import torch

    from harness.training import profiling

    enter = profiling.BytesAccessed.__enter__

    def fail(self: profiling.BytesAccessed) -> Any:
        if os.environ.get("RANK", "0") == "0":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return enter(self)

    profiling.BytesAccessed.__enter__ = fail  # type: ignore[method-assign, assignment]


def be_told_to_stop_in_the_profile() -> None:
    from harness.training import profiling

    look = profiling.trace_steps

    def told(*words: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return look(*words)

    profiling.trace_steps = told


def be_slow_in_the_backward_pass_of_rank_1() -> None:
    """So that rank 0 waits for it where gradients are exchanged."""
    import torch

    backward = torch.Tensor.backward

    def slow(self: Any, *words: Any, **options: Any) -> Any:
        if os.environ.get("RANK") == "1":
            time.sleep(0.1)
        return backward(self, *words, **options)

    torch.Tensor.backward = slow  # type: ignore[method-assign]


def measure_in_no_time() -> None:
    """No fault: small operands and short stretches, for `peak` where its figures do not matter."""
    from harness.training import microbenchmarks as benchmarks

    benchmarks.SIZES, benchmarks.SAMPLE_SECONDS, benchmarks.LAUNCHES = (64, 128), 0.001, 10
    benchmarks.COPY_BYTES, benchmarks.FLUSH_BYTES, benchmarks.ALL_REDUCE_BYTES = 1 << 20, 1 << 12, (1 << 12,)


FAULTS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "quick peak": measure_in_no_time,
    "killed": lambda: at_step(1, die),
    "killed once": die_on_first_attempt,
    "leader killed": lambda: at_step(0, die),
    "frozen": lambda: at_step(1, freeze),
    "hung": lambda: at_step(1, hang),
    "slow": lambda: at_step(1, dawdle, 1),
    "out of memory": lambda: at_step(1, run_out_of_memory),
    "bad data": lambda: at_step(1, find_bad_data),
    "our fault": lambda: at_step(1, stumble),
    "other software": have_other_software,
    "other data": have_other_data,
    "other weights": have_other_weights,
    "disk full": find_its_disk_full,
    "disk full while saving": fill_the_disk,
    "data changed": lambda: at_step(0, change_the_data),
    "clock jumps": have_a_clock_that_is_set,
    "stuck": lambda: at_step(0, get_stuck, 1),
    "bad gradient": have_an_infinite_gradient,
    "loss spike": learn_far_too_fast,
    "out of memory in the profile": run_out_of_memory_in_the_profile,
    "stopped in the profile": be_told_to_stop_in_the_profile,
    "slow backward pass": be_slow_in_the_backward_pass_of_rank_1,
}


def main(words: Sequence[str]) -> int:
    """Do to this process what the first word names, and run the harness with the others."""
    from harness.__main__ import main as harness

    FAULTS[words[0]]()
    return harness(words[1:])


if __name__ == "__main__":
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    sys.exit(main(sys.argv[1:]))
