"""Readings from NVML, over a fake of it: a GPU, a slice, a container, unsupported queries."""

from __future__ import annotations

import builtins
import os
import sys
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from harness.backends import nvml
from harness.backends.sensors import Reading

GPU = "5e8a1b34-0000-1111-2222-333344445555"


class NVMLError(Exception):
    pass


def unsupported(*_: object) -> None:
    raise NVMLError("not supported")


class FakeNvml:
    """The module pynvml with one GPU, known as GPU-<uuid>."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_DEVICE_MIG_ENABLE = 1, 0, 1
    nvmlClocksThrottleReasonGpuIdle = 0x1
    nvmlClocksThrottleReasonSwPowerCap = 0x4
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20

    def __init__(self) -> None:
        self.reasons = 0
        self.processes = [SimpleNamespace(pid=os.getpid())]
        self.clients: list[Any] = []
        self.mig: list[int] | None = [0, 0]
        self.open = 0
        self.refused: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "refused"):
            return unsupported
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != f"GPU-{GPU}":
            raise NVMLError("not found")
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return 1410

    def nvmlDeviceGetMaxClockInfo(self, handle: str, clock: int) -> int:
        return 1980

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self.reasons

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 287_500

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 300_000

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: str) -> int:
        return 400_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return 12_345_678

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=97, memory=40)

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        if self.mig is None:
            raise NVMLError("not supported")
        return self.mig

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle: str) -> list[Any]:
        return self.clients

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return self.processes

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        return "/usr/bin/python3"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def read() -> Reading:
    sensor = nvml.open_sensor(GPU)
    assert isinstance(sensor, nvml.NvmlSensor)
    return sensor.read()


class TestThrottling:
    def test_idle_is_no_throttling(self, library: FakeNvml) -> None:
        library.reasons = FakeNvml.nvmlClocksThrottleReasonGpuIdle
        assert read().throttle_reasons == ()

    def test_several_reasons(self, library: FakeNvml) -> None:
        library.reasons = 0x4 | 0x20
        assert read().throttle_reasons == ("power cap", "temperature")


class TestSensor:
    def test_power_energy_temperature_clock_load_and_throttling(self, library: FakeNvml) -> None:
        library.reasons = 0x4
        sensor = nvml.open_sensor(GPU)
        assert isinstance(sensor, nvml.NvmlSensor)
        assert sensor.read() == Reading(287.5, 12345.678, 61, 1410, 97, ("power cap",), 1980, 300.0, 400.0)
        assert library.open == 1
        sensor.close()
        assert library.open == 0

    @pytest.mark.parametrize(
        ("question", "field"),
        [
            ("nvmlDeviceGetPowerUsage", "power_watts"),
            ("nvmlDeviceGetTotalEnergyConsumption", "energy_joules"),
            ("nvmlDeviceGetUtilizationRates", "utilization_percent"),
            ("nvmlDeviceGetCurrentClocksThrottleReasons", "throttle_reasons"),
        ],
    )
    def test_an_unsupported_query_is_null(self, question: str, field: str, library: FakeNvml) -> None:
        library.refused = {question}
        assert [name for name, value in asdict(read()).items() if value is None] == [field]

    def test_a_device_without_any_answer_is_an_error_of_the_reading(self, library: FakeNvml) -> None:
        sensor = nvml.open_sensor(GPU)
        assert isinstance(sensor, nvml.NvmlSensor)
        library.refused = {name for name in dir(FakeNvml) if name.startswith("nvmlDeviceGet")}
        with pytest.raises(OSError, match="NVML answered no query"):
            sensor.read()


class TestSharing:
    def test_a_whole_gpu(self, library: FakeNvml) -> None:
        assert nvml.sharing(GPU) == {"mig": False, "mps": False}

    def test_one_that_knows_no_slices(self, library: FakeNvml) -> None:
        library.mig = None
        assert nvml.sharing(GPU)["mig"] is False

    def test_a_slice(self, library: FakeNvml) -> None:
        library.mig = [1, 1]
        assert nvml.sharing(GPU)["mig"] is True
        assert nvml.sharing("MIG-1234") == {"mig": True, "mps": None}

    def test_clients_of_mps(self, library: FakeNvml) -> None:
        library.clients = [SimpleNamespace(pid=7)]
        assert nvml.sharing(GPU)["mps"] is True


class TestOtherProcesses:
    def test_alone(self, library: FakeNvml) -> None:
        assert nvml.other_processes(GPU) == []

    def test_a_neighbour_is_named(self, library: FakeNvml) -> None:
        library.processes.append(SimpleNamespace(pid=4711))
        assert nvml.other_processes(GPU) == ["python3 (4711)"]

    def test_a_neighbour_without_a_name(self, library: FakeNvml) -> None:
        library.processes.append(SimpleNamespace(pid=4711))
        library.refused = {"nvmlSystemGetProcessName"}
        assert nvml.other_processes(GPU) == ["unknown (4711)"]

    def test_numbers_of_another_namespace_are_unknown(self, library: FakeNvml) -> None:
        """In a container the list has this process under the number that the host gives it."""
        library.processes = [SimpleNamespace(pid=os.getpid() + 1)]
        assert nvml.other_processes(GPU) is None


class TestNothingToAsk:
    @pytest.mark.parametrize("uuid", [None, "another"])
    def test_an_unknown_device(self, uuid: str | None, library: FakeNvml) -> None:
        self.nothing(uuid)
        assert library.open == 0

    def test_no_driver(self, library: FakeNvml) -> None:
        library.refused = {"nvmlInit"}
        self.nothing(GPU)

    def test_no_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def without(name: str, *arguments: Any, **options: Any) -> Any:
            if name == "pynvml":
                raise ImportError("No module named 'pynvml'")
            return real(name, *arguments, **options)

        monkeypatch.delitem(sys.modules, "pynvml", raising=False)
        monkeypatch.setattr(builtins, "__import__", without)
        self.nothing(GPU)

    def nothing(self, uuid: str | None) -> None:
        assert nvml.sharing(uuid) == {"mig": None, "mps": None}
        assert nvml.other_processes(uuid) is None
        assert "NVML does not answer" in str(nvml.open_sensor(uuid))
