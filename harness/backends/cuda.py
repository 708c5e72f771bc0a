"""NVIDIA GPUs through torch.cuda. ROCm builds of torch answer to the same name and are said to be what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends import nvml
from harness.backends.base import Backend
from harness.backends.failures import OUT_OF_MEMORY_REMEDY, Failure
from harness.backends.host_checks import (
    Problem,
    installed_version,
    torch_build,
    torch_problems,
    unsafe_env_vars,
)
from harness.backends.sensors import Sensor
from harness.backends.step import EventTimer
from harness.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch

# The driver's control node on Linux, under WSL, and AMD's for ROCm builds.
NVIDIA_NODES = ("/dev/nvidiactl", "/dev/dxg")
AMD_NODES = ("/dev/kfd",)
DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")
# Variables that would make the run something else than it says: the values that do no harm, and why the others do.
UNSAFE_ENV_VARS = {
    "CUDA_LAUNCH_BLOCKING": (("", "0"), "makes every launch wait for the device, so timings are worthless"),
    "HIP_LAUNCH_BLOCKING": (("", "0"), "makes every launch wait for the device, so timings are worthless"),
    "AMD_SERIALIZE_KERNEL": (("", "0"), "makes every kernel wait for the one before it, so timings are worthless"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (("",), "sends every allocation to the driver, so timings are worthless"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": (("", "0"), "turns TF32 on behind the harness's back"),
}
FAULT = re.compile(r"CUDA(?: driver)? error|HIP error|CUBLAS_STATUS_\w+|CUDNN_STATUS_\w+|cuDNN error|NCCL error")


class CudaBackend(Backend):
    """One CUDA device. float32 means float32: TF32 is switched off for matrix products and cuDNN."""

    name = "cuda"
    collective = "nccl"
    collective_variables: ClassVar[Mapping[str, str]] = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
    environment_prefixes: ClassVar[tuple[str, ...]] = (
        "CUDA_",
        "NVIDIA_",
        "NCCL_",
        "CUBLAS_",
        "CUDNN_",
        "HIP_",
        "ROCR_",
    )
    pins_host_memory = True

    def preflight(self) -> list[Problem]:
        problems = [*torch_problems(), *self._thread_problems()]
        build = torch_build()
        if build and build.get("cuda") is None and build.get("hip") is None:
            problems.append(
                Problem(
                    f"the installed torch {build.get('version')} was built without CUDA",
                    "install a CUDA build of torch in an environment of its own (pytorch.org, Get Started)",
                )
            )
        nodes = AMD_NODES if build.get("hip") else NVIDIA_NODES
        flags = "--device /dev/kfd --device /dev/dri" if build.get("hip") else "--gpus all"
        present = [node for node in nodes if os.path.exists(node)]
        if not present:
            problems.append(
                Problem(
                    f"no GPU driver is loaded, or it is not passed into this container ({nodes[0]} is missing)",
                    f"install the GPU's driver; in a container add {flags} (Docker) or request the GPU resource",
                )
            )
        elif not os.access(present[0], os.R_OK | os.W_OK):
            problems.append(
                Problem(f"{present[0]} may not be opened by this user", f"sudo chmod a+rw {present[0]}, or run as root")
            )
        problems += _variable_problems(rocm=bool(build.get("hip")))
        return problems

    def load(self) -> None:
        import torch

        try:
            torch.cuda.init()
            count = torch.cuda.device_count()
        except (RuntimeError, AssertionError) as error:
            raise BackendUnavailable(
                f"backend cuda cannot be opened: {error}; nvidia-smi shows the driver's side"
            ) from error
        if self.settings.device_index >= count:
            raise BackendUnavailable(
                f"backend.device_index: found {self.settings.device_index}, but {count} devices are visible "
                f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); "
                f"choose 0 to {count - 1}"
            )
        torch.cuda.set_device(self.settings.device_index)

    def device(self) -> torch.device:
        import torch

        return torch.device("cuda", self.settings.device_index)

    def apply(self, precision: str) -> None:
        import torch

        super().apply(precision)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        # Autocast would run bf16 on older devices too, by converting: many times slower, without a word.
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise BackendUnavailable(
                f"precision=bf16: {torch.cuda.get_device_name(self.device())} has no bf16 arithmetic; "
                "use precision=fp16 or fp32"
            )

    def effective_settings(self) -> dict[str, Any]:
        import torch

        return {
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_cudnn": torch.backends.cudnn.allow_tf32,
            "bf16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
            "fp16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "launch_blocking": os.environ.get("CUDA_LAUNCH_BLOCKING", "0") == "1",
            "allocator": torch.cuda.get_allocator_backend(),
        }

    def profiler_activities(self) -> list[Any]:
        from torch.profiler import ProfilerActivity

        return [ProfilerActivity.CPU, ProfilerActivity.CUDA]

    def compile_problems(self) -> list[Problem]:
        if installed_version("triton") is None and installed_version("pytorch-triton-rocm") is None:
            return [Problem("torch.compile needs triton, which is not installed", "pip install triton")]
        return []

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize(self.device())

    def event_timer(self) -> EventTimer | None:
        import torch

        from harness.backends.step import TorchEvents

        return TorchEvents(lambda: torch.cuda.Event(enable_timing=True))

    def reset_peak_memory(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats(self.device())

    def memory(self) -> dict[str, int | None] | None:
        import torch

        free, total = torch.cuda.mem_get_info(self.device())
        return {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(self.device()),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(self.device()),
            "used_on_device_bytes": total - free,
            "total_bytes": total,
        }

    def describe(self) -> dict[str, Any]:
        import torch

        properties = torch.cuda.get_device_properties(self.device())
        sharing = nvml.sharing(self._uuid())
        return {
            "kind": "rocm" if torch.version.hip else self.name,
            "name": properties.name,
            "index": self.settings.device_index,
            "count": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "uuid": self._uuid(),
            # A slice of a GPU says so in its name too, with or without the management library.
            "mig": True if " MIG " in properties.name else sharing["mig"],
            "mps": sharing["mps"],
            "emulated": False,
        }

    def versions(self) -> dict[str, str | None]:
        build = torch_build()
        return {
            **super().versions(),
            "cuda": build.get("cuda"),
            "hip": build.get("hip"),
            "driver": driver_version(),
            "cudnn": _cudnn_version(),
        }

    def peak_lookup_key(self) -> str | None:
        # A slice has not the whole chip's peak.
        device = self.describe()
        return None if device["mig"] else device["name"]

    def other_processes(self) -> list[str] | None:
        return nvml.other_processes(self._uuid())

    def clock_state(self) -> dict[str, Any] | None:
        return nvml.clock_state(self._uuid())

    def telemetry(self) -> Sensor | str:
        return nvml.open_sensor(self._uuid())

    def _uuid(self) -> str | None:
        import torch

        return str(getattr(torch.cuda.get_device_properties(self.device()), "uuid", "")) or None

    def classify_error(self, error: BaseException) -> Failure | None:
        common = super().classify_error(error)
        text = str(error)
        if common is not None or not FAULT.search(text):
            return common
        cause = next(line.strip() for line in text.splitlines() if FAULT.search(line))
        if "ALLOC_FAILED" in cause:
            # cuBLAS and cuDNN take memory of their own, outside torch's allocator.
            return Failure("oom", cause, OUT_OF_MEMORY_REMEDY)
        if "no kernel image is available" in cause:
            return Failure("device_fault", cause, "install a build of torch that is made for this GPU's architecture")
        return Failure(
            "device_fault",
            f"{cause} (reported late: the line of Python that it came from is not the culprit)",
            "run again with CUDA_LAUNCH_BLOCKING=1 to find the operation (its timings are worthless), and see "
            "dmesg for Xid messages",
        )


def _variable_problems(*, rocm: bool) -> list[Problem]:
    problems = unsafe_env_vars(UNSAFE_ENV_VARS)
    names = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    for name in names if rocm else names[-1:]:
        if os.environ.get(name, "0").strip() in ("", "-1", "NoDevFiles"):
            problems.append(
                Problem(
                    f"{name}={os.environ[name]!r} hides every device",
                    f"unset {name}, or set it to the devices' numbers",
                )
            )
    return problems


def driver_version() -> str | None:
    """Return the NVIDIA driver's version from its own file, or None."""
    try:
        text = DRIVER_VERSION_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found.group(1) if found else None


def _cudnn_version() -> str | None:
    import sys

    # Asked only where torch is loaded already: preflight and doctor must not import it for this.
    torch = sys.modules.get("torch")
    version = torch.backends.cudnn.version() if torch is not None else None
    return None if version is None else str(version)
