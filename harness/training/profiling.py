"""Profile of a training step (`profile=true`): phases, operations, idle time and bytes accessed.

It runs after the last measured step, on steps that repeat the run's first batches and whose weights are discarded, so
that it affects neither timing nor losses. It takes three passes, since no single one measures everything:

- time_phases: a synchronization at both ends of each phase, timed by the host's clock. Phases that normally overlap do
  not here, so that their sum may exceed a step;
- trace_steps: PyTorch's profiler, for the operations and for the time in which the device is idle;
- BytesAccessed: a dispatch mode that sums the bytes of every operation's operands in one step.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import DeviceType, profile, schedule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.backends.base import Backend
from harness.backends.step import STEP_PHASES, TrainStep
from harness.config import Config
from harness.errors import RunFailed
from harness.records.run_folder import PROFILE_FOLDER
from harness.schedule import learning_rate
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.process_group import RunProcesses
from harness.training.history import total_exposed_seconds
from harness.training.tuning import force_eager
from harness.workload.data import Dataset

STEPS = 3
MAX_OPERATIONS = 12


def profile_steps(step: TrainStep, config: Config, dataset: Dataset, *, backend: Backend, folder: Path,
                  processes: RunProcesses, stop_requested: Callable[[], bool]) -> dict[str, Any] | None:  # fmt: skip
    """Return the profile of one step of this rank, and write its trace into the run's folder. Collective.

    Returns None if a stop was requested before it was complete.

    Args:
        stop_requested: called after every step; the same answer on all ranks.

    Raises:
        RunFailed: the trace cannot be written.
    """
    rate = learning_rate(config.workload.steps, config.workload)

    def run(micro_batches: Sequence[torch.Tensor]) -> None:
        step(micro_batches, rate)
        processes.heartbeat.beat()
        if stop_requested():
            raise _Stopped

    def exposed_seconds() -> float | None:
        return total_exposed_seconds(processes.ranks.meter.pop().values())

    batches = _first_batches(config, dataset, processes.ranks, pin_memory=backend.pins_host_memory)
    trace = folder / PROFILE_FOLDER / f"trace-rank{processes.ranks.rank}.json.gz"
    try:
        with_phases = time_phases(step, run, batches, backend.synchronize, exposed_seconds)
        traced = trace_steps(run, batches, backend, trace)
        with force_eager(config.track), BytesAccessed() as counted:
            run(batches[0])
    except _Stopped:
        return None
    return {
        "steps": len(batches),
        **with_phases,
        **traced,
        "trace": f"{PROFILE_FOLDER}/{trace.name}",
        "bytes_accessed": counted.total,
    }


def _first_batches(
    config: Config, dataset: Dataset, ranks: Ranks, *, pin_memory: bool
) -> list[tuple[torch.Tensor, ...]]:
    """Return this rank's micro-batches of the run's first steps, int64 [micro_batch_size, seq_len + 1] each."""
    work = config.workload
    share = work.global_batch_size // ranks.layout.shares
    batches = []
    for number in range(min(STEPS, work.steps)):
        batch = torch.from_numpy(dataset.train(number * work.global_batch_size + ranks.share * share, share))
        batches.append((batch.pin_memory() if pin_memory else batch).split(work.micro_batch_size))
    return batches


class _Stopped(Exception):
    """A stop was requested."""


def time_phases(step: TrainStep, run: Callable[[Sequence[torch.Tensor]], None],
                batches: Sequence[Sequence[torch.Tensor]], synchronize: Callable[[], None],
                exposed_seconds: Callable[[], float | None] = lambda: None,
                clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:  # fmt: skip
    """Return `phases`, the mean seconds of each phase of a step, and `host_overhead_seconds`, the time between them.

    Exposed communication is subtracted from the phase in which it occurs, and is the phase `communication`. Both
    values are None if the step is opaque.

    Args:
        exposed_seconds: returns the exposed communication since its last call, None if unknown.
    """
    phases = _PhaseClock(synchronize, exposed_seconds, clock)
    if not step.record_phases(phases):
        return {"phases": None, "host_overhead_seconds": None}
    try:
        run(batches[0])
        phases.reset()
        synchronize()
        began = clock()
        for batch in batches:
            run(batch)
        synchronize()
        total = clock() - began
    finally:
        step.record_phases(None)
    steps = len(batches)
    seconds = {name: phases.seconds[name] / steps for name in STEP_PHASES}
    overhead = max(0.0, total / steps - sum(seconds.values()))
    # Exposed communication that is unknown is part of the other phases.
    known = seconds if phases.knows_exposed else {**seconds, "communication": None}
    return {"phases": known, "host_overhead_seconds": overhead}


class _PhaseClock:
    """Sums the time of each phase between two synchronizations."""

    def __init__(
        self, synchronize: Callable[[], None], exposed_seconds: Callable[[], float | None], clock: Callable[[], float]
    ) -> None:
        self._synchronize, self._exposed_seconds, self._clock = synchronize, exposed_seconds, clock
        self.reset()

    def reset(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STEP_PHASES, 0.0)
        self.knows_exposed = self._exposed_seconds() is not None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._synchronize()
        began = self._clock()
        yield
        self._synchronize()
        self.seconds[name] += self._clock() - began
        if name in ("host_to_device", "forward", "communication"):
            # A wait may still be open at the end of the backward pass, whose waits are therefore read one phase later.
            exposed = self._exposed_seconds() or 0.0
            self.seconds["forward" if name == "forward" else "backward"] -= exposed
            self.seconds["communication"] += exposed


def trace_steps(
    run: Callable[[Sequence[torch.Tensor]], None],
    batches: Sequence[Sequence[torch.Tensor]],
    backend: Backend,
    trace: Path,
) -> dict[str, Any]:
    """Write PyTorch's trace of the steps, and return a summary of it.

    Keys: `traced_step_seconds`; `idle_fraction`, the fraction of that in which no operation ran on the device, None if
    the profiler does not see the device; `operations`, the longest by their own time, empty if the profiler sees only
    the host's calls, whose time is that of launching kernels.

    Raises:
        RunFailed: the trace cannot be written.
    """
    steps = len(batches)
    profiler = profile(
        activities=backend.profiler_activities(), schedule=schedule(wait=0, warmup=1, active=steps, repeat=1)
    )
    with profiler:
        run(batches[0])
        backend.synchronize()
        profiler.step()
        seconds = 0.0
        for batch in batches:
            began = time.perf_counter()
            run(batch)
            backend.synchronize()
            # The profiler's work between two steps is not timed.
            seconds += time.perf_counter() - began
            profiler.step()
    try:
        trace.parent.mkdir(exist_ok=True)
        # Under a new name, so that no link is followed.
        partial = trace.with_name(f".{secrets.token_hex(4)}.{trace.name}")
        profiler.export_chrome_trace(str(partial))
        os.replace(partial, trace)
    except OSError as error:
        raise RunFailed(f"{trace}: the profile's trace cannot be written: {error.strerror or error}") from error
    kind = DeviceType.CPU if not backend.asynchronous else _accelerator_kind(profiler.events())
    return {
        "traced_step_seconds": seconds / steps,
        "idle_fraction": idle_fraction(_intervals(profiler.events(), kind), seconds),
        "operations": [] if kind is None else _list_operations(profiler, kind, steps),
    }


def _accelerator_kind(events: Any) -> DeviceType | None:
    """Return the type of the events that are not the host's, or None if there are none."""
    kinds = {event.device_type for event in events} - {DeviceType.CPU}
    return next(iter(kinds), None)


