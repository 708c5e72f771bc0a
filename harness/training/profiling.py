"""Where the time of a step goes: what `profile=true` adds to a run.

It comes after the last measured step, on steps that repeat the run's first batches and whose weights nobody keeps, so
that neither the timed window nor the work knows of it. Three looks are taken, since none shows everything:

- in phases: with a synchronisation at both ends of each part, the host's clock tells what each takes by itself. Parts
  that overlap otherwise do not here, so their sum may exceed a step;
- trace_steps: as the steps run, under PyTorch's profiler, which tells the operations and when none was under way;
- counted: one step under a dispatch mode that adds up the bytes of every operation's operands.
"""

from __future__ import annotations

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
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.communication import CommunicationMeter
from harness.training.distributed.process_group import RunProcesses
from harness.training.tuning import force_eager
from harness.workload.data import Dataset
from harness.workload.optimizer import learning_rate

STEPS = 3
LISTED_OPERATIONS = 12


def profile_steps(
    step: TrainStep,
    config: Config,
    dataset: Dataset,
    *,
    backend: Backend,
    folder: Path,
    processes: RunProcesses,
    meter: CommunicationMeter,
    stop_requested: Callable[[], bool],
) -> dict[str, Any] | None:
    """Return the profile of one step of this rank, and write its trace into the run's folder. Collective.

    None if a stop was requested before it was complete.

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

    def waited() -> float | None:
        return meter.pop()[1] if processes.ranks.size > 1 else 0.0

    batches = _first_batches(config, dataset, processes.ranks, pin_memory=backend.pins_host_memory)
    trace = folder / PROFILE_FOLDER / f"trace-rank{processes.ranks.rank}.json.gz"
    try:
        with_phases = time_phases(step, run, batches, backend.synchronize, waited)
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
    share = work.global_batch_size // ranks.size
    batches = []
    for number in range(min(STEPS, work.steps)):
        batch = torch.from_numpy(dataset.train(number * work.global_batch_size + ranks.rank * share, share))
        batches.append((batch.pin_memory() if pin_memory else batch).split(work.micro_batch_size))
    return batches


class _Stopped(Exception):
    """A stop was requested."""


def time_phases(
    step: TrainStep,
    run: Callable[[Sequence[torch.Tensor]], None],
    batches: Sequence[Sequence[torch.Tensor]],
    synchronize: Callable[[], None],
    waited: Callable[[], float | None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Return the mean seconds of each part of a step, None where the step is one piece; `between` them, the host's.

    What was stood still for collectives is taken off the part in which it was, and is `communication`.
    """
    phases = _PhaseClock(synchronize, waited, clock)
    if not step.record_phases(phases):
        return {"phases": None, "host_overhead_seconds": None}
    try:
        run(batches[0])
        phases.forget()
        synchronize()
        began = clock()
        for batch in batches:
            run(batch)
        synchronize()
        whole = clock() - began
    finally:
        step.record_phases(None)
    steps = len(batches)
    seconds = {name: phases.seconds[name] / steps for name in STEP_PHASES}
    between = max(0.0, whole / steps - sum(seconds.values()))
    if not phases.knows_waiting:
        # It is there all the same, within the other phases.
        return {"phases": {**seconds, "communication": None}, "host_overhead_seconds": between}
    return {"phases": seconds, "host_overhead_seconds": between}


class _PhaseClock:
    """Adds up the time of each part between two synchronisations."""

    def __init__(
        self, synchronize: Callable[[], None], waited: Callable[[], float | None], clock: Callable[[], float]
    ) -> None:
        self._synchronize, self._waited, self._clock = synchronize, waited, clock
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.seconds: dict[str, float] = dict.fromkeys(STEP_PHASES, 0.0)
        self.knows_waiting = self._waited() is not None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._synchronize()
        began = self._clock()
        yield
        self._synchronize()
        self.seconds[name] += self._clock() - began
        if name in ("host_to_device", "forward", "communication"):
            # What was waited for in a backward pass is asked for one part later: in its end the wait may still be open.
            waited = self._waited() or 0.0
            self.seconds["forward" if name == "forward" else "backward"] -= waited
            self.seconds["communication"] += waited


