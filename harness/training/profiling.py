"""Where the time of a step goes: what `profile=true` adds to a run.

It comes after the last measured step, on steps that repeat the run's first batches and whose weights nobody keeps, so
that neither the timed window nor the work knows of it. Three looks are taken, since none shows everything:

- in parts: with a synchronisation at both ends of each part, the host's clock tells what each takes by itself. Parts
  that overlap otherwise do not here, so their sum may exceed a step;
- traced: as the steps run, under PyTorch's profiler, which tells the operations and when none was under way;
- counted: one step under a dispatch mode that adds up the bytes of every operation's operands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import DeviceType, profile, schedule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.backends.base import PARTS, Backend, TrainStep
from harness.errors import RunFailed

STEPS = 3
LISTED_OPERATIONS = 12
FOLDER = "profile"
Step = Callable[[], object]


def profile_steps(
    step: TrainStep,
    batches: Sequence[Sequence[torch.Tensor]],
    learning_rate: float,
    *,
    backend: Backend,
    folder: Path,
    rank: int = 0,
    waited: Callable[[], float | None] = lambda: None,
    uncompiled: Callable[[], AbstractContextManager[Any]],
    advanced: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return what the profile says of one step of this rank, and leave its trace in the run's folder. Collective.

    Args:
        batches: of each step one global batch (this rank's share of it), as `TrainStep` takes them.
        waited: returns the seconds stood still for collectives since the last call, None where that is not known.
        uncompiled: a context in which a compiled model runs operation by operation.

    Raises:
        RunFailed: the trace cannot be written.
    """

    def run(micro_batches: Sequence[torch.Tensor]) -> None:
        step(micro_batches, learning_rate)
        advanced()

    found: dict[str, Any] = {"steps": len(batches), **in_parts(step, run, batches, backend.synchronize, waited)}
    trace = folder / FOLDER / f"trace-rank{rank}.json.gz"
    found |= traced(run, batches, backend, trace)
    found["trace"] = f"{FOLDER}/{trace.name}"
    with uncompiled(), OperandBytes() as counted:
        run(batches[0])
    return {**found, "operand_bytes": counted.total}


def in_parts(
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
    parts = _PartsClock(synchronize, waited, clock)
    if not step.watch_parts(parts):
        return {"parts": None, "between_parts_seconds": None}
    try:
        run(batches[0])
        parts.forget()
        synchronize()
        began = clock()
        for batch in batches:
            run(batch)
        synchronize()
        whole = clock() - began
    finally:
        step.watch_parts(None)
    steps = len(batches)
    seconds = {name: parts.seconds[name] / steps for name in PARTS}
    between = max(0.0, whole / steps - sum(seconds.values()))
    if not parts.knows_waiting:
        # It is there all the same, within the other parts.
        return {"parts": {**seconds, "communication": None}, "between_parts_seconds": between}
    return {"parts": seconds, "between_parts_seconds": between}


class _PartsClock:
    """Adds up the time of each part between two synchronisations."""

    def __init__(
        self, synchronize: Callable[[], None], waited: Callable[[], float | None], clock: Callable[[], float]
    ) -> None:
        self._synchronize, self._waited, self._clock = synchronize, waited, clock
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.knows_waiting = self._waited() is not None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._synchronize()
        began = self._clock()
        yield
        self._synchronize()
        self.seconds[name] += self._clock() - began
        if name in ("forward", "communication"):
            # What is waited for at the end of the backward pass shows itself when the wait is over, one part later.
            waited = self._waited() or 0.0
            self.seconds["backward" if name == "communication" else name] -= waited
            self.seconds["communication"] += waited


def traced(
    run: Callable[[Sequence[torch.Tensor]], None],
    batches: Sequence[Sequence[torch.Tensor]],
    backend: Backend,
    trace: Path,
) -> dict[str, Any]:
    """Write PyTorch's trace of the steps, and return what it says of them.

    Keys: `traced_step_seconds`; `idle_fraction`, of that the share in which no operation was under way on the device,
    None where the profiler does not see the device; `operations`, those that took longest, by their own time.

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
        "operations": _operations(profiler, kind, steps),
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
        if event.device_type == kind and not event.is_user_annotation and not event.name.startswith("ProfilerStep")
    ]


def idle_fraction(intervals: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """Return the share of `seconds` that none of the intervals covers, None if there are none."""
    if not intervals or seconds <= 0:
        return None
    covered, reached = 0.0, -float("inf")
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return min(1.0, max(0.0, 1.0 - covered / seconds))


def _operations(profiler: Any, kind: DeviceType | None, steps: int) -> list[dict[str, Any]]:
    on_host = kind is None or kind == DeviceType.CPU
    found = []
    for average in profiler.key_averages():
        microseconds = average.self_cpu_time_total if on_host else average.self_device_time_total
        if microseconds > 0 and not average.is_user_annotation and not average.key.startswith("ProfilerStep"):
            found.append({"name": average.key, "calls": average.count / steps, "seconds": microseconds / 1e6 / steps})
    return sorted(found, key=lambda operation: -operation["seconds"])[:LISTED_OPERATIONS]


class OperandBytes(TorchDispatchMode):
    """Adds up what every operation reads and writes, as if no two were fused and no cache held anything."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func.namespace not in ("aten", "prims") or func in _NO_TRAFFIC:
            return result
        written = _bytes(result) if result is not None else _bytes(_written_arguments(func, args))
        if func is torch.ops.aten.embedding.default:
            # It reads the rows that it returns, not the whole table.
            self.total += 2 * written
        else:
            self.total += written + _bytes((args, kwargs))
        return result


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
