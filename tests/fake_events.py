"""Fake of a device's timing events."""

from __future__ import annotations


class FakeEvent:
    """Events a quarter of a second apart; elapsed_time is in milliseconds."""

    made = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.made += 1
        self.recorded_at = 250.0 * FakeEvent.made

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.recorded_at - self.recorded_at
