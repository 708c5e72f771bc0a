"""Timing of intervals: the host's clock between two synchronizations, over an interval of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from harness.backends.step import EventTimer
from harness.errors import RunFailed

# The check of the clock: how often it is tried, how long the process sleeps, and the largest difference of two clocks.
CHECKS, CHECK_SECONDS, MAX_CLOCK_DIFFERENCE = 5, 0.02, 0.01


@dataclass(slots=True)
class TimedInterval:
    """Steps between two synchronizations, in which nothing is printed, read from the device or written."""

    first_step: int
    last_step: int
    seconds: float
    """Host time from the synchronize before the first step to the one after the last: the headline."""
    data_wait_seconds: float
    """Part of `seconds` in which the loop waited for data."""
    step_seconds: list[float]
    """Each step's own time, by `StepClock.step_seconds_method`."""
    device_seconds: float | None
    """The same interval by the device's events, if it has them: a check of the host's clock."""
    raw_seconds: float | None = None
    """The same interval by another clock, which the loop reads outside of this one's readings: another check."""
    gap_seconds: float | None = None
    """Time before the interval, since the one before it, that nothing accounts for; None for the first one."""
    idle_seconds: float | None = None
    """All time since the one before it but evaluations: checkpoints, files and exchanges, in which the device rests."""

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1


def raw_clock() -> float:
    """Return the seconds of a clock that no time service adjusts, where the system has one."""
    clock = getattr(time, "CLOCK_MONOTONIC_RAW", None)
    return time.perf_counter() if clock is None else time.clock_gettime(clock)


@dataclass
class _OpenInterval:
    first_step: int
    began: float
    host_marks: list[float] = field(default_factory=list)
    data_wait_seconds: float = 0.0


class StepClock:
    """Times intervals of steps.

    Per-step times come from the device's events if it has them, from the host's clock on a synchronous device, and
    are otherwise the interval's mean: the host's clock around a step that was only queued would measure the queueing.
    """

    def __init__(
        self,
        synchronize: Callable[[], None],
        events: EventTimer | None,
        *,
        asynchronous: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._synchronize = synchronize
        self._events = events
        self._asynchronous = asynchronous
        self._clock = clock
        self._open: _OpenInterval | None = None

    @property
    def step_seconds_method(self) -> str:
        """Return how single steps are timed: `device_event`, `host` or `interval_mean`."""
        if self._events is not None:
            return "device_event"
        return "interval_mean" if self._asynchronous else "host"

    def now(self) -> float:
        """Return the clock's time in seconds."""
        return self._clock()

    def check(self) -> None:
        """Compare the clock with another while this process sleeps. One of processor time stops then.

        Raises:
            RunFailed: they differ.
        """
        ratio = 0.0
        # A busy host may pause the process between two readings.
        for _ in range(CHECKS):
            raw_began, began = raw_clock(), self._clock()
            time.sleep(CHECK_SECONDS)
            ratio = (self._clock() - began) / (raw_clock() - raw_began)
            if abs(ratio - 1) <= MAX_CLOCK_DIFFERENCE:
                return
        raise RunFailed(
            f"the clock of the timed intervals runs at {ratio:.3f} times the speed of another clock of this host, "
            "expected 1: no time can be measured with it; report it to the maintainers"
        )

    def begin(self, first_step: int) -> None:
        """Open an interval: wait for the device, then read the clock."""
        assert self._open is None, "the last interval is still open"
        self._synchronize()
        if self._events is not None:
            self._events.mark()
        self._open = _OpenInterval(first_step, self._clock())

    def waited(self, seconds: float) -> None:
        """Add to the open interval's data wait."""
        assert self._open is not None
        self._open.data_wait_seconds += seconds

    def step_done(self) -> None:
        """Note that one more step has been issued to the device."""
        assert self._open is not None
        if self._events is not None:
            self._events.mark()
        elif not self._asynchronous:
            self._open.host_marks.append(self._clock())

    def end(self, last_step: int) -> TimedInterval:
        """Close the interval: wait for the device, then read the clock."""
        assert self._open is not None, "no interval is open"
        opened, self._open = self._open, None
        self._synchronize()
        seconds = self._clock() - opened.began
        steps = last_step - opened.first_step + 1
        device_seconds = None
        if self._events is not None:
            step_seconds = self._events.intervals_seconds()
            device_seconds = sum(step_seconds)
        elif self._asynchronous:
            step_seconds = [seconds / steps] * steps
        else:
            marks = [opened.began, *opened.host_marks]
            step_seconds = [later - earlier for earlier, later in pairwise(marks)]
        assert len(step_seconds) == steps, "a step of this interval was not counted"
        return TimedInterval(
            opened.first_step, last_step, seconds, opened.data_wait_seconds, step_seconds, device_seconds
        )
