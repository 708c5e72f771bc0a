"""The step clock: host time between two synchronizations is the headline, on every device."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count

import pytest

from harness.errors import RunFailed
from harness.training.timing import StepClock


class FakeEvents:
    """Device events two seconds apart, with a log of the calls."""

    def __init__(self, log: list[str]) -> None:
        self._log, self._marks = log, 0

    def mark(self) -> None:
        self._log.append("mark")
        self._marks += 1

    def intervals_seconds(self) -> list[float]:
        self._log.append("read events")
        marks, self._marks = self._marks, 0
        return [2.0] * (marks - 1)


def scripted(*readings: float) -> Callable[[], float]:
    remaining = iter(readings)
    return lambda: next(remaining)


def test_an_interval_is_the_time_between_two_synchronizations() -> None:
    log: list[str] = []

    def clock() -> float:
        log.append("clock")
        return {1: 10.0, 2: 16.0}[log.count("clock")]

    timer = StepClock(lambda: log.append("sync"), None, asynchronous=True, clock=clock)
    timer.begin(5)
    for _ in range(3):
        timer.step_done()
    interval = timer.end(7)
    # Synchronize, then read: in the other order, work of the last interval would count here.
    assert log == ["sync", "clock", "sync", "clock"]
    assert interval.seconds == 6.0
    assert (interval.first_step, interval.last_step, interval.steps) == (5, 7, 3)


def test_asynchronous_device_without_events_gives_the_mean_not_the_queueing_time() -> None:
    timer = StepClock(lambda: None, None, asynchronous=True, clock=scripted(0.0, 6.0))
    timer.begin(1)
    for _ in range(3):
        timer.step_done()
    assert timer.end(3).step_seconds == [2.0, 2.0, 2.0]
    assert timer.step_seconds_method == "interval_mean"


def test_synchronous_device_times_each_step_on_the_host() -> None:
    timer = StepClock(lambda: None, None, asynchronous=False, clock=scripted(0.0, 1.0, 3.0, 6.0, 6.5))
    timer.begin(1)
    for _ in range(3):
        timer.step_done()
    interval = timer.end(3)
    assert interval.step_seconds == [1.0, 2.0, 3.0]
    assert interval.seconds == 6.5
    assert interval.device_seconds is None
    assert timer.step_seconds_method == "host"


def test_events_are_read_after_the_window_and_are_never_the_headline() -> None:
    log: list[str] = []
    clock = scripted(0.0, 7.0)
    timer = StepClock(lambda: log.append("sync"), FakeEvents(log), asynchronous=True, clock=clock)
    timer.begin(1)
    for _ in range(3):
        timer.step_done()
    interval = timer.end(3)
    assert log == ["sync", "mark", "mark", "mark", "mark", "sync", "read events"]
    assert interval.step_seconds == [2.0, 2.0, 2.0]
    assert interval.device_seconds == 6.0
    assert interval.seconds == 7.0
    assert timer.step_seconds_method == "device_event"


def test_data_wait_belongs_to_its_own_interval() -> None:
    timer = StepClock(lambda: None, None, asynchronous=True, clock=map(float, count()).__next__)
    timer.begin(1)
    timer.waited(0.25)
    timer.waited(0.5)
    timer.step_done()
    assert timer.end(1).data_wait_seconds == 0.75
    timer.begin(2)
    timer.step_done()
    assert timer.end(2).data_wait_seconds == 0.0


def test_a_step_that_was_not_counted_is_a_bug() -> None:
    timer = StepClock(lambda: None, None, asynchronous=False, clock=map(float, count()).__next__)
    timer.begin(1)
    timer.step_done()
    with pytest.raises(AssertionError, match="not counted"):
        timer.end(2)


@pytest.mark.parametrize(
    "clock",
    [time.process_time, time.thread_time, lambda: 0.5 * time.perf_counter(), lambda: 1.03 * time.perf_counter()],
)
def test_a_clock_that_does_not_keep_time_is_refused(clock: Callable[[], float]) -> None:
    with pytest.raises(RunFailed, match=r"the clock of the timed intervals runs at \d\.\d+ times the speed"):
        StepClock(lambda: None, None, asynchronous=True, clock=clock).check()


def test_the_clock_of_a_run_keeps_time() -> None:
    StepClock(lambda: None, None, asynchronous=True).check()
