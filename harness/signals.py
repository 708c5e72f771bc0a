"""Signals to stop: the run finishes the current step, saves, and ends; a second signal ends it at once."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import Interrupted

# SIGHUP: a terminal that goes away. SIGUSR1: the warning of a scheduler (sbatch --signal=USR1@120).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# One request can come as two signals: a launcher forwards what a terminal or a scheduler has sent to all processes.
DUPLICATE_SIGNAL_SECONDS = 2.0


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a run: not SIGHUP and SIGUSR1 where the caller ignores them, as nohup does."""
    asked = (signal.SIGINT, signal.SIGTERM)
    return [number for number in STOP_SIGNALS if number in asked or signal.getsignal(number) is not signal.SIG_IGN]


class StopRequest:
    """A request to stop: deferred while the loop runs; outside the loop a signal ends the process at once."""

    def __init__(self, *, launched: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal_number: int | None = None
        self._launched, self._clock = launched, clock
        self._deferring = False
        self._last_at = -math.inf

    def requested(self) -> bool:
        return self.signal_number is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer the first signal until the loop polls `requested`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def request(self, number: int) -> None:
        """Note a request to stop, also one that another process of the run received."""
        if self.signal_number is None:
            self.signal_number, self._last_at = number, self._clock()

    def begin_shutdown(self) -> None:
        """Ignore the signals of a launcher from here on, until the process ends: it stops all processes now, and has to
        wait for the record and the report.
        """
        if self._launched:
            for number in stop_signals():
                # No SIG_IGN, which child processes would inherit.
                signal.signal(number, _pass_over)

    def handle(self, number: int, _: FrameType | None) -> None:
        now = self._clock()
        if now - self._last_at < DUPLICATE_SIGNAL_SECONDS:
            return
        self._last_at = now
        if self._deferring and self.signal_number is None:
            self.request(number)
            return
        raise Interrupted(number)


def _pass_over(number: int, _: FrameType | None) -> None:
    """Do nothing about a signal."""


@contextmanager
def stop_on_signals(*, launched: bool = False) -> Iterator[StopRequest]:
    """Install handlers for the signals to stop, and restore the old ones afterwards, unless they were replaced.

    Args:
        launched: whether a launcher that forwards signals started this process.
    """
    request = StopRequest(launched=launched)
    before = {number: signal.signal(number, request.handle) for number in stop_signals()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == request.handle:
                signal.signal(number, handler)
