"""SIGINT and SIGTERM: finish the step, keep what is done, then end. A second signal ends at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import Interrupted


class StopRequest:
    """Remembers a signal while the loop runs; outside the loop a signal ends the process straight away."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._deferring = False

    def requested(self) -> bool:
        return self.signal_number is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold the first signal back for the loop to see."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def handle(self, number: int, _: FrameType | None) -> None:
        if self._deferring and self.signal_number is None:
            self.signal_number = number
            return
        raise Interrupted(number)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Install handlers for SIGINT and SIGTERM and put the old ones back afterwards."""
    request = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