def trace_steps(
    run: Callable[[Sequence[torch.Tensor]], None],
    batches: Sequence[Sequence[torch.Tensor]],
    backend: Backend,
    trace: Path,
) -> dict[str, Any]:
    """Write PyTorch's trace of the steps, and return what it says of them.

    Keys: `traced_step_seconds`; `idle_fraction`, of that the share in which no operation was under way on the device,
    None where the profiler does not see the device; `operations`, those that took longest, by their own time, none
    where the profiler sees the host's calls only, whose time is that of launching.

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
            # What the profiler does between two steps is left out.
            seconds += time.perf_counter() - began
            profiler.step()
    try:
        trace.parent.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    except OSError as error:
        raise RunFailed(f"{trace}: the profile's trace cannot be written: {error.strerror or error}") from error
    kind = DeviceType.CPU if not backend.asynchronous else _other_device(profiler.events())
    return {
        "traced_step_seconds": seconds / steps,
        "idle_fraction": idle_fraction(_intervals(profiler.events(), kind), seconds),
        "operations": [] if kind is None else _operations(profiler, kind, steps),
    }


def _other_device(events: Any) -> DeviceType | None:
    """Return the kind of device that the profiler saw beside the host, or None."""
    kinds = {event.device_type for event in events} - {DeviceType.CPU}
    return next(iter(kinds), None)


def _intervals(events: Any, kind: DeviceType | None) -> list[tuple[float, float]]:
    """Return the beginnings and ends, in seconds, of the operations on a kind of device."""
    return [
        (event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in events
        if event.device_type == kind and not event.is_user_annotation and (kind != DeviceType.CPU or _works(event.name))
    ]


def _works(name: str) -> bool:
    """Return whether a host event is an operation or a compiled graph, and not what PyTorch or Python does around."""
    return name.startswith("## Call Compiled") or ("::" in name and not name.startswith("autograd::"))


def idle_fraction(intervals: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """Return the share of `seconds` that none of the intervals covers, None if there are none."""
    if not intervals or seconds <= 0:
        return None
    covered, reached = 0.0, -float("inf")
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return min(1.0, max(0.0, 1.0 - covered / seconds))


def _operations(profiler: Any, kind: DeviceType, steps: int) -> list[dict[str, Any]]:
    found = []
    for average in profiler.key_averages():
        # The host's calls are told the time of the kernels that they launched as well, which are listed themselves.
        on_host = average.device_type == DeviceType.CPU
        microseconds = average.self_cpu_time_total if on_host else average.self_device_time_total
        of_the_device = average.device_type == kind and not average.is_user_annotation
        if of_the_device and microseconds > 0 and not average.key.startswith("ProfilerStep"):
            found.append({"name": average.key, "calls": average.count / steps, "seconds": microseconds / 1e6 / steps})
    return sorted(found, key=lambda operation: -operation["seconds"])[:LISTED_OPERATIONS]


class BytesAccessed(TorchDispatchMode):
    """Adds up what every operation reads and writes, as if no two were fused and no cache held anything."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func.namespace in _NOT_COMPUTING or func in _NO_TRAFFIC:
            return result
        written = _bytes(result) if result is not None else _bytes(_written_arguments(func, args))
        if func is torch.ops.aten.embedding.default:
            # It reads the rows that it returns, not the whole table.
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
    """Return the arguments that an operation without a result writes to, as those on lists of tensors do."""
    return [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _bytes(values: Any) -> int:
    total = 0
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            # Of a sharded tensor this rank's part; of an expanded one what there really is.
            own = getattr(value, "_local_tensor", value)
            total += min(own.numel() * own.element_size(), own.untyped_storage().nbytes())
    return total
