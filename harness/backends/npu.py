"""Huawei Ascend NPUs through torch-npu and CANN."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.ascend import emulation, host
from harness.backends.ascend.failures import classify_message, explain_import_failure, explain_set_up_failure
from harness.backends.ascend.sensor import open_npu_smi
from harness.backends.base import Backend
from harness.backends.failures import Failure
from harness.backends.host_checks import Problem, torch_problems
from harness.backends.sensors import Sensor
from harness.backends.step import EventTimer
from harness.config import Config
from harness.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch


class NpuBackend(Backend):
    """One NPU. HF32, private tensor formats and online kernel compilation are off; CPU fallback is an error."""

    name = "npu"
    collective = "hccl"
    collective_variables: ClassVar[Mapping[str, str]] = {
        "HCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_HCCL_ASYNC_ERROR_HANDLING": "0",
    }
    distributions = ("torch-npu",)
    environment_prefixes: ClassVar[tuple[str, ...]] = (
        "ASCEND",
        "HCCL",
        "TORCH_NPU",
        "TORCH_HCCL",
        "ACL_",
        "PYTORCH_NPU_ALLOC_CONF",
        "TASK_QUEUE_ENABLE",
        "CPU_AFFINITY_CONF",
        "COMBINED_ENABLE",
        "MULTI_STREAM_MEMORY_REUSE",
        "INF_NAN_MODE",
    )
    pins_host_memory = True
    # Written by C++, and for some operations in spite of TORCH_NPU_FALLBACK_CPU_DISABLE.
    fallback_pattern = r"will fall back to run on the CPU"

    def preflight(self) -> list[Problem]:
        libraries = host.library_problems()
        return [
            *torch_problems(),
            *host.package_problems(),
            *(libraries or host.installation_problems()),
            # The emulator has no device nodes; everything else is looked at as on a device.
            *([] if emulation.is_emulated() else host.device_problems() or host.driver_problems()),
            *host.variable_problems(),
            *self._thread_problems(),
        ]

    def load(self) -> None:
        # Read when the plug-in starts: work that silently ran on the host must be an error.
        os.environ["TORCH_NPU_FALLBACK_CPU_DISABLE"] = "1"
        try:
            import torch_npu  # type: ignore[import-not-found] # noqa: F401 (registers the device)
        except Exception as error:
            cause, remedy = explain_import_failure(error)
            raise BackendUnavailable(f"backend npu cannot be opened: {cause}; {remedy}") from error
        try:
            # is_available() swallows the driver's errors; opening the device gives the reason.
            _npu().set_device(self.settings.device_index)
            _npu().synchronize()
            # Only this makes torch-npu start the runtime in full, and ask CANN for every function that it needs.
            _npu().current_stream(self.settings.device_index)
        except Exception as error:
            visible = os.environ.get(host.VISIBLE_DEVICES, "not set")
            text = str(error)
            if "107001" in text or "No NPUs are available" in text or "Invalid device" in text:
                raise BackendUnavailable(
                    f"backend.device_index: no NPU {self.settings.device_index}; {_npu().device_count()} are "
                    f"visible ({host.VISIBLE_DEVICES} {visible}); npu-smi info lists them"
                ) from error
            cause, remedy = explain_set_up_failure(text) or (text, "npu-smi info shows the driver's side")
            failure = classify_message(text)
            if failure is not None and cause == text:
                cause, remedy = failure.cause, failure.remedy
            raise BackendUnavailable(f"backend npu cannot be opened: {cause}; {remedy}") from error

    def device(self) -> torch.device:
        import torch

        # Always with the index: torch.device("npu") and torch.device("npu:0") are not equal.
        return torch.device("npu", self.settings.device_index)

    def apply(self, precision: str) -> None:
        super().apply(precision)
        npu = _npu()
        # set_float32_matmul_precision does not reach these, and HF32 is on for convolutions by default.
        npu.matmul.allow_hf32 = False
        npu.conv.allow_hf32 = False
        npu.set_compile_mode(jit_compile=False)
        npu.config.allow_internal_format = False
        # Autocast would only warn and go on in float32.
        if precision == "bf16" and not npu.is_bf16_supported():
            raise BackendUnavailable(
                f"precision=bf16: {npu.get_device_name(self.settings.device_index)} has no bf16 arithmetic; "
                "use precision=fp16 or fp32"
            )

    def check_work(self, config: Config) -> None:
        # CANN's fused AdamW is not told of an overflow: it would apply the step that the loss scaler means to skip.
        if config.precision == "fp16" and config.track.adamw == "fused":
            raise BackendUnavailable(
                "track.adamw=fused with precision=fp16: torch-npu's fused AdamW also applies steps whose gradients "
                "overflowed; set track.adamw=foreach"
            )

    def effective_settings(self) -> dict[str, Any]:
        npu = _npu()
        return {
            "hf32_matmul": npu.matmul.allow_hf32,
            "hf32_conv": npu.conv.allow_hf32,
            "jit_compile": not npu.is_jit_compile_false(),
            "task_queue_level": npu.get_task_queue_enable(),
            "deterministic_level": _deterministic_level(npu),
            "cpu_affinity": os.environ.get("CPU_AFFINITY_CONF"),
            "allocator_settings": os.environ.get("PYTORCH_NPU_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF"),
            "cpu_fallback_disabled": os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") == "1",
            "internal_format": _internal_format(),
        }

    def kernels(self) -> Mapping[str, Mapping[str, Any]]:
        # Attention needs none: what PyTorch calls is the fused kernel already.
        return {
            **super().kernels(),
            "rotary": {"fused": fused_rotary},
            "rms_norm": {"fused": fused_rms_norm},
            "swiglu": {"fused": fused_swiglu},
        }

    def compile_problems(self) -> list[Problem]:
        # Its inductor needs triton-ascend; torchair and npugraph_ex are made for inference.
        return [Problem("torch.compile of a training step is not supported on NPU", "set track.compile=no")]

    def synchronize(self) -> None:
        _npu().synchronize(self.settings.device_index)

    def event_timer(self) -> EventTimer | None:
        from harness.backends.step import TorchEvents

        return TorchEvents(lambda: _npu().Event(enable_timing=True))

    def reset_peak_memory(self) -> None:
        _npu().reset_peak_memory_stats(self.settings.device_index)

    def memory(self) -> dict[str, int | None] | None:
        index = self.settings.device_index
        free, total = _npu().mem_get_info(index)
        return {
            "peak_allocated_bytes": _npu().max_memory_allocated(index),
            "peak_reserved_bytes": _npu().max_memory_reserved(index),
            # Kernels' workspaces and HCCL's buffers lie outside torch's allocator; only this figure has them.
            "used_on_device_bytes": total - free,
            "total_bytes": total,
        }

    def describe(self) -> dict[str, Any]:
        index = self.settings.device_index
        properties = _npu().get_device_properties(index)
        emulated = emulation.is_emulated()
        # The chip's name of the whole process: torch-npu ignores the index here.
        name = _npu().get_device_name(index)
        return {
            "kind": self.name,
            "name": f"{name} (emulated)" if emulated else name,
            "index": index,
            "count": _npu().device_count(),
            "memory_bytes": properties.total_memory,
            "cube_cores": getattr(properties, "cube_core_num", None),
            "vector_cores": getattr(properties, "vector_core_num", None),
            "emulated": emulated,
        }

    def telemetry(self) -> Sensor | str:
        if emulation.is_emulated():
            return "the device is an emulation, which draws no power"
        return open_npu_smi(self.settings.device_index)

    def versions(self) -> dict[str, str | None]:
        return {
            **super().versions(),
            "torch-npu commit": host.plugin_git_hash(),
            "cann": host.cann_version(),
            "driver": host.driver_version(),
            "firmware": host.firmware_version(),
        }

    def peak_lookup_key(self) -> str | None:
        device = self.describe()
        return None if device["emulated"] else device["name"]

    def classify_error(self, error: BaseException) -> Failure | None:
        # The NPU's messages first: its out-of-memory comes as a plain RuntimeError in older releases.
        return classify_message(str(error)) or super().classify_error(error)


def fused_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`rotate` as one kernel, between two casts: of narrow tables it would make other positions."""
    return _torch_npu().npu_rotary_mul(x.float(), cos[None, None], sin[None, None]).to(x.dtype)


def fused_rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`rms_norm` as one kernel, where PyTorch's is eight."""
    return _torch_npu().npu_rms_norm(x, weight, epsilon=epsilon)[0]


def fused_swiglu(x: torch.Tensor) -> torch.Tensor:
    """`swiglu` as one kernel."""
    return _torch_npu().npu_swiglu(x, dim=-1)


def _torch_npu() -> Any:
    import torch_npu  # type: ignore[import-not-found]

    return torch_npu


def _deterministic_level(npu: Any) -> int | None:
    # torch-npu has a public setter only.
    read = getattr(npu, "_get_deterministic_level", None)
    return read() if read is not None else None


def _internal_format() -> bool | None:
    """Return whether tensors may take the device's private layouts; None where it cannot be read.

    The public setting is write-only; the option behind it reads as empty on chips that never had one.
    """
    import torch_npu  # type: ignore[import-not-found]

    read = getattr(getattr(torch_npu, "_C", None), "_npu_getOption", None)
    value = read("ALLOW_INTERNAL_FORMAT") if read is not None else None
    return value != b"disable" if value else None


def _npu() -> Any:
    """Return torch.npu, which exists once torch_npu has been imported."""
    import torch

    return torch.npu  # pyright: ignore[reportAttributeAccessIssue]
