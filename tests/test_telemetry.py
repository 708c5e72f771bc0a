"""Energy, power and temperature of the measured window: from scripted readings, a fake /sys, and a thread."""

from __future__ import annotations

import os
import threading
from itertools import count, pairwise
from pathlib import Path

import pytest

from harness.backends.rapl import Rapl, open_rapl
from harness.backends.sensors import READ_BY_ANOTHER, Reading
from harness.training.monitoring.telemetry import (
    MAX_FAILURES_IN_A_ROW,
    MAX_SAMPLES,
    EnergyIntegrator,
    Telemetry,
    merge_ranks,
)


class TestEnergyIntegrator:
    def test_a_counter_counts_within_the_measured_intervals(self) -> None:
        integrator = EnergyIntegrator()
        # 100 W before, 300 W within the interval from 1.5 s to 5.5 s, 100 W after; read at whole seconds.
        integrator.add(0.0, Reading(energy_joules=1000.0))
        integrator.add(1.0, Reading(energy_joules=1100.0))
        integrator.start(1.5)
        integrator.add(2.0, Reading(energy_joules=1300.0))
        for second in (3, 4, 5):
            integrator.add(float(second), Reading(energy_joules=1300.0 + 300.0 * (second - 2)))
        integrator.stop(5.5)
        integrator.add(6.0, Reading(energy_joules=2400.0))
        integrator.add(7.0, Reading(energy_joules=2500.0))
        assert integrator.method == "counter"
        # Half of the intervals at the edges was measured, and the energy of that half is unknown.
        assert integrator.covered_seconds == pytest.approx(3.0)
        assert integrator.joules == pytest.approx(3 * 300)
        # Only 75 % of the window is covered: too little to extrapolate.
        assert "readings cover 3.0 s" in str(integrator.missing_energy_reason(4.0))
        assert integrator.missing_energy_reason(3.5) is None

    def test_power_is_integrated_by_trapezoids(self) -> None:
        integrator = EnergyIntegrator()
        integrator.start(0.0)
        for second, watts in enumerate((100.0, 200.0, 400.0, 400.0)):
            integrator.add(float(second), Reading(power_watts=watts))
        assert integrator.method == "sampled"
        assert integrator.joules == pytest.approx(150 + 300 + 400)
        assert integrator.power_watts.to_json() == {"mean": pytest.approx(850 / 3), "min": 150.0, "max": 400.0}

    def test_a_counter_goes_before_power(self) -> None:
        integrator = EnergyIntegrator()
        integrator.start(0.0)
        for second in range(4):
            integrator.add(float(second), Reading(power_watts=1.0, energy_joules=50.0 * second))
        assert (integrator.method, integrator.joules) == ("counter", pytest.approx(150.0))

    def test_time_between_measured_intervals_is_left_out(self) -> None:
        integrator = EnergyIntegrator()
        integrator.start(0.0)
        integrator.add(0.0, Reading(power_watts=100.0))
        integrator.add(1.0, Reading(power_watts=100.0))
        integrator.stop(1.0)
        integrator.add(2.0, Reading(power_watts=900.0, temperature_celsius=99.0))
        integrator.add(3.0, Reading(power_watts=900.0))
        integrator.start(3.0)
        integrator.add(4.0, Reading(power_watts=100.0, temperature_celsius=40.0))
        assert integrator.covered_seconds == pytest.approx(2.0)
        assert integrator.joules == pytest.approx(100.0 + 500.0)
        assert integrator.readings == 2
        assert integrator.temperature_celsius.to_json() == {"mean": 40.0, "min": 40.0, "max": 40.0}

    def test_too_few_readings_for_an_energy(self) -> None:
        integrator = EnergyIntegrator()
        integrator.start(0.0)
        for second in range(3):
            integrator.add(float(second), Reading(power_watts=100.0))
        assert "2 readings of power in a measured window of 2.0 s" in str(integrator.missing_energy_reason(2.0))
        integrator.add(3.0, Reading(power_watts=100.0))
        assert integrator.missing_energy_reason(3.0) is None
        assert "readings cover 3.0 s of the measured window's 10.0 s" in str(integrator.missing_energy_reason(10.0))

    def test_a_device_without_power_has_the_other_values(self) -> None:
        integrator = EnergyIntegrator()
        integrator.start(0.0)
        for second in range(5):
            integrator.add(
                float(second), Reading(clock_mhz=900.0 + second, throttle_reasons=("power cap",) * (second > 2))
            )
        assert integrator.missing_energy_reason(4.0) is not None
        assert integrator.clock_mhz.to_json() == {"mean": 902.5, "min": 901.0, "max": 904.0}
        assert integrator.throttled == {"power cap": 2}

    def test_an_interval_with_failed_readings_is_left_out(self) -> None:
        integrator = EnergyIntegrator(max_interval_seconds=10.0)
        integrator.start(0.0)
        for second in (0.0, 1.0, 2.0, 3.0, 500.0, 501.0):
            integrator.add(
                second, Reading(energy_joules=100.0 * second if second < 100 else 7.0 + 100.0 * (second - 500))
            )
        assert integrator.joules == pytest.approx(400.0)
        assert "readings cover 4.0 s" in str(integrator.missing_energy_reason(501.0))

    def test_samples_of_power_stay_few(self) -> None:
        integrator = EnergyIntegrator()
        integrator.start(10.0)
        for second in range(100_000):
            integrator.add(10.0 + second, Reading(power_watts=float(second)))
        assert MAX_SAMPLES / 2 <= len(integrator.samples) <= MAX_SAMPLES
        gaps = {later[0] - sooner[0] for sooner, later in pairwise(integrator.samples)}
        assert len(gaps) == 1
        assert all(watts == pytest.approx(seconds - 0.5) for seconds, watts in integrator.samples)
        assert integrator.samples[-1][0] > 99_000

    def test_several_devices_are_added_up(self) -> None:
        records = []
        for watts in (100.0, 300.0):
            telemetry = Telemetry(SlowSensor())
            telemetry._integrator.start(0.0)
            for second in range(5):
                telemetry._integrator.add(
                    float(second), Reading(watts, temperature_celsius=watts / 10, throttle_reasons=())
                )
            records.append(telemetry.to_record(4.0, 400))
        elsewhere = Telemetry(READ_BY_ANOTHER).to_record(4.0, 400)
        merged = merge_ranks([*records, elsewhere])
        assert (merged["method"], merged["reason"]) == ("sampled", None)
        assert merged["measured_joules"] == pytest.approx(1600.0)
        assert merged["joules_per_token"] == pytest.approx(4.0)
        assert merged["temperature_celsius"] == {"mean": 20.0, "min": 10.0, "max": 30.0}
        assert merge_ranks([records[0], elsewhere]) == records[0]
        unknown = merge_ranks([records[0], Telemetry("no driver").to_record(4.0, 400), elsewhere])
        assert (unknown["method"], unknown["reason"]) == ("none", "rank 1: no driver")
        assert unknown["measured_joules"] is None
        assert set(unknown) == set(merged) == set(records[0])


