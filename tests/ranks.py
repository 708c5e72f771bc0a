"""Processes of one run, started without a launcher, each with its own variables and possibly a fault.

`python -m tests.ranks FAULT OVERRIDES...` is one such process: the harness with the fault of that name.
"""

from __future__ import annotations

import atexit
import json
import os
import re
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

from harness.text import layered_settings
from tests.tiny import TINY
from tests.zygote import Forked, Zygote

# The tiny run with a global batch that two ranks can divide, with accumulation.
OVERRIDES = layered_settings(
    TINY, ["workload.global_batch_size=8", "workload.steps=12", "workload.eval_every=6", "parallel=ddp"]
)
FAULT_STEP = 5
# Gloo of torch 2.9 prints its peers, on either stream.
GLOO_LINES = re.compile(r"^\[Gloo\] .*\n", re.MULTILINE)
# Later than the steps whose median a spike is compared with.
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
    overrides: Sequence[str],
    folder: Path,
    *,
    fault: str = "none",
    module: str = "tests.ranks",
    port: int | None = None,
    variables: Mapping[int, Mapping[str, str]] | None = None,
    zygote: Zygote | None = None,
) -> list[Forked]:
    """Start one process per rank, of the module that installs the fault. `variables` by rank add to torchrun's."""
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
        started.append((zygote or shared_zygote()).start([module, fault, *overrides], folder, env))
    return started


@cache
def shared_zygote() -> Zygote:
    """Return the zygote that all tests of this process share; it ends with the tests."""
    zygote = Zygote()
    atexit.register(zygote.close)
    return zygote


