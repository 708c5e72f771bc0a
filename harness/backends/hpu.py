"""Intel Gaudi through habana_frameworks, which needs Intel's own build of torch. Never run on one: tested with a fake.

Gaudi runs eagerly, which is the default here whatever the release's own is, or in lazy mode (PT_HPU_LAZY_MODE=1), where
operations are recorded and run as a graph when a step boundary is marked: after each backward pass and each update.
"""

from __future__ import annotations

import glob
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.base import Backend
from harness.backends.failures import Failure
from harness.backends.host_checks import Problem, torch_problems
from harness.backends.step import NO_SYNC, EventTimer, GradientSync, TrainStep
from harness.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch

DEVICE_NODES = "/dev/accel/accel*"
LAZY = "PT_HPU_LAZY_MODE"
FAULTS = ("synStatus=", "Device critical error", "FATAL ERROR :: MODULE:")


def lazy() -> bool:
    """Return whether operations are recorded until a step boundary is marked."""
    return os.environ.get(LAZY, "0").strip() == "1"


class HpuBackend(Backend):
    """One Gaudi."""

    name = "hpu"
    collective = "hccl"
    distributions = ("habana-torch-plugin",)
    environment_prefixes: ClassVar[tuple[str, ...]] = ("HABANA_", "PT_HPU_", "HCCL_", "GAUDI_", "LOG_LEVEL_")

    def preflight(self) -> list[Problem]:
        problems = [*torch_problems(), *self._thread_problems()]
        if find_spec("habana_frameworks") is None:
            problems.append(
                Problem(
                    "the package habana_frameworks is not installed",
                    "use Intel's Gaudi image, or install habana-torch-plugin with Intel's build of torch",
                )
            )
        nodes = sorted(glob.glob(DEVICE_NODES))
        if not nodes:
            problems.append(
                Problem(
                    f"no Gaudi driver is loaded, or it is not passed into this container ({DEVICE_NODES} is missing)",
                    "install the driver; in a container use --runtime=habana, or request habana.ai/gaudi",
                )
            )
        if os.environ.get("PT_HPU_GPU_MIGRATION", "0").strip() not in ("", "0"):
            problems.append(
                Problem(
                    "PT_HPU_GPU_MIGRATION makes calls of another device's kind run here", "unset PT_HPU_GPU_MIGRATION"
                )
            )
        return problems

    def load(self) -> None:
        # Whether lazy mode is the default depends on the release, so that the default is always said.
        os.environ.setdefault(LAZY, "0")
        try:
            import habana_frameworks.torch.core  # pyright: ignore[reportMissingImports]
            from habana_frameworks.torch import hpu  # pyright: ignore[reportMissingImports]

            if self.world.size > 1:
                # The collectives register themselves on import.
                import habana_frameworks.torch.distributed.hccl  # noqa: F401 # pyright: ignore[reportMissingImports]
            count = hpu.device_count()
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendUnavailable(
                f"backend hpu cannot be opened: {error}; hl-smi shows the driver's side"
            ) from error
        if self.settings.device_index >= count:
            raise BackendUnavailable(
                f"backend.device_index: found {self.settings.device_index}, but {count} devices are visible "
                f"(HABANA_VISIBLE_DEVICES={os.environ.get('HABANA_VISIBLE_DEVICES', 'not set')})"
            )
        self._hpu = hpu
        hpu.set_device(self.settings.device_index)

    def device(self) -> torch.device:
        import torch

        return torch.device("hpu", self.settings.device_index)

    def effective_settings(self) -> dict[str, Any]:
        return {"lazy_mode": lazy()}

    def prepare(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        max_grad_norm: float,
        grad_sync: GradientSync = NO_SYNC,
        skip_nonfinite: bool = False,
    ) -> TrainStep:
        from harness.backends.eager import EagerStep

        boundary = None
        if lazy():
            from habana_frameworks.torch import core  # pyright: ignore[reportMissingImports]

            boundary = core.mark_step
        return EagerStep(model, optimizer, self.device(), precision, max_grad_norm, grad_sync, skip_nonfinite, boundary)

    def synchronize(self) -> None:
        self._hpu.synchronize()

    def event_timer(self) -> EventTimer | None:
        from harness.backends.step import TorchEvents

        # What is recorded lazily has no place in the device's queue until the boundary.
        return None if lazy() else TorchEvents(lambda: self._hpu.Event(enable_timing=True))

    def reset_peak_memory(self) -> None:
        self._hpu.reset_peak_memory_stats()

    def memory(self) -> dict[str, int | None] | None:
        return {
            "peak_allocated_bytes": int(self._hpu.max_memory_allocated()) or None,
            "peak_reserved_bytes": None,
            "total_bytes": self._total_bytes(),
        }

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "name": self._hpu.get_device_name(),
            "index": self.settings.device_index,
            "count": self._hpu.device_count(),
            "memory_bytes": self._total_bytes(),
            "emulated": False,
        }

    def _total_bytes(self) -> int | None:
        return int(self._hpu.mem_get_info()[1]) or None

    def peak_lookup_key(self) -> str | None:
        return self._hpu.get_device_name()

    def classify_error(self, error: BaseException) -> Failure | None:
        common = super().classify_error(error)
        text = str(error)
        cause = next((line.strip() for line in text.splitlines() if any(fault in line for fault in FAULTS)), None)
        if common is not None or cause is None or not isinstance(error, RuntimeError):
            return common
        if "synStatus=9" in cause or "Allocation failed" in text:
            return super().classify_error(MemoryError(cause))
        return Failure("device_fault", cause, "hl-smi shows the device's state; dmesg has the driver's messages")
