"""Metering of the collectives of a training step: payload bytes and exposed communication time of this rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from harness.backends.step import EventTimer
from harness.training.history import TrainingHistory
from harness.training.observer import LoopObserver

# torch 2.13 renamed both; the old names still work there, with a warning.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class CommunicationMeter:
    """Counts the bytes that this rank hands to collectives, and its exposed communication time.

    Communication that overlaps with computation is not exposed. On a synchronous device the host's clock measures the
    time; where work is queued, the device's events do, if it has them.
    """

    def __init__(
        self,
        *,
        events: EventTimer | None,
        asynchronous: bool,
        heartbeat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._events = events
        self._timed = events is not None or not asynchronous
        self._heartbeat, self._clock = heartbeat, clock
        self._payload_bytes = 0
        self._waited_seconds = 0.0
        self._began: float | None = None
        # For each event, whether the interval that it ends was a wait.
        self._waits: list[bool] = []

    def add_payload(self, payload_bytes: int) -> None:
        """Count one collective's payload: what this rank puts in, before the algorithm's own traffic."""
        self._payload_bytes += payload_bytes
        self._heartbeat()

    def begin_wait(self) -> None:
        """Note that only communication is left from here on; a second call restarts the wait."""
        if self._events is not None:
            self._mark(waited=False)
        self._began = self._clock()

    def end_wait(self) -> None:
        """Note that the wait is over. Does nothing without `begin_wait`."""
        if self._began is None:
            return
        if self._events is not None:
            self._mark(waited=True)
        else:
            self._waited_seconds += self._clock() - self._began
        self._began = None

    def pop(self) -> tuple[int, float | None]:
        """Return payload bytes and exposed seconds (None if unknown) since the last call. Call after a synchronize."""
        waited: float | None = self._waited_seconds if self._timed else None
        if self._events is not None:
            intervals = self._events.intervals_seconds()
            waited = sum(seconds for seconds, counts in zip(intervals, self._waits[1:], strict=False) if counts)
            self._waits.clear()
        payload, self._payload_bytes, self._waited_seconds = self._payload_bytes, 0, 0.0
        return payload, waited

    def _mark(self, *, waited: bool) -> None:
        assert self._events is not None
        self._events.mark()
        self._waits.append(waited)


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

    It does not average: the training step has divided its loss already.
    """

    # Without annotations: DDP compares them with its own types, and postponed ones are strings.
    def hook(_, bucket):
        buffer = bucket.buffer()
        meter.add_payload(buffer.numel() * buffer.element_size())
        work = dist.all_reduce(buffer, async_op=True)
        # The last bucket's call counts: after it the backward pass has nothing left to compute.
        meter.begin_wait()
        assert work is not None
        return work.get_future().then(lambda done: done.value()[0])

    return hook


class _Metered:
    """A custom collective of FSDP2 that meters PyTorch's own.

    Args:
        blocks: true on a synchronous device, where the collective's own time is exposed.
    """

    def __init__(self, meter: CommunicationMeter, *, blocks: bool) -> None:
        self._meter, self._blocks = meter, blocks

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def _metered(self, payload: torch.Tensor, call: Callable[[], Any]) -> Any:
        self._meter.add_payload(payload.numel() * payload.element_size())
        if not self._blocks:
            return call()
        self._meter.begin_wait()
        work = call()
        self._meter.end_wait()
        return work


class MeteredAllGather(_Metered):
    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any,
                 async_op: bool = False) -> Any:  # fmt: skip
        return self._metered(
            input_tensor,
            lambda: _all_gather(output_tensor, input_tensor, group=group, async_op=async_op),
        )


class MeteredReduceScatter(_Metered):
    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any,
                 async_op: bool = False) -> Any:  # fmt: skip
        return self._metered(
            input_tensor,
            lambda: _reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op),
        )
