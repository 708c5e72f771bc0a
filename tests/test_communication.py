"""CommunicationMeter: payload bytes, and exposed time by the host's clock or by the device's events."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch

from harness.training.distributed.communication import CommunicationMeter, MeteredGroup, metered_group


class Ticks:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Marks:
    """A device's event timer with given times."""

    def __init__(self, times: Iterator[float]) -> None:
        self._times, self._marks = times, []

    def mark(self) -> None:
        self._marks.append(next(self._times))

    def intervals_seconds(self) -> list[float]:
        marks, self._marks = self._marks, []
        return [later - earlier for earlier, later in itertools.pairwise(marks)]


def test_waits_from_the_last_bucket_to_the_end_of_the_backward_pass() -> None:
    clock = Ticks()
    meter = CommunicationMeter(events=None, asynchronous=False, clock=clock)
    for begin, end in ((1.0, 1.5), (3.0, 3.25)):
        clock.now = begin - 0.5
        meter.add_payload("data", 100)
        meter.begin_wait("data")  # the first bucket: the backward pass still computes
        clock.now = begin
        meter.add_payload("data", 20)
        meter.begin_wait("data")
        clock.now = end
        meter.end_wait()
    assert meter.pop() == {"data": (240, 0.75)}
    assert meter.pop() == {}


def test_an_end_without_a_begin_is_ignored() -> None:
    clock = Ticks()
    meter = CommunicationMeter(events=None, asynchronous=False, clock=clock)
    clock.now = 9.0
    meter.end_wait()
    assert meter.pop() == {}


def test_device_events_time_the_wait_where_work_is_queued() -> None:
    # Two steps of two buckets each: the wait of each is the time from the last bucket's event to the end.
    meter = CommunicationMeter(events=Marks(iter([0.0, 1.0, 1.25, 10.0, 11.0, 11.5])), asynchronous=True)
    for _ in range(2):
        meter.begin_wait("data")
        meter.begin_wait("data")
        meter.end_wait()
    assert meter.pop() == {"data": (0, 0.75)}


def test_unknown_is_none() -> None:
    meter = CommunicationMeter(events=None, asynchronous=True)
    meter.add_payload("data", 5)
    assert meter.pop() == {"data": (5, None)}


def test_every_collective_is_a_heartbeat() -> None:
    heartbeats = []
    meter = CommunicationMeter(events=None, asynchronous=False, heartbeat=lambda: heartbeats.append(1))
    meter.add_payload("data", 1)
    meter.add_payload("data", 1)
    assert len(heartbeats) == 2


def test_axes_are_apart() -> None:
    clock = Ticks()
    meter = CommunicationMeter(events=None, asynchronous=False, clock=clock)
    for axis, until in (("tensor", 1.0), ("shard", 3.0), ("tensor", 3.5)):
        meter.add_payload(axis, 10)
        meter.begin_wait(axis)
        clock.now = until
        meter.end_wait()
    assert meter.pop() == {"tensor": (20, 1.5), "shard": (10, 2.0)}


def test_waits_on_other_streams_are_unknown() -> None:
    events = Marks(iter([0.0, 1.0, 2.0, 4.0]))
    meter = CommunicationMeter(events=events, asynchronous=True, unseen=frozenset({"shard"}))
    for axis in ("shard", "tensor"):
        meter.add_payload(axis, 8)
        meter.begin_wait(axis)
        meter.end_wait()
    assert meter.pop() == {"shard": (8, None), "tensor": (8, 2.0)}


def test_nothing_is_known_of_an_axis_without_a_meter() -> None:
    meter = CommunicationMeter(events=None, asynchronous=True, unmetered=frozenset({"pipeline"}))
    group: Any = object()
    assert metered_group(group, "pipeline", meter, "cpu") is group
    assert meter.pop() == {"pipeline": (None, None)}


class OneRank:
    """A process group of one rank whose collectives take a second each to wait for."""

    def __init__(self, clock: Ticks) -> None:
        self._clock = clock

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self

    def wait(self) -> bool:
        self._clock.now += 1.0
        return True


@pytest.mark.parametrize(
    ("name", "arguments", "payload_bytes"),
    [
        ("allreduce", ([torch.zeros(3)],), 12),
        ("_allgather_base", (torch.zeros(20), torch.zeros(10, dtype=torch.bfloat16)), 20),
        ("_reduce_scatter_base", (torch.zeros(5), torch.zeros(10)), 40),
        ("alltoall_base", (torch.zeros(6), torch.zeros(6), [], []), 24),
        ("send", ([torch.zeros(7)], 1, 0), 28),
        ("recv", ([torch.zeros(7)], 1, 0), 0),
    ],
)
def test_payload_is_what_this_rank_puts_in(name: str, arguments: tuple[Any, ...], payload_bytes: int) -> None:
    clock = Ticks()
    meter = CommunicationMeter(events=None, asynchronous=False, clock=clock)
    work = getattr(MeteredGroup(cast(Any, OneRank(clock)), "tensor", meter), name)(*arguments)
    clock.now += 5.0  # the computation goes on meanwhile
    work.wait()
    assert meter.pop() == {"tensor": (payload_bytes, 1.0)}
