"""The CPU: the reference that every machine has, and what CI runs on."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.base import Backend
from harness.backends.host_checks import Problem, torch_problems
from harness.backends.rapl import open_rapl
from harness.backends.sensors import READ_BY_ANOTHER, Sensor
from harness.environment import allowed_cores, cpu_model, memory_limit_bytes, peak_resident_bytes
from harness.world import World

if TYPE_CHECKING:
    import torch


# glibc's mallopt parameters (malloc.h): when to give memory back, and how many blocks may be mapped one by one.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MAX_INT = 2**31 - 1


def keep_freed_memory() -> bool | None:
    """Have the C library keep what is freed for the next step, as the allocators of other devices do by default.

    Left alone, glibc returns large blocks to the kernel and gets them back page by page in every step, more or
    fewer of them as the heap happens to lie: several per cent of the step, different from process to process.
    Returns whether it took effect; None where the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return None
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, MAX_INT))


class CpuBackend(Backend):
    """Work is done before a call returns, so the host clock is exact for every step."""

    name = "cpu"
    collective = "gloo"
    environment_prefixes: ClassVar[tuple[str, ...]] = ("OMP_", "MKL_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_")
    asynchronous = False
    devices_share_memory = True
    _keeps_freed_memory: bool | None = None

    def join(self, world: World) -> None:
        # All processes of a host share its one device.
        self.world = world

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

    def apply(self, precision: str) -> None:
        super().apply(precision)
        self._keeps_freed_memory = keep_freed_memory()

    def device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def kernels(self) -> Mapping[str, Mapping[str, Any]]:
        from harness.backends.kernels import blocked_attention

        return {**super().kernels(), "attention": {"blocked": blocked_attention}}

    def tuned_defaults(self) -> Mapping[str, Any]:
        return {
            **super().tuned_defaults(),
            "adamw": "fused",
            "compile": "blocks",
            "attention": "blocked",
            "cross_entropy": "chunked",
            "activation_memory_budget": 0.95,
        }

    def compile_problems(self) -> list[Problem]:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return [
                Problem(
                    f"torch.compile needs a C++ compiler, and {compiler} is not on the PATH",
                    "install g++, name another in CXX, or set track.compile=no",
                )
            ]
        return []

    def synchronize(self) -> None:
        """Nothing is queued on a CPU."""

    def effective_settings(self) -> dict[str, Any]:
        import torch

        return {
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "keeps_freed_memory": self._keeps_freed_memory,
            "onednn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        }

    def memory(self) -> dict[str, int | None] | None:
        # The host's memory is the device's: the whole process counts, Python and libraries included.
        return {
            "peak_allocated_bytes": peak_resident_bytes(),
            "peak_reserved_bytes": None,
            "total_bytes": memory_limit_bytes(),
        }

    def telemetry(self) -> Sensor | str:
        if self.world.local_rank > 0:
            return READ_BY_ANOTHER
        return open_rapl()

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
