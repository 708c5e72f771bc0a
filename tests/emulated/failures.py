"""Failures of an Ascend host that the emulator can cause: their settings, and the expected error message."""

from __future__ import annotations

from typing import NamedTuple

from tests.tiny import TINY

SMOKE = ("experiment=smoke", "backend.threads=1")
UNAVAILABLE, FAILED = 3, 5


class Case(NamedTuple):
    """Settings that cause a failure, and its expected outcome."""

    variables: dict[str, str]
    """The emulator's settings."""
    exit_code: int
    status: str | None
    """Of the record; None if nothing ran, so that there is no record."""
    message_parts: tuple[str, ...]
    """Parts of the one-line error message, the remedy included."""
    settings: tuple[str, ...] = ()
    """Overrides of the run besides `work`."""
    work: tuple[str, ...] = TINY
    """Workload of the run: six tiny steps if they suffice."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """All overrides of the run except `out`."""
        return ("backend=npu", *self.work, *self.settings)


def failing(**functions: int) -> dict[str, str]:
    """Return the setting that makes functions return error codes."""
    return {"CANN_EMULATOR_FAIL": ",".join(f"{name}={code}" for name, code in functions.items())}


def fault(kernel: str, launch: int, code: int) -> dict[str, str]:
    """Return the setting that kills the device at the n-th launch of a kernel."""
    return {"CANN_EMULATOR_FAULT": f"{kernel}:{launch}:{code}"}


LATE = ("reported late", "ASCEND_LAUNCH_BLOCKING=1", "plog")
CASES: dict[str, Case] = {
    # opening the device
    "no device": Case(
        {"CANN_EMULATOR_DEVICES": "0"}, UNAVAILABLE, None, ("no device found", "visible devices: 0", "npu-smi info")
    ),
    "device 5 of 1": Case(
        {},
        UNAVAILABLE,
        None,
        ("found 5, expected 0", "visible devices: 1", "npu-smi info lists them"),
        ("backend.device_index=5",),
    ),
    "driver error 507899": Case(
        failing(aclrtGetDeviceCount=507899, drvGetDevNum=507899), UNAVAILABLE, None, ("507899", "driver")
    ),
    "device does not start 507033": Case(
        failing(aclrtSetDevice=507033), UNAVAILABLE, None, ("507033", "could not be started", "versions")
    ),
    "chip's version unreadable 507008": Case(
        failing(aclInit=507008), UNAVAILABLE, None, ("507008", "version could not be read")
    ),
    "stub library 100039": Case(
        failing(aclInit=100039), UNAVAILABLE, None, ("100039", "stub libraries", "LD_LIBRARY_PATH")
    ),
    "no stream 107002": Case(failing(aclrtCreateStream=107002), UNAVAILABLE, None, ("107002", "set_device")),
    "unknown chip": Case({"CANN_EMULATOR_SOC": "Ascend910B9Z"}, UNAVAILABLE, None, ("Ascend910B9Z", "newer torch-npu")),
    "synchronize times out 507014": Case(
        failing(aclrtSynchronizeDeviceWithTimeout=507014), UNAVAILABLE, None, ("507014", "timed out")
    ),
    # unsupported settings
    "bf16 on 910A": Case(
        {"CANN_EMULATOR_SOC": "Ascend910A"},
        UNAVAILABLE,
        None,
        ("precision=bf16", "Ascend910A", "fp16"),
        ("precision=bf16",),
    ),
    "bf16 on 310P": Case(
        {"CANN_EMULATOR_SOC": "Ascend310P3"}, UNAVAILABLE, None, ("precision=bf16", "Ascend310P3"), ("precision=bf16",)
    ),
    "fused AdamW in fp16": Case(
        {},
        UNAVAILABLE,
        None,
        ("track.adamw=fused", "precision=fp16", "track.adamw=foreach"),
        ("track.adamw=fused", "precision=fp16"),
    ),
    "exact GELU": Case(
        {},
        UNAVAILABLE,
        None,
        ("model.activation=gelu ", "computes gelu_tanh", "model.activation=gelu_tanh"),
        ("model.activation=gelu",),
    ),
    "kernels not installed 561103": Case(
        failing(aclnnMatmul=561103), UNAVAILABLE, None, ("first operations", "aclnnMatmul", "561103", "kernels package")
    ),
    "unsafe variable": Case(
        {"TORCH_TRANSFER_TO_NPU": "1"}, UNAVAILABLE, None, ("TORCH_TRANSFER_TO_NPU=1", "unset TORCH_TRANSFER_TO_NPU")
    ),
    "visible devices with a space": Case(
        {"ASCEND_RT_VISIBLE_DEVICES": "0, 1"}, UNAVAILABLE, None, ("ASCEND_RT_VISIBLE_DEVICES", "space")
    ),
    # while training
    "out of memory": Case(
        {"CANN_EMULATOR_MEMORY_MIB": "44"},
        FAILED,
        "oom",
        ("NPU out of memory", "workload.micro_batch_size"),
        work=SMOKE,
    ),
    "out of memory in a kernel's workspace": Case(
        {"CANN_EMULATOR_WORKSPACE": f"aclnnLayerNormBackward={2**37}"}, FAILED, "oom", ("workload.micro_batch_size",)
    ),
    "AI core exception 507015": Case(
        fault("aclnnGeluBackward", 5, 507015), FAILED, "device_fault", ("AI core", "507015", *LATE)
    ),
    "AI core time-out 507014": Case(
        fault("aclnnGeluBackward", 5, 507014), FAILED, "device_fault", ("timed out", "507014", *LATE)
    ),
    "AI CPU exception 507018": Case(
        fault("aclnnEmbedding", 5, 507018), FAILED, "device_fault", ("AI CPU", "507018", *LATE)
    ),
    "vector core exception 507035": Case(
        fault("aclnnLayerNorm", 20, 507035), FAILED, "device_fault", ("vector core", "507035", *LATE)
    ),
    "remote device suspected 507057": Case(
        fault("aclnnLayerNorm", 20, 507057), FAILED, "device_fault", ("remote device", "507057", "other ranks")
    ),
    "an operation rejected in training": Case(
        failing(aclnnLayerNormBackward=561103), FAILED, "device_fault", ("aclnnLayerNormBackward",)
    ),
}
