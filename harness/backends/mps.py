"""Apple GPUs through torch.mps, which is part of PyTorch. Tested against a fake only, never on a device."""

from __future__ import annotations

import re
import sys
from typing import Any

from harness.backends.host_checks import Problem, torch_problems, unsafe_env_vars
from harness.backends.torch_device import TorchDeviceBackend
from harness.environment import cpu_model
from harness.errors import BackendUnavailable

UNSAFE_ENV_VARS = {
    "PYTORCH_ENABLE_MPS_FALLBACK": (("", "0"), "lets unsupported operations run on the host"),
    "PYTORCH_MPS_FAST_MATH": (("", "0"), "computes with less accuracy than float32"),
    "PYTORCH_MPS_TRACE_SIGNPOSTS": (("", "0"), "traces every operation, so timings are worthless"),
}


class MpsBackend(TorchDeviceBackend):
    """The GPU of an Apple chip. A host has one, and its memory is the host's."""

    name = "mps"
    environment_prefixes = ("MTL_", "METAL_")
    fallback_pattern = "is not currently supported on the MPS backend and will fall back to run on the CPU"
    devices_share_memory = True
    takes_index = False
    fault_pattern = re.compile("Command buffer execution failed")
    fault_remedy = "restart; other users of the GPU may have starved it"

    def device_threads(self) -> int | None:
        return None

    def preflight(self) -> list[Problem]:
        problems = [*torch_problems(), *self._thread_problems()]
        if sys.platform != "darwin":
            problems.append(Problem(f"this host runs {sys.platform}, Apple's GPUs need macOS", "use a Mac"))
        return [*problems, *self._single_device_problems("GPU"), *unsafe_env_vars(UNSAFE_ENV_VARS)]

    def load(self) -> None:
        import torch

        if not torch.backends.mps.is_built():
            raise BackendUnavailable(
                "backend mps: the installed torch was built without MPS; pip install torch on macOS"
            )
        if not torch.backends.mps.is_available():
            raise BackendUnavailable("backend mps: PyTorch finds no usable GPU; it needs Apple silicon and macOS 14")

    def supports_bf16(self) -> bool:
        return True

    def reset_peak_memory(self) -> None:
        """torch.mps keeps no peak."""

    def memory(self) -> dict[str, int | None] | None:
        # No peak is available: the memory that the driver holds now is at least what is in use.
        return {
            "peak_allocated_bytes": None,
            "peak_reserved_bytes": None,
            "held_by_driver_bytes": self.module().driver_allocated_memory() or None,
            "total_bytes": self.total_memory_bytes(),
        }

    def total_memory_bytes(self) -> int | None:
        return self.module().recommended_max_memory() or None

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "name": cpu_model(),
            "index": 0,
            "count": 1,
            "memory_bytes": self.total_memory_bytes(),
            "emulated": False,
        }

    def peak_lookup_key(self) -> str | None:
        return None
