"""Huawei Ascend NPUs through torch-npu and CANN."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends.ascend import emulation, host
from harness.backends.ascend.failures import classify_message, explain_import_failure, explain_set_up_failure
from harness.backends.ascend.sensor import open_npu_smi
from harness.backends.failures import Failure
from harness.backends.host_checks import Problem, torch_problems
from harness.backends.sensors import Sensor
from harness.backends.torch_device import TorchDeviceBackend
from harness.config import Config
from harness.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch


class NpuBackend(TorchDeviceBackend):
    """One NPU. HF32, private tensor formats and online kernel compilation are off; CPU fallback is an error."""

    name = "npu"
    collective = "hccl"
    collective_variables: ClassVar[Mapping[str, str]] = {
        "HCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_HCCL_ASYNC_ERROR_HANDLING": "0",
    }
    distributions = ("torch-npu",)
    environment_prefixes = (
        "ASCEND",
        "HCCL",
        "TORCH_NPU",
        "TORCH_HCCL",
        "ACL_",
        "ACLNN_",
        "NPU_",
        "LCCL_",
        "PYTORCH_NPU_ALLOC_CONF",
        "TASK_QUEUE_ENABLE",
        "CPU_AFFINITY_CONF",
        "COMBINED_ENABLE",
        "MULTI_STREAM_MEMORY_REUSE",
        "INF_NAN_MODE",
        "FORCE_OVERFLOW_CHECK",
        "OOM_SNAPSHOT",
        "PER_STREAM_QUEUE",
        "STREAMS_PER_DEVICE",
        "P2P_HCCL",
        "RANK_TABLE_FILE",
        "DDP_SET_LAST_BUCKET_CAP",
        "PROF_CONFIG_PATH",
        "KINETO_USE_DAEMON",
    )
    pins_host_memory = True
    visible_devices_variable = host.VISIBLE_DEVICES
    driver_tool = "npu-smi info"
    # Written by C++, and for some operations in spite of TORCH_NPU_FALLBACK_CPU_DISABLE.
    fallback_pattern = r"will fall back to run on the CPU"

    def preflight(self) -> list[Problem]:
        libraries = host.library_problems()
        return [
            *torch_problems(),
            *host.package_problems(),
            *(libraries or host.installation_problems()),
            # The emulator has no device nodes; everything else is checked as on a device.
            *([] if emulation.is_emulated() else host.device_problems() or host.driver_problems()),
            *host.variable_problems(),
            *self._thread_problems(),
        ]

    def load(self) -> None:
        # Read when the plug-in starts: work that silently ran on the host must be an error.
        os.environ["TORCH_NPU_FALLBACK_CPU_DISABLE"] = "1"
        # Compact messages lack the error codes that classify_message needs.
        os.environ["TORCH_NPU_COMPACT_ERROR_OUTPUT"] = "0"
        try:
            import torch_npu  # type: ignore[import-not-found] # noqa: F401 (registers the device)
        except Exception as error:
            raise self.open_error(*explain_import_failure(error)) from error
        index, npu = self.settings.device_index, self.module()
        try:
            # is_available() swallows the driver's errors; opening the device gives the reason.
            npu.set_device(index)
            npu.synchronize()
            # Only this makes torch-npu start the runtime in full, and look up every function of CANN that it needs.
            npu.current_stream(index)
        except Exception as error:
            text = str(error)
            if "107001" in text or "No NPUs are available" in text or "Invalid device" in text:
                raise self.index_error(npu.device_count()) from error
            raise self.open_error(*_explain_opening_failure(text)) from error

    def apply(self, precision: str) -> None:
        super().apply(precision)
        npu = self.module()
        # set_float32_matmul_precision does not reach these, and HF32 is on for convolutions by default.
        npu.matmul.allow_hf32 = False
        npu.conv.allow_hf32 = False
        npu.set_compile_mode(jit_compile=False)
        npu.config.allow_internal_format = False

    def supports_bf16(self) -> bool:
        return self.module().is_bf16_supported()

    def check_work(self, config: Config) -> None:
        # CANN's fused AdamW does not see the overflow flag: it would apply the step that the loss scaler skips.
        if config.precision == "fp16" and self.world.size > 1 and _shows_overflow(self.module()) is False:
            # The device's flag is each rank's own, and its gradients saturate: ranks would skip different steps.
            raise BackendUnavailable(
                "precision=fp16 on several devices: this chip does not show overflows in the gradients, by which the "
                "ranks agree to skip a step; use precision=fp32, or one device"
            )
        if config.precision == "fp16" and config.track.adamw == "fused":
            raise BackendUnavailable(
                "track.adamw=fused with precision=fp16: torch-npu's fused AdamW also applies steps whose gradients "
                "overflowed; set track.adamw=foreach"
            )

    def effective_settings(self) -> dict[str, Any]:
        npu = self.module()
        return {
            "hf32_matmul": npu.matmul.allow_hf32,
            "hf32_conv": npu.conv.allow_hf32,
            "jit_compile": not npu.is_jit_compile_false(),
            "task_queue_level": _read(npu, "get_task_queue_enable"),
            "deterministic_level": _read(npu, "_get_deterministic_level"),
            "cpu_affinity": os.environ.get("CPU_AFFINITY_CONF"),
            "allocator_settings": os.environ.get("PYTORCH_NPU_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF"),
            "cpu_fallback_disabled": host.disables_cpu_fallback(),
            "inf_nan_mode": _shows_overflow(npu),
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

    def tuned_defaults(self, config: Config) -> Mapping[str, Any]:
        # Chosen from public figures, not measured here: harness/docs/tuning.md has the sources.
        return {**super().tuned_defaults(config), "rotary": "fused", "rms_norm": "fused", "swiglu": "fused"}

    def compile_problems(self) -> list[Problem]:
        # Inductor needs triton-ascend there; torchair and npugraph_ex are made for inference.
        return [Problem("torch.compile of a training step is not supported on NPU", "set track.compile=no")]

    def describe(self) -> dict[str, Any]:
        device = super().describe()
        properties = self.module().get_device_properties(self.settings.device_index)
        emulated = emulation.is_emulated()
        return {
            **device,
            "name": f"{device['name'] or 'NPU'} (emulated)" if emulated else device["name"],
            "cube_cores": getattr(properties, "cube_core_num", None),
            "vector_cores": getattr(properties, "vector_core_num", None),
            "emulated": emulated,
        }

    def telemetry(self) -> Sensor | str:
        if emulation.is_emulated():
            return "the device is emulated and has no power meter"
        return open_npu_smi(self.settings.device_index)

    def versions(self) -> dict[str, str | None]:
        return {
            **super().versions(),
            "torch-npu commit": host.plugin_git_hash(),
            "cann": host.cann_version(),
            "driver": host.driver_version(),
            "firmware": host.firmware_version(),
        }

    def classify_error(self, error: BaseException) -> Failure | None:
        # The NPU's messages first: its out-of-memory comes as a plain RuntimeError in older releases.
        return classify_message(str(error)) or super().classify_error(error)


def _explain_opening_failure(text: str) -> tuple[str, str]:
    """Return the cause and the remedy of a device that did not open, from the message of the exception."""
    if (explained := explain_set_up_failure(text)) is not None:
        return explained
    failure = classify_message(text)
    if failure is not None and failure.status == "oom":
        return f"the device has no memory left: {failure.cause}", "end the processes that npu-smi info shows on it"
    return (failure.cause, failure.remedy) if failure else (text, "npu-smi info shows the driver's view")


def fused_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply `rotate` as one kernel, between two casts: tables in 16 bits would change the positions."""
    return _torch_npu().npu_rotary_mul(x.float(), cos[None, None], sin[None, None]).to(x.dtype)


