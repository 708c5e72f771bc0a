"""Readings of a device's power, temperature and clock while it works. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Protocol

READ_BY_ANOTHER = "read by the process of the first device, for all that share the meter"
"""Reason of a process without a sensor whose device another process reads: nothing is missing then."""


@dataclass(frozen=True)
class Reading:
    """State of a device at one moment. An unknown value is None, never 0."""

    power_watts: float | None = None
    """Now, or over the driver's own short average."""
    energy_joules: float | None = None
    """Value of a counter that only grows. Its zero is arbitrary."""
    temperature_celsius: float | None = None
    clock_mhz: float | None = None
    utilization_percent: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Reasons that hold the clock down now. Empty if there are none, None if unknown."""
    clock_limit_mhz: float | None = None
    """The highest clock of the chip."""
    power_limit_watts: float | None = None
    default_power_limit_watts: float | None = None
    """Of the board, as it is sold; its owner may have set another limit."""

    def __post_init__(self) -> None:
        """Leave out what no device can have, such as NaN or a negative power: a driver's sign for none."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float | int) and not (
                math.isfinite(value) and (value >= 0 or item.name == "temperature_celsius")
            ):
                object.__setattr__(self, item.name, None)

    def clock_state(self) -> dict[str, Any]:
        """Return the clock, the temperature, and what holds the clock down, for the record."""
        return {
            "clock_mhz": self.clock_mhz,
            "clock_limit_mhz": self.clock_limit_mhz,
            "throttle_reasons": None if self.throttle_reasons is None else list(self.throttle_reasons),
            "temperature_celsius": self.temperature_celsius,
            "power_limit_watts": self.power_limit_watts,
            "default_power_limit_watts": self.default_power_limit_watts,
        }


class Sensor(Protocol):
    """Reads a device's state, from a thread of its own while the device trains."""

    source: str
    """Origin of the values, for the record: `NVML`, `npu-smi`, `RAPL`."""
    scope: str
    """The part of the machine that draws the power."""
    period_seconds: float
    """Time between two readings."""

    def read(self) -> Reading:
        """Read the state once.

        Raises:
            OSError: it cannot be read now.
        """
        ...

    def close(self) -> None:
        """Release what reading needs."""
        ...
