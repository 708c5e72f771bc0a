"""What a device tells of its power, temperature and clock while it works. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

READ_BY_ANOTHER = "read by the first process of this host, for all of them"
"""Why a process whose device is read by another one has no sensor: nothing is missing then."""


@dataclass(frozen=True)
class Reading:
    """One look at a device. What it does not tell is None, never 0."""

    power_watts: float | None = None
    """Now, or over the driver's own short average."""
    energy_joules: float | None = None
    """Of a counter that only grows; its beginning means nothing."""
    temperature_celsius: float | None = None
    clock_mhz: float | None = None
    utilization_percent: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Why the clock is held down now; empty if it is not, None where that is not told."""


class Sensor(Protocol):
    """Reads a device's state from a thread of its own, while the device trains."""

    source: str
    """Who tells it, for the record: `NVML`, `npu-smi`, `RAPL`."""
    scope: str
    """What its power is the power of."""
    period_seconds: float
    """How far apart readings should be."""

    def read(self) -> Reading:
        """Look once.

        Raises:
            OSError: it cannot be read now.
        """
        ...

    def close(self) -> None:
        """Give back what reading needs."""
        ...
