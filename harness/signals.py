"""SIGINT and SIGTERM: finish the step, keep what is done, then end. A second signal ends at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import Interrupted

# torchrun passes a terminal's Ctrl-C on to processes that the terminal has reached already: one wish, two signals.
SECONDS_OF_ONE_WISH = 2.0


class StopRequest:
    """Remembers a signal while the loop runs; outside the loop a signal ends the process straight away."""

    def __init__(self, *, launched: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal_number: int | None = None
        self._launched, self._clock = launched, clock
        self._deferring = self._ending = False
        self._first_at = 0.0

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

    def request(self, number: int) -> None:
        """Note the wish to stop, also one that another process of the run was told."""
        if self.signal_number is None:
            self.signal_number, self._first_at = number, self._clock()

    def begin_shutdown(self, *, launched: bool) -> None:
        """From here on the end is written down: a launcher, which stops all processes now, has to wait for it."""
        self._ending = launched

    def handle(self, number: int, _: FrameType | None) -> None:
        now = self._clock()
        if self._ending or (self._launched and self.signal_number is not None
                            and now - self._first_at < SECONDS_OF_ONE_WISH):  # fmt: skip
            return
        if self._deferring and self.signal_number is None:
            self.request(number)
            return
        raise Interrupted(number)


@contextmanager
def stop_on_signals(*, launched: bool = False) -> Iterator[StopRequest]:
    """Install handlers for SIGINT and SIGTERM and put the old ones back afterwards.

    Args:
        launched: whether a launcher started this process, which passes signals on.
    """
    request = StopRequest(launched=launched)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
