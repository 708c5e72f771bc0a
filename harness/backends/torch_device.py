"""Shared parts of the devices that PyTorch drives through a module shaped like torch.cuda."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.base import Backend
from harness.backends.failures import OUT_OF_MEMORY_REMEDY, Failure, find_line
from harness.backends.step import EventTimer, TorchEvents
from harness.config import product_format
from harness.errors import BackendUnavailable
from harness.text import true_name

if TYPE_CHECKING:
    import torch


class TorchDeviceBackend(Backend):
    """A device behind torch.<name>. A subclass states how it differs from torch.cuda."""

    visible_devices_variable: ClassVar[str]
    """Environment variable that selects and renumbers the devices of a process."""
    driver_tool: ClassVar[str]
    """Command that shows the driver's view of the devices."""
    takes_index: ClassVar[bool] = True
    """True if the module's functions take a device index, False if they act on the current device."""
    profiler_activity: ClassVar[str | None] = None
    """Name of this device's member of torch.profiler.ProfilerActivity, if PyTorch's profiler traces it."""
    fault_pattern: ClassVar[re.Pattern[str] | None] = None
    """Matches the line of a RuntimeError that states a failure of the device."""
    out_of_memory_pattern: ClassVar[re.Pattern[str] | None] = None
    """Matches those of the lines that mean a failed allocation."""
    fault_remedy: ClassVar[str] = ""

    def module(self) -> Any:
        """Return the module whose functions drive the device. Available once the device is open."""
        import torch

        return getattr(torch, self.name)

    def _index(self) -> tuple[int, ...]:
        """Return the positional arguments that select this device in a call of the module."""
        return (self.settings.device_index,) if self.takes_index else ()

    def load(self) -> None:
        try:
            count = self.count_devices()
        except (ImportError, OSError, RuntimeError, AssertionError) as error:
            raise self.open_error(str(error), f"{self.driver_tool} shows the driver's view") from error
        if self.settings.device_index >= count:
            raise self.index_error(count)
        self.module().set_device(self.settings.device_index)

    def count_devices(self) -> int:
        """Start the driver and return the number of visible devices.

        Raises:
            ImportError, OSError, RuntimeError, AssertionError: the driver or the package does not start.
        """
        return self.module().device_count()

    def open_error(self, cause: str, remedy: str) -> BackendUnavailable:
        """Return the error for a device that cannot be opened."""
        return BackendUnavailable(f"backend {self.name} cannot be opened: {cause}; {remedy}")

    def index_error(self, count: int) -> BackendUnavailable:
        """Return the error for a device index that none of the `count` visible devices has."""
        variable = self.visible_devices_variable
        visible = f"visible devices: {count}, {variable}={os.environ.get(variable, 'not set')}"
        if count == 0:
            return self.open_error(f"no device found ({visible})", f"{self.driver_tool} shows the driver's view")
        allowed = "0" if count == 1 else f"0 to {count - 1}"
        return BackendUnavailable(
            f"backend.device_index: found {self.settings.device_index}, expected {allowed} ({visible}); "
            f"{self.driver_tool} lists them"
        )

    def device(self) -> torch.device:
        import torch

        # Always with the index: torch.device("npu") and torch.device("npu:0") are not equal.
        return torch.device(self.name, self.settings.device_index)

    def apply(self, precision: str) -> None:
        super().apply(precision)
        # Autocast would convert on older devices, many times slower, or warn and continue in float32.
        if product_format(precision) == "bf16" and not self.supports_bf16():
            name = self.device_name() or "the device"
            raise BackendUnavailable(
                f"precision={precision}: {name} has no bf16 arithmetic; use precision=fp16 or fp32"
            )

    def supports_bf16(self) -> bool:
        """Return whether the device computes in bf16 itself."""
        return self.module().is_bf16_supported(including_emulation=False)

    def profiler_activities(self) -> list[Any]:
        from torch.profiler import ProfilerActivity

        own = [getattr(ProfilerActivity, self.profiler_activity)] if self.profiler_activity else []
        return [*super().profiler_activities(), *own]

    def synchronize(self) -> None:
        self.module().synchronize(*self._index())

    def event_timer(self) -> EventTimer | None:
        module = self.module()
        return TorchEvents(lambda: module.Event(enable_timing=True))

    def reset_peak_memory(self) -> None:
        self.module().reset_peak_memory_stats(*self._index())

    def memory(self) -> dict[str, int | None] | None:
        free, total = self.module().mem_get_info(*self._index())
        # The two peaks are of torch's allocator. Workspaces of kernels and buffers of collectives lie outside of it.
        return {**self._peak_memory(), "used_on_device_bytes": total - free, "total_bytes": total}

    def _peak_memory(self) -> dict[str, int | None]:
        module, index = self.module(), self._index()
        return {
            "peak_allocated_bytes": module.max_memory_allocated(*index) or None,
            "peak_reserved_bytes": module.max_memory_reserved(*index) or None,
        }

    def total_memory_bytes(self) -> int | None:
        """Return the size of the device's memory."""
        return self.module().get_device_properties(*self._index()).total_memory

    def device_name(self) -> str | None:
        """Return the device's name, or None if the driver reports none, or a number in its place."""
        return true_name(self.module().get_device_name(*self._index()))

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "name": self.device_name(),
            "index": self.settings.device_index,
            "count": self.module().device_count(),
            "memory_bytes": self.total_memory_bytes(),
            "emulated": False,
        }

    def peak_lookup_key(self) -> str | None:
        device = self.describe()
        return None if device["emulated"] else device["name"]

    def classify_error(self, error: BaseException) -> Failure | None:
        common = super().classify_error(error)
        if common is not None or self.fault_pattern is None or not isinstance(error, RuntimeError):
            return common
        cause = find_line(str(error), self.fault_pattern)
        if cause is None:
            return None
        if self.out_of_memory_pattern is not None and self.out_of_memory_pattern.search(cause):
            return Failure("oom", cause, OUT_OF_MEMORY_REMEDY)
        return self.explain_fault(cause)

    def explain_fault(self, cause: str) -> Failure:
        """Return the failure that a line matching `fault_pattern` means."""
        return Failure("device_fault", cause, self.fault_remedy)