class ScriptedSensor:
    source, scope, period_seconds = "script", "the board", 0.001

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.closed, self.read_once = fails, False, threading.Event()
        self._number = count()

    def read(self) -> Reading:
        number = next(self._number)
        if number >= 50:
            self.read_once.set()
        if number < self.fails:
            raise OSError("no answer")
        return Reading(power_watts=50.0, temperature_celsius=60.0, throttle_reasons=())

    def close(self) -> None:
        self.closed = True


class SlowSensor(ScriptedSensor):
    period_seconds = 1.0


class TestTelemetry:
    def measured(self, sensor: ScriptedSensor | str) -> Telemetry:
        telemetry = Telemetry(sensor, clock=(number / 1e6 for number in count()).__next__)
        telemetry.start()
        telemetry.interval_begins("warmup")
        telemetry.interval_ended()
        telemetry.interval_begins("measured")
        if not isinstance(sensor, str):
            assert sensor.read_once.wait(10)
        telemetry.interval_ended()
        telemetry.stop()
        return telemetry

    def test_a_thread_reads_and_the_record_names_the_source(self) -> None:
        sensor = ScriptedSensor()
        telemetry = self.measured(sensor)
        seconds = telemetry._integrator._closed_seconds
        found = telemetry.to_record(seconds, tokens=1000)
        assert found["reason"] is None
        assert (found["method"], found["source"], found["scope"]) == ("sampled", "script", "the board")
        assert found["mean_power_watts"] == pytest.approx(50.0)
        assert found["measured_joules"] == pytest.approx(50.0 * seconds)
        assert found["joules_per_token"] == pytest.approx(50.0 * seconds / 1000)
        assert found["temperature_celsius"]["max"] == 60.0
        assert found["throttled"] == {}
        assert sensor.closed
        assert telemetry.latest == Reading(power_watts=50.0, temperature_celsius=60.0, throttle_reasons=())

    def test_without_a_sensor_there_is_a_reason_and_every_value_is_null(self) -> None:
        found = self.measured("hidden from this machine").to_record(10.0, 1000)
        assert (found["method"], found["reason"]) == ("none", "hidden from this machine")
        figures = ("measured_joules", "mean_power_watts", "joules_per_token", "power_watts", "temperature_celsius",
                   "clock_mhz", "utilization_percent", "throttled", "source", "scope", "period_seconds")  # fmt: skip
        assert [found[name] for name in figures] == [None] * len(figures)

    def test_a_sensor_that_keeps_failing_is_given_up(self) -> None:
        sensor = ScriptedSensor(fails=10**9)
        telemetry = Telemetry(sensor)
        telemetry.start()
        thread = telemetry._thread
        assert thread is not None
        thread.join(10)
        assert not thread.is_alive()
        telemetry.stop()
        found = telemetry.to_record(10.0, 1000)
        # The last one is the reading at the end.
        assert found["failed_readings"] == MAX_FAILURES_IN_A_ROW + 1
        assert found["reason"] == f"{MAX_FAILURES_IN_A_ROW + 1} readings failed: no answer"
        assert found["measured_joules"] is None

    def test_a_sensor_that_fails_once_goes_on(self) -> None:
        sensor = ScriptedSensor(fails=1)
        telemetry = self.measured(sensor)
        assert telemetry.to_record(telemetry._integrator._closed_seconds, 10)["failed_readings"] == 1
        assert telemetry.latest is not None


