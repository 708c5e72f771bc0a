"""Telemetry: power, temperature and energy of a device, read by a thread and attributed to the measured window.

Energy is the difference of the device's energy counter if it has one, else the trapezoidal integral of its power
readings. Intervals between two readings that lie mostly outside the measured window (an evaluation, a checkpoint) are
left out, as are those so long that readings must have failed; the mean power of the others stands for the window.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.backends.base import Backend
from harness.backends.sensors import READ_BY_ANOTHER, Reading, Sensor
from harness.training.observer import LoopObserver

# Intervals between two readings that an energy needs, and the fraction of the measured window that they must cover.
MIN_INTERVALS = 3
MIN_COVERED_FRACTION = 0.8
# The fraction of an interval between two readings that must lie in the measured window for it to count, ...
MIN_MEASURED_FRACTION = 0.8
# ... and the longest one, in sensor periods: a longer one could hide that a counter overflowed twice.
MAX_INTERVAL_PERIODS = 10.0
MAX_FAILURES_IN_A_ROW = 5
# Of power over time; a plot shows no more points.
MAX_SAMPLES = 600
STOP_TIMEOUT_SECONDS = 30.0


@dataclass
class RunningStats:
    """Mean, minimum and maximum of a stream of values."""

    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    count: int = 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self.low, self.high = min(self.low, value), max(self.high, value)
            self.total += value
            self.count += 1

    def to_json(self) -> dict[str, float] | None:
        """Return `mean`, `min` and `max`, or None without a value."""
        return {"mean": self.total / self.count, "min": self.low, "max": self.high} if self.count else None


@dataclass
class EnergyIntegrator:
    """Energy and statistics of the measured window, computed from given times and readings."""

    max_interval_seconds: float = math.inf
    power_watts: RunningStats = field(default_factory=RunningStats)
    """Of the intervals between two readings."""
    temperature_celsius: RunningStats = field(default_factory=RunningStats)
    clock_mhz: RunningStats = field(default_factory=RunningStats)
    utilization_percent: RunningStats = field(default_factory=RunningStats)
    throttled: Counter[str] | None = None
    """Number of readings with each throttle reason; None if the device does not report them."""
    readings: int = 0
    joules: float = 0.0
    covered_seconds: float = 0.0
    method: str | None = None
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Power over time: seconds since the first measured interval began, and mean watts since the reading before."""
    _stride: int = 1
    _began: float | None = None
    _closed_seconds: float = 0.0
    _open_since: float | None = None
    _last: tuple[float, float, Reading] | None = None

    def start(self, now: float) -> None:
        """Note the beginning of a measured interval."""
        self._open_since = now
        self._began = now if self._began is None else self._began

    def stop(self, now: float) -> None:
        """Note the end of an interval; without effect if it was not a measured one."""
        if self._open_since is not None:
            self._closed_seconds += now - self._open_since
            self._open_since = None

    def add(self, now: float, reading: Reading) -> None:
        """Add a reading, with the energy since the one before if that time lies in the measured window."""
        measured = self._closed_seconds + (0.0 if self._open_since is None else now - self._open_since)
        last, self._last = self._last, (now, measured, reading)
        if last is None or measured <= last[1]:
            return
        then, measured_then, before = last
        self.readings += 1
        self.temperature_celsius.add(reading.temperature_celsius)
        self.clock_mhz.add(reading.clock_mhz)
        self.utilization_percent.add(reading.utilization_percent)
        if reading.throttle_reasons is not None:
            self.throttled = self.throttled or Counter()
            self.throttled.update(reading.throttle_reasons)
        part, seconds = measured - measured_then, now - then
        if part < MIN_MEASURED_FRACTION * seconds or seconds > self.max_interval_seconds:
            return
        watts = self._mean_watts(seconds, before, reading)
        if watts is not None:
            self.power_watts.add(watts)
            self._add_sample(now, watts)
            self.joules += watts * part
            self.covered_seconds += part

    def _add_sample(self, now: float, watts: float) -> None:
        """Keep every n-th sample, with n doubled whenever there are more than MAX_SAMPLES."""
        if self.power_watts.count % self._stride:
            return
        self.samples.append((now - (self._began or 0.0), watts))
        if len(self.samples) > MAX_SAMPLES:
            self.samples = self.samples[1::2]
            self._stride *= 2

    def _mean_watts(self, seconds: float, before: Reading, after: Reading) -> float | None:
        if before.energy_joules is not None and after.energy_joules is not None:
            self.method = self.method or "counter"
            return (after.energy_joules - before.energy_joules) / seconds
        if before.power_watts is not None and after.power_watts is not None:
            self.method = "sampled"
            return (before.power_watts + after.power_watts) / 2
        return None

    def missing_energy_reason(self, measured_seconds: float) -> str | None:
        """Return the reason why the window's energy is unknown, or None."""
        if self.power_watts.count < MIN_INTERVALS or measured_seconds <= 0:
            return f"{self.power_watts.count} readings of power in a measured window of {measured_seconds:.1f} s"
        if self.covered_seconds < MIN_COVERED_FRACTION * measured_seconds:
            return f"readings cover {self.covered_seconds:.1f} s of the measured window's {measured_seconds:.1f} s"
        return None


