"""Energy counters of the CPU packages (RAPL, by Linux's powercap), their temperature and thermal throttling.

A counter covers a whole package, other processes included. Intel and AMD CPUs have them. Since Linux 5.10 only root may
read them, and most containers and virtual machines hide them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.backends.sensors import Reading

POWERCAP = Path("/sys/class/powercap")
THERMAL = Path("/sys/class/thermal")
CORES = Path("/sys/devices/system/cpu")


@dataclass
class _Counter:
    file: Path
    name: str
    range_microjoules: int
    last: int
    wraps: int = 0

    def joules(self) -> float:
        """Return the energy so far. The counter wraps after its range, which takes minutes: no wrap is missed."""
        now = int(self.file.read_text())
        if now < self.last:
            self.wraps += 1
        self.last = now
        return (now + self.wraps * self.range_microjoules) / 1e6


class Rapl:
    """Sensor of this host's packages, and of their memory if it has a counter of its own."""

    source = "RAPL"
    # A counter wraps after a minute at the earliest, and is updated every millisecond.
    period_seconds = 1.0

    def __init__(self, counters: list[_Counter], thermal: Path = THERMAL, cores: Path = CORES) -> None:
        self._counters = counters
        self.scope = "all of the host's " + ", ".join(counter.name for counter in counters)
        self._temperatures = [
            zone / "temp" for zone in sorted(thermal.glob("thermal_zone*")) if _text(zone / "type") == "x86_pkg_temp"
        ]
        self._throttled = sorted(cores.glob("cpu*/thermal_throttle/package_throttle_count"))
        self._throttle_count: int | None = None

    def read(self) -> Reading:
        joules = sum(counter.joules() for counter in self._counters)
        degrees = [int(text) / 1000 for file in self._temperatures if (text := _text(file))]
        count, last = self._count_throttling(), self._throttle_count
        self._throttle_count = count
        reasons = None
        if count is not None and last is not None:
            # Throttled since the last reading. The first one has nothing to compare with.
            reasons = ("temperature",) if count > last else ()
        return Reading(
            energy_joules=joules,
            temperature_celsius=max(degrees) if degrees else None,
            throttle_reasons=reasons,
        )

    def close(self) -> None:
        """No resource is held."""

    def _count_throttling(self) -> int | None:
        counts = [int(text) for file in self._throttled if (text := _text(file))]
        return sum(counts) if counts else None


def open_rapl(folder: Path = POWERCAP, thermal: Path = THERMAL, cores: Path = CORES) -> Rapl | str:
    """Return the sensor of the host's counters, or the reason why there is none."""
    zones = [path for path in folder.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl(:\d+)+", path.name)]
    counters: list[_Counter] = []
    for zone in sorted(zones):
        name = _text(zone / "name") or ""
        # psys counts the packages again, core and uncore parts of each.
        if not name.startswith(("package", "dram")):
            continue
        file = zone / "energy_uj"
        try:
            counters.append(
                _Counter(file, name, int((zone / "max_energy_range_uj").read_text()), int(file.read_text()))
            )
        except PermissionError:
            return f"{file} is readable by root alone; sudo chmod a+r {folder}/intel-rapl:*/energy_uj"
        except (OSError, ValueError) as error:
            return f"{file} cannot be read: {error}"
    if not counters:
        return f"no energy counters of the CPU in {folder} (none on this processor, or hidden from this machine)"
    return Rapl(counters, thermal, cores)


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