def _intervals(events: Any, kind: DeviceType | None) -> list[tuple[float, float]]:
    """Return start and end, in seconds, of the operations on a type of device."""
    return [
        (event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in events
        if event.device_type == kind
        and not event.is_user_annotation
        and (kind != DeviceType.CPU or _is_operation(event.name))
    ]


def _is_operation(name: str) -> bool:
    """Return whether a host event is an operation or a compiled graph, and not an annotation or autograd's own work."""
    return name.startswith("## Call Compiled") or ("::" in name and not name.startswith("autograd::"))


def idle_fraction(intervals: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """Return the fraction of `seconds` that no interval covers, or None without intervals."""
    if not intervals or seconds <= 0:
        return None
    covered, reached = 0.0, -float("inf")
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return min(1.0, max(0.0, 1.0 - covered / seconds))


def _list_operations(profiler: Any, kind: DeviceType, steps: int) -> list[dict[str, Any]]:
    found = []
    for average in profiler.key_averages():
        # The profiler also attributes a kernel's time to the host call that launched it: each kernel is listed once.
        on_host = average.device_type == DeviceType.CPU
        microseconds = average.self_cpu_time_total if on_host else average.self_device_time_total
        of_the_device = average.device_type == kind and not average.is_user_annotation
        if of_the_device and microseconds > 0 and not average.key.startswith("ProfilerStep"):
            found.append({"name": average.key, "calls": average.count / steps, "seconds": microseconds / 1e6 / steps})
    return sorted(found, key=lambda operation: -operation["seconds"])[:MAX_OPERATIONS]


class BytesAccessed(TorchDispatchMode):
    """Sums the bytes that every operation reads and writes, as if none were fused and there were no caches."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func.namespace in _NOT_COMPUTING or func in _NO_TRAFFIC:
            return result
        written = _bytes(result) if result is not None else _bytes(_written_arguments(func, args))
        if func is torch.ops.aten.embedding.default:
            # It reads the rows that it returns, not the entire table.
            self.total += 2 * written
        else:
            self.total += written + _bytes((args, kwargs))
        return result


_NOT_COMPUTING = ("profiler", "c10d", "_c10d_functional", "fsdp")
_NO_TRAFFIC = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
    torch.ops.aten._unsafe_view.default,
}


def _written_arguments(func: Any, args: Sequence[Any]) -> list[Any]:
    """Return the arguments that an operation without a result writes to, for instance one on lists of tensors."""
    return [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _bytes(values: Any) -> int:
    total = 0
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            # This rank's part of a sharded tensor; the storage of an expanded one.
            own = getattr(value, "_local_tensor", value)
            for part in (own._indices(), own._values()) if own.is_sparse else (own,):
                total += min(part.numel() * part.element_size(), part.untyped_storage().nbytes())
    return total
