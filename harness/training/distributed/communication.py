"""Metering of a step's collectives, by axis of the layout: this rank's payload bytes and exposed communication time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import tree_leaves

from harness.backends.step import EventTimer
from harness.training.history import AxisExchange, TrainingHistory
from harness.training.observer import LoopObserver

BACKEND_NAME = "metered"


class CommunicationMeter:
    """Counts the bytes that this rank hands to collectives, and its exposed communication time, by axis.

    Communication that overlaps with computation is not exposed. On a synchronous device the host's clock measures the
    time; where work is queued, the device's events do, if it has them.
    """

    def __init__(
        self,
        *,
        events: EventTimer | None,
        asynchronous: bool,
        unseen: frozenset[str] = frozenset(),
        unmetered: frozenset[str] = frozenset(),
        heartbeat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            unseen: axes of which neither clock nor events see when the computation waits.
            unmetered: axes whose groups have to be PyTorch's own, so that nothing of them is known.
        """
        self.unmetered = unmetered
        self._events = events
        self._timed = events is not None or not asynchronous
        self._unseen = unseen
        self._heartbeat, self._clock = heartbeat, clock
        self._payload_bytes: dict[str, int] = {}
        self._waited_seconds: dict[str, float] = {}
        self._waiting: tuple[str, float] | None = None
        # One entry an event: the axis that was waited for until it, or None after computation.
        self._waits: list[str | None] = []

    def add_payload(self, axis: str, payload_bytes: int) -> None:
        """Count one collective's payload: what this rank puts in, before the algorithm's own traffic."""
        self._payload_bytes[axis] = self._payload_bytes.get(axis, 0) + payload_bytes
        self._heartbeat()

    def begin_wait(self, axis: str) -> None:
        """Note that only communication is left from here on; a second call restarts the wait."""
        if self._events is not None:
            self._mark(None)
        self._waiting = axis, self._clock()

    def end_wait(self) -> None:
        """Note that the wait is over. Does nothing without `begin_wait`."""
        if self._waiting is None:
            return
        axis, began = self._waiting
        if self._events is not None:
            self._mark(axis)
        else:
            self._waited_seconds[axis] = self._waited_seconds.get(axis, 0.0) + self._clock() - began
        self._waiting = None

    def pop(self) -> dict[str, AxisExchange]:
        """Return what was exchanged over each axis since the last call. Call after a synchronize."""
        waited = self._waited_seconds
        if self._events is not None:
            intervals = self._events.intervals_seconds()
            for seconds, axis in zip(intervals, self._waits[1:], strict=False):
                if axis is not None:
                    waited[axis] = waited.get(axis, 0.0) + seconds
            self._waits.clear()
        found = {axis: AxisExchange(None, None) for axis in self.unmetered}
        found |= {
            axis: AxisExchange(
                self._payload_bytes.get(axis, 0),
                waited.get(axis, 0.0) if self._timed and axis not in self._unseen else None,
            )
            for axis in dict.fromkeys((*self._payload_bytes, *waited))
        }
        self._payload_bytes, self._waited_seconds = {}, {}
        return found

    def _mark(self, axis: str | None) -> None:
        assert self._events is not None
        self._events.mark()
        self._waits.append(axis)


class ExchangeObserver(LoopObserver):
    """Adds each interval's payload and exposed communication to the history."""

    def __init__(self, meter: CommunicationMeter, history: TrainingHistory) -> None:
        self._meter, self._history = meter, history

    def interval_begins(self, phase: str) -> None:
        # An evaluation's communication is not part of the interval.
        self._meter.pop()

    def interval_ended(self) -> None:
        self._history.exchanges.append(self._meter.pop())


def allreduce_hook(meter: CommunicationMeter) -> Callable[[Any, Any], Any]:
    """Return a DDP communication hook that sums gradient buckets and meters them.

    It does not average: the training step has divided its loss already. DDP waits in C++ for all buckets together,
    which a MeteredGroup would not see.
    """

    # Without annotations: DDP compares them with its own types, and postponed ones are strings.
    def hook(_, bucket):
        buffer = bucket.buffer()
        meter.add_payload("data", buffer.numel() * buffer.element_size())
        work = dist.all_reduce(buffer, async_op=True)
        # The last bucket's call counts: after it the backward pass has nothing left to compute.
        meter.begin_wait("data")
        assert work is not None
        return work.get_future().then(lambda done: done.value()[0])

    return hook


