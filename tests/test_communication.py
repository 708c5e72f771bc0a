"""CommunicationMeter: payload bytes, and exposed time by the host's clock or by the device's events."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from harness.training.distributed.communication import CommunicationMeter, MeteredAllGather


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
        meter.add_payload(100)
        meter.begin_wait()  # the first bucket: the backward pass still computes
        clock.now = begin
        meter.add_payload(20)
        meter.begin_wait()
        clock.now = end
        meter.end_wait()
    assert meter.pop() == (240, 0.75)
    assert meter.pop() == (0, 0.0)


def test_an_end_without_a_begin_is_ignored() -> None:
    clock = Ticks()
    meter = CommunicationMeter(events=None, asynchronous=False, clock=clock)
    clock.now = 9.0
    meter.end_wait()
    assert meter.pop() == (0, 0.0)


def test_device_events_time_the_wait_where_work_is_queued() -> None:
    # Two steps of two buckets each: the wait of each is the time from the last bucket's event to the end.
    meter = CommunicationMeter(events=Marks(iter([0.0, 1.0, 1.25, 10.0, 11.0, 11.5])), asynchronous=True)
    for _ in range(2):
        meter.begin_wait()
        meter.begin_wait()
        meter.end_wait()
    assert meter.pop() == (0, 0.75)


def test_unknown_is_none() -> None:
    meter = CommunicationMeter(events=None, asynchronous=True)
    meter.add_payload(5)
    assert meter.pop() == (5, None)


def test_every_collective_is_a_heartbeat() -> None:
    heartbeats = []
    meter = CommunicationMeter(events=None, asynchronous=False, heartbeat=lambda: heartbeats.append(1))
    meter.add_payload(1)
    meter.add_payload(1)
    assert len(heartbeats) == 2


def test_payload_is_what_this_rank_puts_in() -> None:
    meter = CommunicationMeter(events=None, asynchronous=False)
    gather = MeteredAllGather(meter, blocks=True)
    gather._metered(torch.zeros(10, dtype=torch.bfloat16), lambda: None)
    assert meter.pop()[0] == 20
