"""Intel Gaudi through habana_frameworks, which needs Intel's build of torch. Tested against a fake only.

Gaudi runs eagerly here, whatever the default of its release is, or in lazy mode with PT_HPU_LAZY_MODE=1. In lazy mode
operations are recorded, and run as a graph at each step boundary: after a backward pass and after an update.
"""

from __future__ import annotations

import glob
import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from harness.backends.host_checks import Problem, node_problems, torch_problems, unsafe_env_vars
from harness.backends.step import EventTimer, TrainStep
from harness.backends.torch_device import TorchDeviceBackend

if TYPE_CHECKING:
    import torch

DEVICE_NODES = "/dev/accel/accel*"
LAZY = "PT_HPU_LAZY_MODE"
UNSAFE_ENV_VARS = {"PT_HPU_GPU_MIGRATION": (("", "0"), "redirects the calls of another kind of device to this one")}


def lazy() -> bool:
    """Return whether operations are recorded until a step boundary."""
    return os.environ.get(LAZY, "0").strip() == "1"


class HpuBackend(TorchDeviceBackend):
    """One Gaudi."""

    name = "hpu"
    collective = "hccl"
    distributions = ("habana-torch-plugin",)
    environment_prefixes = ("HABANA_", "PT_HPU_", "HCCL_", "GAUDI_", "LOG_LEVEL_")
    visible_devices_variable = "HABANA_VISIBLE_DEVICES"
    driver_tool = "hl-smi"
    takes_index = False
    fault_pattern = re.compile("synStatus=|Device critical error|FATAL ERROR :: MODULE:")
    out_of_memory_pattern = re.compile(r"synStatus=9\b|Allocation failed")
    fault_remedy = "hl-smi shows the device's state; dmesg has the driver's messages"

    def preflight(self) -> list[Problem]:
        problems = [*torch_problems(), *self._thread_problems()]
        if find_spec("habana_frameworks") is None:
            problems.append(
                Problem(
                    "the package habana_frameworks is not installed",
                    "use Intel's Gaudi image, or install habana-torch-plugin with Intel's build of torch",
                )
            )
        nodes = node_problems(
            sorted(glob.glob(DEVICE_NODES)),
            kind="Gaudi",
            expected=DEVICE_NODES,
            install="install the driver; in a container use --runtime=habana, or request habana.ai/gaudi",
            permit="run as root, or change the permissions of the nodes",
        )
        return [*problems, *nodes, *unsafe_env_vars(UNSAFE_ENV_VARS)]

    def module(self) -> Any:
        from habana_frameworks.torch import hpu  # pyright: ignore[reportMissingImports]

        return hpu

    def count_devices(self) -> int:
        # The default of lazy mode depends on the release, so it is always set.
        os.environ.setdefault(LAZY, "0")
        import habana_frameworks.torch.core  # pyright: ignore[reportMissingImports]

        if self.world.size > 1:
            # The collectives register themselves on import.
            import habana_frameworks.torch.distributed.hccl  # noqa: F401 # pyright: ignore[reportMissingImports]
        return self.module().device_count()

    def supports_bf16(self) -> bool:
        return True

    def effective_settings(self) -> dict[str, Any]:
        return {"lazy_mode": lazy()}

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> TrainStep:
        from harness.backends.eager import EagerStep

        boundary = None
        if lazy():
            from habana_frameworks.torch import core  # pyright: ignore[reportMissingImports]

            boundary = core.mark_step
        return EagerStep(model, optimizer, self.device(), boundary=boundary, **settings)

    def event_timer(self) -> EventTimer | None:
        # An event recorded lazily enters the device's queue at the next boundary only.
        return None if lazy() else super().event_timer()

    def memory(self) -> dict[str, int | None] | None:
        return {
            "peak_allocated_bytes": int(self.module().max_memory_allocated()) or None,
            "peak_reserved_bytes": None,
            "total_bytes": self.total_memory_bytes(),
        }

    def total_memory_bytes(self) -> int | None:
        return int(self.module().mem_get_info()[1]) or None
