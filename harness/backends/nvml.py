"""What NVIDIA's management library says of a GPU, where nvidia-ml-py (the extra `cuda`) and the driver allow it.

Everything here is extra knowledge: without the package, or where the library refuses, the answer is None and the run
goes on. The library counts devices on its own, so a device is found by its UUID.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from harness.backends.sensors import Reading

# Reasons that say that the clock was held below what the chip can do, by the names of NVML's constants. Idle,
# application clocks and sync boost are settings, not distress.
THROTTLE_REASONS = {
    "nvmlClocksThrottleReasonSwPowerCap": "power cap",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "temperature",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "temperature (hardware)",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}


def clock_state(uuid: str | None) -> dict[str, Any] | None:
    """Return the device's clock, its limit and why it is held down now.

    Keys `sm_clock_mhz`, `sm_clock_limit_mhz`, `throttle_reasons` (a list of words, empty when there are none) and
    `temperature_celsius`; a value is None where the device does not tell it. None without NVML.
    """
    with _device(uuid) as found:
        if found is None:
            return None
        nvml, handle = found
        return {
            "sm_clock_mhz": _ask(nvml, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "sm_clock_limit_mhz": _ask(nvml, lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "throttle_reasons": _ask(nvml, lambda: _throttle_reasons(nvml, handle)),
            "temperature_celsius": _ask(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        }


def sharing(uuid: str | None) -> dict[str, bool | None]:
    """Return whether the device is a slice of a GPU (`mig`) and whether clients share it through MPS (`mps`).

    None where it cannot be told.
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
    """Return the other processes that compute on the device, as `name (pid)`; None where that cannot be told.

    In a container NVML tells the host's process numbers: a list in which the own process is missing is not one of
    this namespace, and nothing can be said.
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
    """One GPU, which stays open."""

    source = "NVML"
    scope = "the board"
    # The counter of energy is renewed every 20 to 100 ms.
    period_seconds = 1.0

    def __init__(self, nvml: Any, handle: Any, opened: ExitStack) -> None:
        self._nvml, self._handle, self._opened = nvml, handle, opened

    def read(self) -> Reading:
        nvml, handle = self._nvml, self._handle
        power = _ask(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        energy = _ask(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        reasons = _ask(nvml, lambda: _throttle_reasons(nvml, handle))
        found = Reading(
            power_watts=None if power is None else power / 1000,
            energy_joules=None if energy is None else energy / 1000,
            temperature_celsius=_ask(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            clock_mhz=_ask(nvml, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            utilization_percent=_ask(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            throttle_reasons=None if reasons is None else tuple(reasons),
        )
        if found == Reading():
            raise OSError("NVML answers none of the questions")
        return found

    def close(self) -> None:
        self._opened.close()


def open_sensor(uuid: str | None) -> NvmlSensor | str:
    """Return the device's sensor, or why there is none."""
    opened = ExitStack()
    found = opened.enter_context(_device(uuid))
    if found is None:
        opened.close()
        return "NVML does not answer: pip install nvidia-ml-py (the extra `cuda`), and see nvidia-smi"
    if uuid is not None and uuid.startswith("MIG-"):
        opened.close()
        return "the device is a slice of a GPU (MIG), whose power is not told apart from the others'"
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
