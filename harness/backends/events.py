"""Device-side time stamps through PyTorch's event objects, which look alike on every eager device."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any


class TorchEvents:
    """An EventTimer over events with `record` and `elapsed_time` (milliseconds)."""

    def __init__(self, make_event: Callable[[], Any]) -> None:
        self._make_event = make_event
        self._marks: list[Any] = []

    def mark(self) -> None:
        event = self._make_event()
        event.record()
        self._marks.append(event)

    def intervals_seconds(self) -> list[float]:
        marks, self._marks = self._marks, []
        return [earlier.elapsed_time(later) / 1000.0 for earlier, later in pairwise(marks)]