class Telemetry(LoopObserver):
    """Reads a device's sensor in a thread while the loop trains, and integrates over the measured intervals."""

    def __init__(self, sensor: Sensor | str, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """
        Args:
            sensor: the device's sensor, or the reason why there is none.
        """
        self._sensor = None if isinstance(sensor, str) else sensor
        self._reason = sensor if isinstance(sensor, str) else None
        self._clock = clock
        self._integrator = EnergyIntegrator()
        if self._sensor is not None:
            self._integrator.max_interval_seconds = MAX_INTERVAL_PERIODS * self._sensor.period_seconds
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures = self._failures_in_a_row = 0
        self.latest: Reading | None = None

    def __enter__(self) -> Telemetry:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Take the first reading and start the thread."""
        if self._sensor is not None:
            self._read(self._sensor)
            self._thread = threading.Thread(
                target=self._keep_reading, args=(self._sensor,), name="telemetry", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread and take a last reading, so that the window is covered to its end."""
        self._stopping.set()
        if self._sensor is None or self._thread is None:
            return
        self._thread.join(STOP_TIMEOUT_SECONDS)
        if not self._thread.is_alive():
            self._read(self._sensor)
            self._sensor.close()
        self._thread = None

    def interval_begins(self, phase: str) -> None:
        if phase == "measured":
            with self._lock:
                self._integrator.start(self._clock())

    def interval_ended(self) -> None:
        with self._lock:
            self._integrator.stop(self._clock())

    def to_record(self, measured_seconds: float, tokens: int) -> dict[str, Any]:
        """Return the record's section `telemetry`.

        Args:
            measured_seconds: length of the part of the measured window that this process trained.
            tokens: trained on in that part.
        """
        integrator, sensor = self._integrator, self._sensor
        reason = self._reason if sensor is None else integrator.missing_energy_reason(measured_seconds)
        if sensor is not None and reason is not None and self._failures:
            reason = f"{self._failures} readings failed: {self._reason}"
        watts = None if reason is not None else integrator.joules / integrator.covered_seconds
        joules = None if watts is None else watts * measured_seconds
        return {
            "method": integrator.method if watts is not None else "none",
            "reason": reason,
            "source": sensor.source if sensor is not None else None,
            "scope": sensor.scope if sensor is not None else None,
            "period_seconds": sensor.period_seconds if sensor is not None else None,
            "readings": integrator.readings,
            "failed_readings": self._failures,
            "measured_joules": joules,
            "mean_power_watts": watts,
            "joules_per_token": None if joules is None or tokens <= 0 else joules / tokens,
            "power_watts": integrator.power_watts.to_json(),
            "temperature_celsius": integrator.temperature_celsius.to_json(),
            "clock_mhz": integrator.clock_mhz.to_json(),
            "utilization_percent": integrator.utilization_percent.to_json(),
            "samples": [list(sample) for sample in integrator.samples],
            "throttled": None
            if integrator.throttled is None
            else {reason: count / integrator.readings for reason, count in integrator.throttled.items()},
        }

    def _keep_reading(self, sensor: Sensor) -> None:
        while not self._stopping.wait(sensor.period_seconds):
            self._read(sensor)
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                return

    def _read(self, sensor: Sensor) -> None:
        began = self._clock()
        try:
            reading = sensor.read()
        except Exception as error:  # noqa: BLE001 (no error of a vendor's library may end the run)
            self._failures += 1
            self._failures_in_a_row += 1
            self._reason = str(error) or type(error).__name__
            return
        self._failures_in_a_row = 0
        self.latest = reading
        with self._lock:
            # A reading may take a second, where it starts a process: its values count for the middle of that time.
            self._integrator.add((began + self._clock()) / 2, reading)


def sensor_of(backend: Backend) -> Sensor | str:
    """Return the device's sensor, or the reason why there is none."""
    try:
        return backend.telemetry()
    except Exception as error:  # noqa: BLE001 (no error of a vendor's tool may end the run)
        return f"the sensor cannot be opened: {type(error).__name__}: {error}"


def merge_ranks(by_rank: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the telemetry of a run from its ranks': energy and mean power summed, ranges merged.

    Energy is None unless it is known for every device.
    """
    own = [each for each in by_rank if each["reason"] != READ_BY_ANOTHER]
    if len(own) < 2:
        return own[0] if own else by_rank[0]
    reason = next((f"rank {rank}: {each['reason']}" for rank, each in enumerate(by_rank)
                   if each["reason"] not in (None, READ_BY_ANOTHER)), None)  # fmt: skip
    merged: dict[str, Any] = {**own[0], "reason": reason}
    merged["failed_readings"] = sum(each["failed_readings"] for each in own)
    for key in ("measured_joules", "mean_power_watts", "joules_per_token"):
        merged[key] = None if reason else math.fsum(each[key] for each in own)
    methods = {each["method"] for each in own}
    merged["method"] = "none" if reason else methods.pop() if len(methods) == 1 else "sampled"
    for key in ("temperature_celsius", "clock_mhz", "utilization_percent"):
        merged[key] = _merge_ranges([each[key] for each in own if each[key] is not None])
    # The intervals between readings differ from device to device, so that powers over time cannot be summed.
    merged["power_watts"], merged["samples"] = None, []
    reasons = [each["throttled"] for each in own if each["throttled"] is not None]
    names = sorted({name for each in reasons for name in each})
    merged["throttled"] = {name: max(each.get(name, 0.0) for each in reasons) for name in names} if reasons else None
    return merged


def _merge_ranges(ranges: Sequence[dict[str, float]]) -> dict[str, float] | None:
    if not ranges:
        return None
    return {
        "mean": math.fsum(each["mean"] for each in ranges) / len(ranges),
        "min": min(each["min"] for each in ranges),
        "max": max(each["max"] for each in ranges),
    }
