"""The CPU: the reference device that every machine and CI has."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.base import Backend
from harness.backends.host_checks import Problem, compiled_code_problems, torch_problems
from harness.backends.rapl import open_rapl
from harness.backends.sensors import READ_BY_ANOTHER, Sensor
from harness.config import RANDOM, STOCK, Config
from harness.environment import allowed_cores, cpu_model, memory_limit_bytes, peak_resident_bytes
from harness.world import World

if TYPE_CHECKING:
    import torch


# glibc's mallopt parameters (malloc.h): when to return memory, and how many blocks may have a mapping of their own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MAX_INT = 2**31 - 1
# The longest sequence that was measured, in harness/docs/tuning.md.
MAX_BLOCKED_SEQ_LEN = 8192


def keep_freed_memory() -> bool | None:
    """Make the C library keep freed memory for the next step, as the allocators of other devices do by default.

    By default glibc returns large blocks to the kernel and faults them in again page by page in every step. That takes
    several per cent of a step, and differs from process to process with the layout of the heap.

    Returns:
        Whether it took effect; None if the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return None
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, MAX_INT))


class CpuBackend(Backend):
    """The host's CPU. A call returns when its work is done, so the host clock is exact for every step."""

    name = "cpu"
    collective = "gloo"
    # Recompute all that is cheap, and no products, which a budget below 1 includes where that does not suffice.
    compiler_settings: ClassVar[Mapping[str, bool]] = {
        "ban_recompute_used_far_apart": False,
        "ban_recompute_materialized_backward": False,
    }
    environment_prefixes: ClassVar[tuple[str, ...]] = ("OMP_", "MKL_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_")
    asynchronous = False
    devices_share_memory = True
    _keeps_freed_memory: bool | None = None

    def join(self, world: World) -> None:
        # All processes of a host share its only device.
        self.world = world

    def preflight(self) -> list[Problem]:
        return [*torch_problems(), *self._thread_problems(), *self._single_device_problems("CPU device")]

    def load(self) -> None:
        import torch  # noqa: F401 (a broken install is reported as this backend's)

    def apply(self, precision: str) -> None:
        super().apply(precision)
        self._keeps_freed_memory = keep_freed_memory()

    def device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def kernels(self) -> Mapping[str, Mapping[str, Any]]:
        from harness.backends.accumulation import FusedAccumulation
        from harness.backends.kernels import blocked_attention

        return {
            **super().kernels(),
            "attention": {"blocked": blocked_attention},
            "gradient_accumulation": {"fused": FusedAccumulation()},
        }

    def tuned_defaults(self, config: Config) -> Mapping[str, Any]:
        # Both kernels round products to 16 bits. In fp16 those of large queries and keys overflow, and gradients that
        # no loss scale has enlarged yet vanish.
        is_half = config.precision == "fp16"
        # Trained weights can have attention scores in the hundreds, of which bf16 keeps whole numbers at best. What
        # blocked attention keeps for the backward pass grows with the square of the sequence.
        is_stock = is_half or config.init != RANDOM or config.workload.seq_len > MAX_BLOCKED_SEQ_LEN
        return {
            **super().tuned_defaults(config),
            "adamw": "fused",
            "compile": "blocks",
            "attention": STOCK if is_stock else "blocked",
            "cross_entropy": STOCK if is_half else "chunked",
            "gradient_accumulation": "fused",
        }

    def compile_problems(self) -> list[Problem]:
        problems = compiled_code_problems()
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            missing = Problem(
                f"torch.compile needs a C++ compiler, and {compiler} is not on the PATH",
                "install g++, set CXX to another compiler, or set track.compile=no",
            )
            return [missing, *problems]
        return problems

    def synchronize(self) -> None:
        """A CPU queues nothing."""

    def effective_settings(self) -> dict[str, Any]:
        import torch

        return {
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "keeps_freed_memory": self._keeps_freed_memory,
            "onednn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        }

    def memory(self) -> dict[str, int | None] | None:
        # The device's memory is the host's: the whole process counts, Python and libraries included.
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
