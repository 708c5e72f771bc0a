"""Intel GPUs through torch.xpu, which is part of PyTorch. Tested against a fake only, never on a device."""

from __future__ import annotations

import glob
import re
from typing import Any

from harness.backends.host_checks import (
    Problem,
    build_problems,
    node_problems,
    torch_build,
    torch_problems,
    unsafe_env_vars,
)
from harness.backends.torch_device import TorchDeviceBackend

RENDER_NODES = "/dev/dri/renderD*"
UNSAFE_ENV_VARS = {
    "PYTORCH_ENABLE_XPU_FALLBACK": (("", "0"), "lets unsupported operations run on the host"),
    "SYCL_PI_TRACE": (("", "0"), "prints every call of the driver, so timings are worthless"),
    "SYCL_UR_TRACE": (("", "0"), "prints every call of the driver, so timings are worthless"),
}


class XpuBackend(TorchDeviceBackend):
    """One Intel GPU."""

    name = "xpu"
    collective = "xccl"
    environment_prefixes = ("ZE_", "SYCL_", "UR_", "CCL_", "ONEAPI_", "NEOReadDebugKeys")
    # The second is the wording under PYTORCH_DEBUG_XPU_FALLBACK=1, which differs between releases.
    fallback_pattern = (
        r"Aten Op fallback from XPU to CPU|on the XPU backend (and will fall|is falling) back to run on the CPU"
    )
    pins_host_memory = True
    visible_devices_variable = "ZE_AFFINITY_MASK"
    driver_tool = "sycl-ls"
    profiler_activity = "XPU"
    fault_pattern = re.compile(
        "UR_RESULT_ERROR_(DEVICE_LOST|UNKNOWN|OUT_OF_DEVICE_MEMORY)|level_zero backend failed|Native API failed"
    )
    out_of_memory_pattern = re.compile("UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY")
    fault_remedy = "see dmesg for the driver's messages, and reset the device or the host"

    def preflight(self) -> list[Problem]:
        return [
            *torch_problems(),
            *self._thread_problems(),
            *build_problems(torch_build(), "XPU", ("xpu",)),
            *node_problems(
                sorted(glob.glob(RENDER_NODES)),
                kind="GPU",
                expected=RENDER_NODES,
                install="install Intel's GPU driver; in a container add --device /dev/dri",
                permit="add the user to the group render, or run as root",
            ),
            *unsafe_env_vars(UNSAFE_ENV_VARS),
        ]

    def count_devices(self) -> int:
        return self.module().device_count() if self.module().is_available() else 0

    def memory(self) -> dict[str, int | None] | None:
        # Not every Intel GPU reports its free memory.
        return {**self._peak_memory(), "total_bytes": self.total_memory_bytes()}

    def describe(self) -> dict[str, Any]:
        properties = self.module().get_device_properties(self.settings.device_index)
        return {**super().describe(), "driver": getattr(properties, "driver_version", None)}

    def versions(self) -> dict[str, str | None]:
        return {**super().versions(), "xpu": torch_build().get("xpu")}
