"""The one way to time: the host's clock between two synchronisations, over a interval of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from harness.backends.step import EventTimer


@dataclass(slots=True)
class TimedInterval:
    """Steps between two synchronisations. Nothing is printed, read back or written inside."""

    first_step: int
    last_step: int
    seconds: float
    """Host time from the synchronise before the first step to the one after the last: the headline."""
    data_wait_seconds: float
    """Part of `seconds` in which the loop stood still for want of data."""
    step_seconds: list[float]
    """Each step's own time, by the method that the record names."""
    device_seconds: float | None
    """The same interval by the device's own time stamps, where it has them: a check on the host's clock."""

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1


@dataclass
class _Open:
    first_step: int
    began: float
    host_marks: list[float] = field(default_factory=list)
    data_wait_seconds: float = 0.0


class StepClock:
    """Times intervals of steps.

    Per-step times come from the device's events where it has them, from the host's clock where the device works
    synchronously, and otherwise are the interval's mean: a host clock around one step that was only queued would
    measure the queueing.
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
        self._open: _Open | None = None

    @property
    def step_seconds_method(self) -> str:
        """Return how single steps are timed: `device_event`, `host` or `interval_mean`."""
        if self._events is not None:
            return "device_event"
        return "interval_mean" if self._asynchronous else "host"

    def now(self) -> float:
        """Return the clock's reading, seconds."""
        return self._clock()

    def begin(self, first_step: int) -> None:
        """Open a interval: wait for the device, then read the clock."""
        assert self._open is None, "the last interval is still open"
        self._synchronize()
        if self._events is not None:
            self._events.mark()
        self._open = _Open(first_step, self._clock())

    def waited(self, seconds: float) -> None:
        """Count time that the loop waited for data in the open interval."""
        assert self._open is not None
        self._open.data_wait_seconds += seconds

    def step_done(self) -> None:
        """Note that one more step has been handed to the device."""
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