# Collectives of a process group, and which argument is the payload; recent versions have both of two names of some.
_PAYLOADS = {
    **dict.fromkeys(("allreduce", "allreduce_coalesced", "broadcast", "reduce", "send"), 0),
    **dict.fromkeys(("allgather", "reduce_scatter", "alltoall", "gather", "scatter"), 1),
    **dict.fromkeys(("_allgather_base", "all_gather_single", "_reduce_scatter_base", "reduce_scatter_single"), 1),
    **dict.fromkeys(("allgather_into_tensor_coalesced", "all_gather_single_coalesced"), 1),
    **dict.fromkeys(("reduce_scatter_tensor_coalesced", "reduce_scatter_single_coalesced"), 1),
    **dict.fromkeys(("alltoall_base", "all_to_all_single"), 1),
    **dict.fromkeys(("recv", "barrier"), None),
}
_KNOWN = {name: at for name, at in _PAYLOADS.items() if hasattr(dist.ProcessGroup, name)}


class MeteredGroup(dist.ProcessGroup):
    """A process group of one axis that meters its collectives, which it leaves to PyTorch's own group.

    So every engine is metered alike: FSDP, DTensor, pipelines, and what the harness does itself.
    """

    def __init__(self, inner: dist.ProcessGroup, axis: str, meter: CommunicationMeter) -> None:
        super().__init__(inner.rank(), inner.size())  # pyright: ignore[reportCallIssue] (its stub is of another form)
        self._inner, self._axis, self._meter = inner, axis, meter

    @property
    def group_name(self) -> Any:
        return dist.distributed_c10d._world.pg_names[self]

    def getBackendName(self) -> str:  # noqa: N802 (PyTorch's own name)
        return BACKEND_NAME

    def _get_backend(self, device: torch.device) -> Any:
        return self._inner._get_backend(device)

    def _start_coalescing(self, device: torch.device) -> None:
        self._inner._start_coalescing(device)

    def _end_coalescing(self, device: torch.device) -> Any:
        return self._work(self._inner._end_coalescing(device))

    def _work(self, work: dist.Work | None) -> dist.Work | None:
        return None if work is None else _MeteredWork(work, self._axis, self._meter)


def _metered(name: str, payload_at: int | None) -> Callable[..., Any]:
    def call(self: MeteredGroup, *args: Any) -> Any:
        if payload_at is not None:
            self._meter.add_payload(self._axis, _bytes(args[payload_at]))
        return self._work(getattr(self._inner, name)(*args))

    return call


for _name, _at in _KNOWN.items():
    setattr(MeteredGroup, _name, _metered(_name, _at))


def _bytes(payload: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tree_leaves(payload))


class _MeteredWork(dist.Work):
    """A collective under way whose waits are exposed communication."""

    def __init__(self, inner: dist.Work, axis: str, meter: CommunicationMeter) -> None:
        super().__init__()
        self._inner, self._axis, self._meter = inner, axis, meter

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._meter.begin_wait(self._axis)
        try:
            return self._inner.wait() if timeout is None else self._inner.wait(timeout)
        finally:
            self._meter.end_wait()

    def is_completed(self) -> bool:
        return self._inner.is_completed()

    def get_future(self) -> Any:
        return self._inner.get_future()

    def result(self) -> Any:
        return self._inner.result()


def metered_mesh(mesh: DeviceMesh, meter: CommunicationMeter) -> DeviceMesh:
    """Return a mesh of the same ranks whose collectives are metered, by the name of each dimension. Collective."""
    axes = mesh.mesh_dim_names or ()
    own = zip(axes, mesh.get_all_groups(), strict=True)
    groups = [metered_group(group, axis, meter, mesh.device_type) for axis, group in own]
    return DeviceMesh.from_group(groups, mesh.device_type, mesh=mesh.mesh, mesh_dim_names=axes)


def metered_group(
    group: dist.ProcessGroup, axis: str, meter: CommunicationMeter, device_type: str
) -> dist.ProcessGroup:
    """Return a group of the same ranks whose collectives are metered, if the meter has the axis. Collective over the
    group.
    """
    if axis in meter.unmetered:
        return group

    def make(*_: Any) -> MeteredGroup:
        return MeteredGroup(group, axis, meter)

    dist.Backend.register_backend(BACKEND_NAME, make, devices=[device_type])
    made = dist.new_group(dist.get_process_group_ranks(group), backend=BACKEND_NAME, use_local_synchronization=True)
    assert isinstance(made, dist.ProcessGroup)
    return made