def fused_rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Apply `rms_norm` as one kernel; PyTorch launches eight."""
    return _torch_npu().npu_rms_norm(x, weight, epsilon=epsilon)[0]


def fused_swiglu(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Apply `swiglu` as one kernel, which takes gate and value side by side."""
    import torch

    return _torch_npu().npu_swiglu(torch.cat((gate, value), dim=-1), dim=-1)


def _torch_npu() -> Any:
    import torch_npu  # type: ignore[import-not-found]

    return torch_npu


def _read(npu: Any, getter: str) -> int | None:
    """Return a setting of torch.npu; None in a release without the getter, which may be newer or private."""
    read = getattr(npu, getter, None)
    return read() if read is not None else None


def _shows_overflow(npu: Any) -> bool | None:
    """Return whether overflows become infinite, as on other devices, and do not saturate; None if unknown."""
    supported = getattr(getattr(npu, "utils", None), "is_support_inf_nan", None)
    return bool(supported()) if supported is not None else None


def _internal_format() -> bool | None:
    """Return whether tensors may take the device's private layouts; None where it cannot be read.

    The public setting is write-only; the option behind it reads as empty on chips that never had one.
    """
    import torch_npu  # type: ignore[import-not-found]

    read = getattr(getattr(torch_npu, "_C", None), "_npu_getOption", None)
    value = read("ALLOW_INTERNAL_FORMAT") if read is not None else None
    return value != b"disable" if value else None
