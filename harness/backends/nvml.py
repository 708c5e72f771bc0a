"""State of an NVIDIA GPU by its management library, NVML: clocks, power, sharing, processes.

It needs nvidia-ml-py (the extra `cuda`) and the driver's permission. Without them the answer is None, and the run
continues. NVML counts devices on its own, so a device is found by its UUID.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from harness.backends.sensors import Reading

# NVML's constants for a clock held below what the chip can do. Idle, application clocks and sync boost are settings.
THROTTLE_REASONS = {
    "nvmlClocksThrottleReasonSwPowerCap": "power cap",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "temperature",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "temperature (hardware)",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}


def sharing(uuid: str | None) -> dict[str, bool | None]:
    """Return whether the device is a slice of a GPU (`mig`) and whether clients share it through MPS (`mps`).

    None if unknown.
    """
    if uuid is not None and uuid.startswith("MIG-"):
        return {"mig": True, "mps": None}
    with _device(uuid) as found:
        if found is None:
            return {"mig": None, "mps": None}
        nvml, handle = found
        mode = _ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
        clients = _ask(nvml, lambda: nvml.nvmlDeviceGetMPSComputeRunningProcesses(handle))
        # A GPU without MIG answers "not supported": that is a no.
        return {"mig": bool(mode), "mps": None if clients is None else bool(clients)}


def other_processes(uuid: str | None) -> list[str] | None:
    """Return the other processes that compute on the device, as `name (pid)`; None if unknown.

    In a container NVML gives the host's process numbers: a list without this process is of another namespace, and of
    no use.
    """
    with _device(uuid) as found:
        if found is None:
            return None
        nvml, handle = found
        processes = _ask(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        if processes is None or os.getpid() not in [process.pid for process in processes]:
            return None
        return [
            f"{_process_name(nvml, process.pid)} ({process.pid})" for process in processes if process.pid != os.getpid()
        ]


class NvmlSensor:
    """Sensor of one GPU, which stays open."""

    source = "NVML"
    scope = "the board"
    # NVML updates its energy counter every 20 to 100 ms.
    period_seconds = 1.0

    def __init__(self, nvml: Any, handle: Any, opened: ExitStack) -> None:
        self._nvml, self._handle, self._opened = nvml, handle, opened

    def read(self) -> Reading:
        nvml, handle = self._nvml, self._handle
        power = _ask(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        energy = _ask(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        reasons = _ask(nvml, lambda: _throttle_reasons(nvml, handle))
        found = Reading(
            power_watts=_watts(power),
            energy_joules=None if energy is None else energy / 1000,
            temperature_celsius=_ask(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            clock_mhz=_ask(nvml, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            utilization_percent=_ask(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            throttle_reasons=None if reasons is None else tuple(reasons),
            clock_limit_mhz=_ask(nvml, lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
            power_limit_watts=_watts(_ask(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))),
            default_power_limit_watts=_watts(_ask(nvml, lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle))),
        )
        if found == Reading():
            raise OSError("NVML answered no query")
        return found

    def close(self) -> None:
        self._opened.close()


def open_sensor(uuid: str | None) -> NvmlSensor | str:
    """Return the sensor of the device, or the reason why there is none."""
    opened = ExitStack()
    found = opened.enter_context(_device(uuid))
    if found is None:
        opened.close()
        return "NVML does not answer: pip install nvidia-ml-py (the extra `cuda`), and check nvidia-smi"
    return NvmlSensor(*found, opened)


@contextmanager
def _device(uuid: str | None) -> Iterator[tuple[Any, Any] | None]:
    try:
        import pynvml as nvml  # type: ignore[import-not-found]
    except ImportError:
        yield None
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(_nvml_uuid(uuid)) if uuid else None
        except nvml.NVMLError:
            handle = None
        yield None if handle is None else (nvml, handle)
    finally:
        nvml.nvmlShutdown()


def _nvml_uuid(uuid: str) -> str:
    # torch gives the bare number of a whole GPU.
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _watts(milliwatts: float | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _ask(nvml: Any, question: Any) -> Any:
    try:
        return question()
    except nvml.NVMLError:
        return None


def _throttle_reasons(nvml: Any, handle: Any) -> list[str]:
    reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return [words for name, words in THROTTLE_REASONS.items() if reasons & getattr(nvml, name, 0)]


def _process_name(nvml: Any, pid: int) -> str:
    name = _ask(nvml, lambda: nvml.nvmlSystemGetProcessName(pid))
    return os.path.basename(name) if name else "unknown"