def powercap(folder: Path, **zones: tuple[str, int]) -> Path:
    """Write a fake /sys/class/powercap: by zone (underscores for colons), its name and its counter in microjoules."""
    for zone, (name, energy) in zones.items():
        place = folder / zone.replace("_", ":").replace("rapl:mmio", "rapl-mmio").replace("intel:", "intel-")
        place.mkdir(parents=True, exist_ok=True)
        (place / "name").write_text(name + "\n")
        (place / "energy_uj").write_text(f"{energy}\n")
        (place / "max_energy_range_uj").write_text("262143328850\n")
    return folder


class TestRapl:
    def opened(self, tmp_path: Path) -> Rapl:
        folder = powercap(
            tmp_path / "powercap",
            intel_rapl_0=("package-0", 5_000_000), intel_rapl_1=("package-1", 7_000_000),
            intel_rapl_0_0=("core", 1_000_000), intel_rapl_0_1=("dram", 2_000_000),
            intel_rapl_2=("psys", 90_000_000), intel_rapl_mmio_0=("package-0", 5_000_000),
        )  # fmt: skip
        found = open_rapl(folder, tmp_path / "thermal", tmp_path / "cpu")
        assert isinstance(found, Rapl)
        return found

    def test_packages_and_memory_once_each(self, tmp_path: Path) -> None:
        sensor = self.opened(tmp_path)
        assert sensor.scope == "all of the host's package-0, dram, package-1"
        assert sensor.read() == Reading(energy_joules=14.0)

    def test_a_counter_that_turns_over(self, tmp_path: Path) -> None:
        sensor = self.opened(tmp_path)
        counter = tmp_path / "powercap" / "intel-rapl:0" / "energy_uj"
        counter.write_text("262143000000")
        before = sensor.read().energy_joules
        counter.write_text("1000000")
        after = sensor.read().energy_joules
        assert before is not None
        assert after is not None
        assert after - before == pytest.approx(0.328850 + 1.0)
        counter.write_text("500000")
        again = sensor.read().energy_joules
        assert again is not None
        assert again - after == pytest.approx(262143.328850 - 0.5)

    def test_temperature_and_throttling_where_they_are_told(self, tmp_path: Path) -> None:
        for number, (kind, degrees) in enumerate((("acpitz", 20000), ("x86_pkg_temp", 61000), ("x86_pkg_temp", 58000))):
            zone = tmp_path / "thermal" / f"thermal_zone{number}"
            zone.mkdir(parents=True)
            (zone / "type").write_text(f"{kind}\n")
            (zone / "temp").write_text(f"{degrees}\n")
        counts = tmp_path / "cpu" / "cpu0" / "thermal_throttle"
        counts.mkdir(parents=True)
        (counts / "package_throttle_count").write_text("3\n")
        sensor = self.opened(tmp_path)
        assert sensor.read() == Reading(energy_joules=14.0, temperature_celsius=61.0)
        (counts / "package_throttle_count").write_text("4\n")
        assert sensor.read().throttle_reasons == ("temperature",)
        assert sensor.read().throttle_reasons == ()

    def test_a_counter_that_vanishes_is_an_error_of_the_reading(self, tmp_path: Path) -> None:
        sensor = self.opened(tmp_path)
        (tmp_path / "powercap" / "intel-rapl:1" / "energy_uj").unlink()
        with pytest.raises(OSError, match="energy_uj"):
            sensor.read()

    def test_none_here(self, tmp_path: Path) -> None:
        assert "no energy counters of the CPU" in str(open_rapl(tmp_path))

    @pytest.mark.skipif(os.geteuid() == 0, reason="running as root, who may read everything")
    def test_readable_by_root_alone(self, tmp_path: Path) -> None:
        folder = powercap(tmp_path, intel_rapl_0=("package-0", 1))
        (folder / "intel-rapl:0" / "energy_uj").chmod(0)
        assert "readable by root alone" in str(open_rapl(folder))

    def test_readable_by_root_alone_as_the_kernel_says_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, read_text = powercap(tmp_path, intel_rapl_0=("package-0", 1)), Path.read_text

        def deny(path: Path, *arguments: str) -> str:
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied")
            return read_text(path, *arguments)

        monkeypatch.setattr(Path, "read_text", deny)
        assert "readable by root alone; sudo chmod a+r" in str(open_rapl(folder))