def end_ranks(started: Sequence[Forked], timeout: float = 90) -> list[Ended]:
    """Wait for all to end, and kill those that do not."""
    limit = time.monotonic() + timeout
    try:
        outputs = [process.communicate(timeout=max(1.0, limit - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        Ended(process.returncode, GLOO_LINES.sub("", out), GLOO_LINES.sub("", err))
        for process, (out, err) in zip(started, outputs, strict=True)
        if process.returncode is not None
    ]


def run_harness(folder: Path, *argv: str, fault: str = "none", timeout: float = 120) -> Ended:
    """Run `python -m harness ARGV...` in a folder."""
    program = ["harness"] if fault == "none" else ["tests.ranks", fault]
    process = shared_zygote().start([*program, *argv], folder, os.environ)
    return end_ranks([process], timeout)[0]


def run_ranks(size: int, overrides: Sequence[str], folder: Path, **options: Any) -> list[Ended]:
    return end_ranks(start_ranks(size, overrides, folder, **options))


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


# Faults. Each function is called on every rank before the harness starts.


def at_step(rank: int, act: Callable[[], object], step: int = FAULT_STEP) -> None:
    """Call `act` on one rank when it asks for the batch of `step` or of a later one."""
    from harness.training.prefetch import Prefetcher

    ask, asked = Prefetcher.next, [0]

    def ask_and_act(self: Prefetcher) -> Any:
        asked[0] += 1
        if asked[0] >= step and int(os.environ.get("RANK", "0")) == rank:
            act()
        return ask(self)

    Prefetcher.next = ask_and_act


def in_a_pass(rank: int, act: Callable[[], object]) -> None:
    """Call `act` on one rank within a block's forward pass of FAULT_STEP or of a later one."""
    from harness.workload.model import Block

    forward, due = Block.forward, [False]

    def act_and_compute(self: Block, *inputs: Any) -> Any:
        if due[0]:
            act()
        return forward(self, *inputs)

    Block.forward = act_and_compute  # type: ignore[method-assign]
    at_step(rank, lambda: due.__setitem__(0, True))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_on_first_attempt() -> None:
    if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        at_step(1, die)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    time.sleep(1000)


def be_slow() -> None:
    time.sleep(0.05)


def run_out_of_memory() -> None:
    raise MemoryError("out of memory: 3 GiB were asked for")


def find_bad_data() -> None:
    from harness.errors import DataError

    raise DataError("data.path=corpus.bin: holds token id 999, expected ids below 256")


def raise_a_bug() -> None:
    raise ZeroDivisionError("a bug in the harness")


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
    # The last one is of the second of two replicas.
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        from harness.training.distributed import parallel

        build = parallel.build_model
        parallel.build_model = lambda model, seed, device, **more: build(model, seed + 1, device, **more)


def find_disk_full() -> None:
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
    """Limit the size of files, so that only a checkpoint is too large."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def change_the_data() -> None:
    with open("corpus.bin", "ab") as file:
        file.write(b"more")


def set_the_clock() -> None:
    tell, shift = time.time, [0.0]
    time.time = lambda: tell() + shift[0]
    at_step(0, lambda: shift.__setitem__(0, 3600.0))


def get_stuck() -> None:
    """Hang in a step, in which signals still arrive."""
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


def learn_too_fast() -> None:
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


def stop_in_the_profile() -> None:
    from harness.training import profiling

    trace_steps = profiling.trace_steps

    def stop_and_trace(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return trace_steps(*args)

    profiling.trace_steps = stop_and_trace


def slow_backward_pass() -> None:
    """Rank 0 then waits in the all-reduce of the gradients."""
    import torch

    backward = torch.Tensor.backward

    def slow(self: Any, *args: Any, **options: Any) -> Any:
        if os.environ.get("RANK") == "1":
            time.sleep(0.1)
        return backward(self, *args, **options)

    torch.Tensor.backward = slow  # type: ignore[method-assign]


def sleep_in_blocks() -> None:
    """Not a fault: blocks take a set time whatever the host has to do, twice of it in the backward pass."""
    import torch

    from harness.workload.model import Block

    seconds, forward = float(os.environ["BLOCK_SECONDS"]), Block.forward

    class Sleep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            time.sleep(seconds)
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            time.sleep(2 * seconds)
            return gradients[0]

    def sleep_and_run(self: Block, x: torch.Tensor, rotary: Any) -> torch.Tensor:
        return forward(self, Sleep.apply(x), rotary)

    Block.forward = sleep_and_run


def slow_collectives() -> None:
    """Not a fault: each collective of one axis takes at least a set time from its start."""
    from harness.training.distributed import communication

    axis, seconds = os.environ["SLOW_AXIS"], float(os.environ["SLOW_SECONDS"])

    class Slow:
        def __init__(self, work: Any) -> None:
            self._work, self._ready = work, time.perf_counter() + seconds

        def wait(self, *timeout: Any) -> bool:
            done = self._work.wait(*timeout)
            # Not asleep: a core computes more slowly after it slept, which is no communication.
            while time.perf_counter() < self._ready:
                pass
            return done

        def __getattr__(self, name: str) -> Any:
            return getattr(self._work, name)

    make = communication.MeteredGroup._work

    def work_of(self: Any, work: Any) -> Any:
        return make(self, Slow(work) if self._axis == axis and work is not None else work)  # pyright: ignore

    communication.MeteredGroup._work = work_of


def measure_quickly() -> None:
    """Not a fault: small operands and short samples, for tests of `peak` that do not use its values."""
    from harness.training import collective_benchmarks as collectives
    from harness.training import microbenchmarks as benchmarks

    benchmarks.SIZES, benchmarks.SAMPLE_SECONDS, benchmarks.LAUNCHES = (64, 128), 0.001, 10
    benchmarks.COPY_BYTES, benchmarks.FLUSH_BYTES = 1 << 20, 1 << 12
    collectives.SAMPLE_SECONDS, collectives.MAX_BYTES = 0.001, 1 << 14


def lack_all_to_all() -> None:
    import torch.distributed as dist

    def lack(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("ProcessGroupFake does not support alltoall_base\nmore lines")

    measure_quickly()
    dist.all_to_all_single = lack


def die_among_collectives() -> None:
    from harness.training.collective_benchmarks import CollectiveBenchmarks

    measure_quickly()
    sweeps = CollectiveBenchmarks._sweeps

    def die_and_measure(self: CollectiveBenchmarks, *args: Any, **options: Any) -> Any:
        if os.environ["RANK"] == "1":
            die()
        return sweeps(self, *args, **options)

    CollectiveBenchmarks._sweeps = die_and_measure


FAULTS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "quick peak": measure_quickly,
    "sleeping blocks": sleep_in_blocks,
    "slow collectives": slow_collectives,
    "no all-to-all": lack_all_to_all,
    "killed among collectives": die_among_collectives,
    "killed": lambda: at_step(1, die),
    "killed once": die_on_first_attempt,
    "rank 0 killed": lambda: at_step(0, die),
    "frozen": lambda: at_step(1, freeze),
    "hung": lambda: at_step(1, hang),
    "slow": lambda: at_step(1, be_slow, 1),
    "out of memory": lambda: at_step(1, run_out_of_memory),
    "killed in a pass": lambda: in_a_pass(1, die),
    "hung in a pass": lambda: in_a_pass(1, hang),
    "out of memory in a pass": lambda: in_a_pass(1, run_out_of_memory),
    "bug in a pass": lambda: in_a_pass(1, raise_a_bug),
    "bad data": lambda: at_step(1, find_bad_data),
    "bug": lambda: at_step(1, raise_a_bug),
    "other software": have_other_software,
    "other data": have_other_data,
    "other weights": have_other_weights,
    "disk full": find_disk_full,
    "disk full while saving": fill_the_disk,
    "data changed": lambda: at_step(0, change_the_data),
    "clock jumps": set_the_clock,
    "stuck": lambda: at_step(0, get_stuck, 1),
    "bad gradient": have_an_infinite_gradient,
    "loss spike": learn_too_fast,
    "out of memory in the profile": run_out_of_memory_in_the_profile,
    "stopped in the profile": stop_in_the_profile,
    "slow backward pass": slow_backward_pass,
}


def main(argv: Sequence[str]) -> int:
    """Install the fault that the first argument names, and run the harness with the others."""
    from harness.__main__ import main as harness

    FAULTS[argv[0]]()
    return harness(argv[1:])


if __name__ == "__main__":
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    sys.exit(main(sys.argv[1:]))
