"""NVIDIA GPUs through torch.cuda. ROCm builds of torch use the same name; records give their kind as rocm."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from harness.backends import nvml
from harness.backends.failures import Failure
from harness.backends.host_checks import (
    Problem,
    build_problems,
    compiled_code_problems,
    node_problems,
    torch_build,
    torch_problems,
    unsafe_env_vars,
)
from harness.backends.sensors import Sensor
from harness.backends.torch_device import TorchDeviceBackend
from harness.config import Config
from harness.text import true_name

# The driver's control node on Linux, under WSL, and AMD's for ROCm builds.
NVIDIA_NODES = ("/dev/nvidiactl", "/dev/dxg")
AMD_NODES = ("/dev/kfd",)
DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")
# Variables that would falsify a run: their safe values, and the effect of all others.
UNSAFE_ENV_VARS = {
    "CUDA_LAUNCH_BLOCKING": (("", "0"), "makes every launch wait for the device, so timings are worthless"),
    "HIP_LAUNCH_BLOCKING": (("", "0"), "makes every launch wait for the device, so timings are worthless"),
    "AMD_SERIALIZE_KERNEL": (("", "0"), "makes every kernel wait for the one before it, so timings are worthless"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (("",), "sends every allocation to the driver, so timings are worthless"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": (("", "0"), "turns TF32 on against the harness's setting"),
}


class CudaBackend(TorchDeviceBackend):
    """One CUDA device. float32 means float32: TF32 is off for matrix products and cuDNN."""

    name = "cuda"
    collective = "nccl"
    collective_variables: ClassVar[Mapping[str, str]] = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
    environment_prefixes = ("CUDA_", "NVIDIA_", "NCCL_", "CUBLAS_", "CUDNN_", "HIP_", "ROCR_")
    pins_host_memory = True
    visible_devices_variable = "CUDA_VISIBLE_DEVICES"
    driver_tool = "nvidia-smi"
    profiler_activity = "CUDA"
    fault_pattern = re.compile(
        r"CUDA(?: driver)? error|HIP error|CUBLAS_STATUS_\w+|CUDNN_STATUS_\w+|cuDNN error|NCCL error"
    )
    # cuBLAS and cuDNN allocate memory of their own, outside torch's allocator.
    out_of_memory_pattern = re.compile("ALLOC_FAILED")

    def preflight(self) -> list[Problem]:
        build = torch_build()
        rocm = bool(build.get("hip"))
        nodes = AMD_NODES if rocm else NVIDIA_NODES
        flags = "--device /dev/kfd --device /dev/dri" if rocm else "--gpus all"
        present = [node for node in nodes if os.path.exists(node)]
        return [
            *torch_problems(),
            *self._thread_problems(),
            *build_problems(build, "CUDA", ("cuda", "hip")),
            *node_problems(
                present,
                kind="GPU",
                expected=nodes[0],
                install=f"install the GPU's driver; in a container add {flags} (Docker) or request the GPU resource",
                permit=f"sudo chmod a+rw {(present or nodes)[0]}, or run as root",
            ),
            *unsafe_env_vars(UNSAFE_ENV_VARS),
            *_visibility_problems(rocm=rocm),
        ]

    def count_devices(self) -> int:
        self.module().init()
        return self.module().device_count()

    def apply(self, precision: str) -> None:
        import torch

        super().apply(precision)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

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

    def kernels(self) -> Mapping[str, Mapping[str, Any]]:
        from harness.backends.accumulation import FusedAccumulation

        return {**super().kernels(), "gradient_accumulation": {"fused": FusedAccumulation()}}

    def tuned_defaults(self, config: Config) -> Mapping[str, Any]:
        # Chosen from public figures, not measured here: harness/docs/tuning.md has the sources.
        return {**super().tuned_defaults(config), "adamw": "fused", "compile": "blocks"}

    def compile_problems(self) -> list[Problem]:
        # The module, since its distribution has another name in each build of torch.
        if importlib.util.find_spec("triton") is None:
            return [Problem("torch.compile needs triton, which is not installed", self._triton_remedy())]
        return compiled_code_problems()

    def _triton_remedy(self) -> str:
        """Return the command that installs the triton of this build of torch."""
        import torch

        # NVIDIA's distribution would take the place of ROCm's.
        return (
            "install torch for ROCm again, which brings its own triton" if torch.version.hip else "pip install triton"
        )

    def device_name(self) -> str | None:
        return super().device_name() or self._architecture()

    def _architecture(self) -> str | None:
        # ROCm has no name for a chip that its table of names lacks, but always its architecture, such as gfx942.
        properties = self.module().get_device_properties(self.settings.device_index)
        return true_name(str(getattr(properties, "gcnArchName", "")).partition(":")[0])

    def describe(self) -> dict[str, Any]:
        import torch

        properties = torch.cuda.get_device_properties(self.settings.device_index)
        sharing = nvml.sharing(self._uuid())
        return {
            **super().describe(),
            "kind": "rocm" if torch.version.hip else self.name,
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "uuid": self._uuid(),
            # The name of a slice of a GPU states it too, with or without the management library.
            "mig": True if " MIG " in properties.name else sharing["mig"],
            "mps": sharing["mps"],
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
        # A slice does not have the whole chip's peak.
        device = self.describe()
        return None if device["mig"] else device["name"]

    def other_processes(self) -> list[str] | None:
        return nvml.other_processes(self._uuid())

    def telemetry(self) -> Sensor | str:
        import torch

        if torch.version.hip:
            return "the harness reads no sensor of AMD's GPUs"
        if self.describe()["mig"]:
            return "the device is a slice of a GPU (MIG), and NVML reports the power of whole GPUs only"
        return nvml.open_sensor(self._uuid())

    def _uuid(self) -> str | None:
        properties = self.module().get_device_properties(self.settings.device_index)
        return str(getattr(properties, "uuid", "")) or None

    def explain_fault(self, cause: str) -> Failure:
        if "no kernel image is available" in cause:
            return Failure("device_fault", cause, "install a build of torch that is made for this GPU's architecture")
        import torch

        messages = "amdgpu" if torch.version.hip else "Xid"
        return Failure(
            "device_fault",
            f"{cause} (reported late: the line of Python in the traceback is not the culprit)",
            "run again with CUDA_LAUNCH_BLOCKING=1 to find the operation (its timings are worthless), and see "
            f"dmesg for {messages} messages",
        )


def _visibility_problems(*, rocm: bool) -> list[Problem]:
    names = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    return [
        Problem(f"{name}={os.environ[name]!r} hides every device", f"unset {name}, or set it to the devices' numbers")
        for name in (names if rocm else names[-1:])
        if os.environ.get(name, "0").strip() in ("", "-1", "NoDevFiles")
    ]


def driver_version() -> str | None:
    """Return the NVIDIA driver's version from its own file, or None."""
    try:
        text = DRIVER_VERSION_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found.group(1) if found else None


def _cudnn_version() -> str | None:
    # Only where torch is loaded already: preflight and doctor must not import it for this.
    torch = sys.modules.get("torch")
    version = torch.backends.cudnn.version() if torch is not None else None
    return None if version is None else str(version)
