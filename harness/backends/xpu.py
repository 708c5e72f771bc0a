"""Intel GPUs through torch.xpu, which is part of PyTorch. Never run on one so far: tested against a fake."""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.base import Backend
from harness.backends.failures import Failure
from harness.backends.host_checks import Problem, torch_build, torch_problems, unsafe_env_vars
from harness.backends.step import EventTimer
from harness.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch

RENDER_NODES = "/dev/dri/renderD*"
UNSAFE_ENV_VARS = {
    "PYTORCH_ENABLE_XPU_FALLBACK": (("", "0"), "lets operations that the device lacks run on the host"),
    "SYCL_PI_TRACE": (("", "0"), "prints every call of the driver, so timings are worthless"),
    "SYCL_UR_TRACE": (("", "0"), "prints every call of the driver, so timings are worthless"),
}
FAULTS = ("UR_RESULT_ERROR_DEVICE_LOST", "UR_RESULT_ERROR_UNKNOWN", "level_zero backend failed", "Native API failed")


class XpuBackend(Backend):
    """One Intel GPU."""

    name = "xpu"
    collective = "xccl"
    environment_prefixes: ClassVar[tuple[str, ...]] = ("ZE_", "SYCL_", "UR_", "CCL_", "ONEAPI_", "NEOReadDebugKeys")
    # The second is what PYTORCH_DEBUG_XPU_FALLBACK=1 makes of it, in the words of one release or another.
    fallback_pattern = (
        r"Aten Op fallback from XPU to CPU|on the XPU backend (and will fall|is falling) back to run on the CPU"
    )
    pins_host_memory = True

    def preflight(self) -> list[Problem]:
        problems = [*torch_problems(), *self._thread_problems()]
        build = torch_build()
        if build and build.get("xpu") is None:
            problems.append(
                Problem(
                    f"the installed torch {build.get('version')} was built without XPU",
                    "install an XPU build of torch in an environment of its own (pytorch.org, Get Started)",
                )
            )
        nodes = sorted(glob.glob(RENDER_NODES))
        if not nodes:
            problems.append(
                Problem(
                    f"no GPU driver is loaded, or it is not passed into this container ({RENDER_NODES} is missing)",
                    "install Intel's GPU driver; in a container add --device /dev/dri",
                )
            )
        elif not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
            problems.append(
                Problem(
                    f"{nodes[0]} may not be opened by this user", "add the user to the group render, or run as root"
                )
            )
        return problems + unsafe_env_vars(UNSAFE_ENV_VARS)

    def load(self) -> None:
        import torch

        try:
            count = torch.xpu.device_count() if torch.xpu.is_available() else 0
        except RuntimeError as error:
            raise BackendUnavailable(
                f"backend xpu cannot be opened: {error}; sycl-ls shows the driver's side"
            ) from error
        if count == 0:
            raise BackendUnavailable("backend xpu: torch.xpu finds no device; sycl-ls shows the driver's side")
        if self.settings.device_index >= count:
            raise BackendUnavailable(
                f"backend.device_index: found {self.settings.device_index}, but {count} devices are visible "
                f"(ZE_AFFINITY_MASK={os.environ.get('ZE_AFFINITY_MASK', 'not set')}); choose 0 to {count - 1}"
            )
        torch.xpu.set_device(self.settings.device_index)

    def device(self) -> torch.device:
        import torch

        return torch.device("xpu", self.settings.device_index)

    def apply(self, precision: str) -> None:
        import torch

        super().apply(precision)
        if precision == "bf16" and not torch.xpu.is_bf16_supported(including_emulation=False):
            raise BackendUnavailable("precision=bf16: this GPU has no bf16 arithmetic; use precision=fp16 or fp32")

    def profiler_activities(self) -> list[Any]:
        from torch.profiler import ProfilerActivity

        return [ProfilerActivity.CPU, ProfilerActivity.XPU]

    def synchronize(self) -> None:
        import torch

        torch.xpu.synchronize(self.device())

    def event_timer(self) -> EventTimer | None:
        import torch

        from harness.backends.step import TorchEvents

        return TorchEvents(lambda: torch.xpu.Event(enable_timing=True))

    def reset_peak_memory(self) -> None:
        import torch

        torch.xpu.reset_peak_memory_stats(self.device())

    def memory(self) -> dict[str, int | None] | None:
        import torch

        return {
            "peak_allocated_bytes": torch.xpu.max_memory_allocated(self.device()) or None,
            "peak_reserved_bytes": torch.xpu.max_memory_reserved(self.device()) or None,
            "total_bytes": torch.xpu.get_device_properties(self.device()).total_memory,
        }

    def describe(self) -> dict[str, Any]:
        import torch

        properties = torch.xpu.get_device_properties(self.device())
        return {
            "kind": self.name,
            "name": properties.name,
            "index": self.settings.device_index,
            "count": torch.xpu.device_count(),
            "memory_bytes": properties.total_memory,
            "driver": getattr(properties, "driver_version", None),
            "emulated": False,
        }

    def versions(self) -> dict[str, str | None]:
        return {**super().versions(), "xpu": torch_build().get("xpu")}

    def peak_lookup_key(self) -> str | None:
        return self.describe()["name"]

    def classify_error(self, error: BaseException) -> Failure | None:
        text = str(error)
        if isinstance(error, RuntimeError) and "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY" in text:
            error = MemoryError(text)
        common = super().classify_error(error)
        cause = next((line.strip() for line in text.splitlines() if any(fault in line for fault in FAULTS)), None)
        if common is not None or cause is None or not isinstance(error, RuntimeError):
            return common
        return Failure("device_fault", cause, "see dmesg for the driver's messages, and reset the device or the host")
