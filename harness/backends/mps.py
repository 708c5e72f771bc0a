"""Apple GPUs through torch.mps, which is part of PyTorch. Never run on one so far: tested against a fake."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.base import Backend
from harness.backends.failures import Failure
from harness.backends.host_checks import Problem, torch_problems, unsafe_env_vars
from harness.backends.step import EventTimer
from harness.environment import cpu_model
from harness.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch

UNSAFE_ENV_VARS = {
    "PYTORCH_ENABLE_MPS_FALLBACK": (("", "0"), "lets operations that the device lacks run on the host"),
    "PYTORCH_MPS_FAST_MATH": (("", "0"), "computes with less accuracy than float32 has"),
    "PYTORCH_MPS_TRACE_SIGNPOSTS": (("", "0"), "traces every operation, so timings are worthless"),
}


class MpsBackend(Backend):
    """The GPU of an Apple chip; a host has one, and its memory is the host's."""

    name = "mps"
    environment_prefixes: ClassVar[tuple[str, ...]] = ("MTL_", "METAL_")
    fallback_pattern = "is not currently supported on the MPS backend and will fall back to run on the CPU"
    devices_share_memory = True

    def device_threads(self) -> int | None:
        return None

    def preflight(self) -> list[Problem]:
        problems = [*torch_problems(), *self._thread_problems()]
        if sys.platform != "darwin":
            problems.append(Problem(f"this host runs {sys.platform}, Apple's GPUs are reached from macOS", "use a Mac"))
        if self.settings.device_index != 0:
            problems.append(
                Problem(
                    f"backend.device_index is {self.settings.device_index}, but there is one GPU",
                    "leave backend.device_index=0",
                )
            )
        return problems + unsafe_env_vars(UNSAFE_ENV_VARS)

    def load(self) -> None:
        import torch

        if not torch.backends.mps.is_built():
            raise BackendUnavailable(
                "backend mps: the installed torch was built without MPS; pip install torch on macOS"
            )
        if not torch.backends.mps.is_available():
            raise BackendUnavailable(
                "backend mps: PyTorch finds no GPU that it can use; it needs Apple silicon and macOS 14"
            )

    def device(self) -> torch.device:
        import torch

        return torch.device("mps", 0)

    def synchronize(self) -> None:
        import torch

        torch.mps.synchronize()

    def event_timer(self) -> EventTimer | None:
        import torch

        from harness.backends.step import TorchEvents

        return TorchEvents(lambda: torch.mps.Event(enable_timing=True))

    def memory(self) -> dict[str, int | None] | None:
        import torch

        # There is no peak to be had: what is held now is at least no less than what is in use.
        return {
            "peak_allocated_bytes": None,
            "peak_reserved_bytes": None,
            "held_by_driver_bytes": torch.mps.driver_allocated_memory() or None,
            "total_bytes": torch.mps.recommended_max_memory() or None,
        }

    def describe(self) -> dict[str, Any]:
        import torch

        return {
            "kind": self.name,
            "name": cpu_model(),
            "index": 0,
            "count": 1,
            "memory_bytes": torch.mps.recommended_max_memory() or None,
            "emulated": False,
        }

    def classify_error(self, error: BaseException) -> Failure | None:
        common = super().classify_error(error)
        text = str(error)
        if common is not None or not isinstance(error, RuntimeError) or "Command buffer execution failed" not in text:
            return common
        return Failure(
            "device_fault", text.strip().splitlines()[0], "restart; other users of the GPU may have starved it"
        )
