"""The CPU: the reference that every machine has, and what CI runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.base import Backend, Problem, torch_problems
from harness.environment import allowed_cores, cpu_model, memory_limit_bytes, peak_resident_bytes

if TYPE_CHECKING:
    import torch


class CpuBackend(Backend):
    """Work is done before a call returns, so the host clock is exact for every step."""

    name = "cpu"
    collective = "gloo"
    environment_prefixes: ClassVar[tuple[str, ...]] = ("OMP_", "MKL_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_")
    asynchronous = False

    def preflight(self) -> list[Problem]:
        problems = [*torch_problems(), *self._thread_problems()]
        if self.settings.device_index != 0:
            problems.append(
                Problem(
                    f"backend.device_index is {self.settings.device_index}, but there is one CPU device",
                    "leave backend.device_index=0",
                )
            )
        return problems

    def load(self) -> None:
        import torch  # noqa: F401 (here, so that a broken install is reported as this backend's)

    def device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def synchronize(self) -> None:
        """Nothing is queued on a CPU."""

    def effective(self) -> dict[str, Any]:
        import torch

        return {
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        }

    def memory(self) -> dict[str, int | None] | None:
        # The host's memory is the device's: the whole process counts, Python and libraries included.
        return {
            "peak_allocated_bytes": peak_resident_bytes(),
            "peak_reserved_bytes": None,
            "total_bytes": memory_limit_bytes(),
        }

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "name": cpu_model(),
            "index": 0,
            "count": 1,
            "memory_bytes": memory_limit_bytes(),
            "cores": allowed_cores(),
            "emulated": False,
        }
