"""The CUDA backend without a GPU: preflight, classified failures and refusals. With a GPU, also a tiny training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from torch.profiler import ProfilerActivity

from harness.analysis.run_group import load_run_groups
from harness.analysis.verdict import compare
from harness.backends import cuda, nvml
from harness.backends.cuda import CudaBackend, driver_version
from harness.backends.host_checks import Problem
from harness.backends.sensors import Reading
from harness.composition import load
from harness.config import BackendConfig
from harness.errors import BackendUnavailable
from harness.training.run import run
from tests.conftest import PROJECT, Harness
from tests.fake_events import FakeEvent
from tests.tiny import TINY

SCHEMA = PROJECT / "harness" / "schemas" / "record.schema.json"

CUDA_BUILD = {"version": "2.13.0+cu128", "cuda": "12.8", "hip": None}
ROCM_BUILD = {"version": "2.13.0+rocm6.4", "cuda": None, "hip": "6.4.43482"}
UUID = "5e8a1b34-0000-1111-2222-333344445555"
CPU_BUILD = {"version": "2.13.0+cpu", "cuda": None, "hip": None}


def backend(index: int = 0) -> CudaBackend:
    return CudaBackend(BackendConfig(name="cuda", device_index=index))


class Host:
    """A host with a CUDA build of torch and both drivers' nodes; tests take things away from it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nvidia, self.amd = folder / "nvidiactl", folder / "kfd"
        self.nvidia.touch()
        self.amd.touch()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(cuda, "NVIDIA_NODES", (str(self.nvidia), str(folder / "dxg")))
        monkeypatch.setattr(cuda, "AMD_NODES", (str(self.amd),))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self.torch_is(CUDA_BUILD)

    def torch_is(self, build: dict[str, str | None]) -> None:
        self._monkeypatch.setattr(cuda, "torch_build", lambda: build)

    def visible_devices_are(self, value: str) -> None:
        self._monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)

    def close_to_this_user(self, node: Path) -> None:
        real = os.access
        self._monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(node) and real(path, mode))

    def only_problem(self) -> Problem:
        [problem] = backend().preflight()
        return problem


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


class TestPreflight:
    def test_a_fit_host_has_no_problem(self, host: Host) -> None:
        assert backend().preflight() == []

    def test_a_build_without_cuda(self, host: Host) -> None:
        host.torch_is(CPU_BUILD)
        problem = host.only_problem()
        assert "torch 2.13.0+cpu was built without CUDA" in problem.what
        assert "build of torch with CUDA" in problem.remedy

    def test_no_driver(self, host: Host) -> None:
        host.nvidia.unlink()
        problem = host.only_problem()
        assert "no GPU driver is loaded" in problem.what
        assert f"{host.nvidia} is missing" in problem.what
        assert "driver" in problem.remedy
        assert "--gpus all" in problem.remedy

    def test_a_driver_under_wsl_is_enough(self, host: Host) -> None:
        host.nvidia.rename(host.nvidia.with_name("dxg"))
        assert backend().preflight() == []

    def test_a_node_that_may_not_be_opened(self, host: Host) -> None:
        host.close_to_this_user(host.nvidia)
        problem = host.only_problem()
        assert f"{host.nvidia} may not be opened by this user" in problem.what
        assert str(host.nvidia) in problem.remedy

    @pytest.mark.parametrize("value", ["", "  ", "-1", "NoDevFiles"])
    def test_hidden_devices(self, host: Host, value: str) -> None:
        host.visible_devices_are(value)
        problem = host.only_problem()
        assert f"CUDA_VISIBLE_DEVICES={value!r} hides every device" in problem.what
        assert "unset CUDA_VISIBLE_DEVICES" in problem.remedy

    @pytest.mark.parametrize("name", ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
    def test_hidden_devices_of_rocm(self, host: Host, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "")
        assert backend().preflight() == []
        host.torch_is(ROCM_BUILD)
        assert f"{name}='' hides every device" in host.only_problem().what

    @pytest.mark.parametrize(
        "name", ["CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"]
    )
    def test_variables_that_falsify_a_run(self, host: Host, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "")
        assert backend().preflight() == []
        monkeypatch.setenv(name, "1")
        problem = host.only_problem()
        assert problem.what.startswith(f"{name}=1 ")
        assert problem.remedy == f"unset {name}"

    @pytest.mark.parametrize("value", ["0", "1,0", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"])
    def test_devices_chosen_are_no_problem(self, host: Host, value: str) -> None:
        host.visible_devices_are(value)
        assert backend().preflight() == []

    def test_a_rocm_build_asks_for_amds_driver(self, host: Host) -> None:
        host.torch_is(ROCM_BUILD)
        host.nvidia.unlink()
        assert backend().preflight() == []
        host.amd.unlink()
        problem = host.only_problem()
        assert f"{host.amd} is missing" in problem.what
        assert "built without CUDA" not in problem.what
        # --gpus is NVIDIA's; AMD's devices are passed into a container one by one.
        assert "--device /dev/kfd" in problem.remedy

    def test_problems_come_most_fundamental_first(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("harness.backends.host_checks.installed_version", lambda name: None)
        monkeypatch.setattr(cuda, "torch_build", dict)
        host.nvidia.unlink()
        host.visible_devices_are("")
        words = [problem.what for problem in backend().preflight()]
        assert [text.split()[0] for text in words] == ["the", "no", "CUDA_VISIBLE_DEVICES=''"]
        assert words[0] == "the package torch is not installed"


NVIDIA_DRIVER = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN_DRIVER = """\
NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  570.86.15  Release Build  (dvs-builder@U22)  Thu Jan 23
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)
"""


class TestVersions:
    @pytest.mark.parametrize(
        ("text", "version"),
        [(NVIDIA_DRIVER, "535.104.05"), (OPEN_DRIVER, "570.86.15"), ("something else 1.2.3\n", None), ("", None)],
    )
    def test_driver(self, text: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "version"
        file.write_text(text)
        monkeypatch.setattr(cuda, "DRIVER_VERSION_FILE", file)
        assert driver_version() == version
        assert backend().versions()["driver"] == version

    def test_no_driver_is_null(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "DRIVER_VERSION_FILE", tmp_path / "nowhere")
        assert driver_version() is None

    def test_of_the_build(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "torch_build", lambda: ROCM_BUILD)
        versions = backend().versions()
        assert versions["hip"] == "6.4.43482"
        assert versions["cuda"] is None
        assert torch.__version__.startswith(versions["torch"] or "no version")


LATE = """
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
OUT_OF_MEMORY = (
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3.06 GiB is "
        "free. Including non-PyTorch memory, this process has 76.03 GiB memory in use."
    ),
    torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 63.98 GiB"),
    RuntimeError("CUDA error: out of memory" + LATE),
    RuntimeError("CUDA driver error: out of memory"),
    # What cuBLAS and cuDNN say when their workspaces no longer fit.
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
)
FAULTS = (
    "CUDA error: an illegal memory access was encountered" + LATE,
    "CUDA error: device-side assert triggered" + LATE,
    "CUDA error: unspecified launch failure" + LATE,
    "CUDA error: uncorrectable ECC error encountered" + LATE,
    "CUDA driver error: unknown error",
    "HIP error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle, opa, opb, m, n, k)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error",
)


class TestClassify:
    @pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:40])
    def test_out_of_memory(self, error: RuntimeError) -> None:
        failure = backend().classify_error(error)
        assert failure is not None
        assert failure.status == "oom"
        assert failure.cause == str(error).splitlines()[0]
        assert "workload.micro_batch_size" in failure.remedy

    @pytest.mark.parametrize("text", FAULTS, ids=lambda text: text.splitlines()[0][:40])
    def test_faults(self, text: str) -> None:
        failure = backend().classify_error(RuntimeError(text))
        assert failure is not None
        assert failure.status == "device_fault"
        assert failure.cause.startswith(text.splitlines()[0])
        assert "\n" not in failure.cause
        assert "not the culprit" in failure.cause
        assert "CUDA_LAUNCH_BLOCKING=1" in failure.remedy
        assert "timings are worthless" in failure.remedy

    def test_the_line_that_says_it_is_the_cause(self) -> None:
        failure = backend().classify_error(RuntimeError("while doing this\n  CUDA error: misaligned address\nand more"))
        assert failure is not None
        assert failure.cause.startswith("CUDA error: misaligned address")

    def test_a_build_without_kernels_for_this_gpu_is_not_a_bug_to_hunt(self) -> None:
        failure = backend().classify_error(
            RuntimeError("CUDA error: no kernel image is available for execution on the device" + LATE)
        )
        assert failure is not None
        assert failure.status == "device_fault"
        assert "build of torch" in failure.remedy

    @pytest.mark.parametrize(
        "text", ["Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!", ""]
    )
    def test_mistakes_of_ours_are_not_the_devices(self, text: str) -> None:
        assert backend().classify_error(RuntimeError(text)) is None


def raising(error: Exception) -> Callable[..., None]:
    def function(*words: object) -> None:
        raise error

    return function


class TestOpening:
    """torch.cuda's answers are faked: this process has no GPU."""

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
            AssertionError("Torch not compiled with CUDA enabled"),
        ],
    )
    def test_that_fails_says_why(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "init", raising(error))
        with pytest.raises(BackendUnavailable) as refused:
            backend().load()
        assert str(error) in str(refused.value)
        assert "nvidia-smi" in str(refused.value)

    def test_a_device_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
        with pytest.raises(BackendUnavailable) as refused:
            backend(index=2).load()
        text = str(refused.value)
        for part in (
            "backend.device_index",
            "found 2",
            "expected 0 to 1",
            "devices: 2",
            "CUDA_VISIBLE_DEVICES=4,5",
            "nvidia-smi",
        ):
            assert part in text

    def test_the_device_asked_for_is_opened(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[int] = []
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", opened.append)
        backend(index=1).load()
        assert opened == [1]
        assert backend(index=1).device() == torch.device("cuda", 1)

    def test_a_trace_is_of_host_and_device(self) -> None:
        assert backend().profiler_activities() == [ProfilerActivity.CPU, ProfilerActivity.CUDA]

    def test_tf32_is_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        matmul, convolutions = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=True)
        monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
        monkeypatch.setattr(torch.backends, "cudnn", convolutions)
        backend().apply("fp32")
        assert matmul.allow_tf32 is False
        assert convolutions.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"

    def test_bf16_that_would_be_emulated_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, bool] = {}

        def supported(including_emulation: bool = True) -> bool:
            asked["including_emulation"] = including_emulation
            return including_emulation

        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=True))
        monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(allow_tf32=True))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
        with pytest.raises(BackendUnavailable) as refused:
            backend().apply("bf16")
        assert asked == {"including_emulation": False}
        text = str(refused.value)
        assert "precision=bf16" in text
        assert "Tesla V100-SXM2-16GB" in text
        assert "precision=fp16 or fp32" in text
        backend().apply("fp16")

    @pytest.mark.parametrize(("hip", "kind"), [(None, "cuda"), ("6.4.43482", "rocm")])
    def test_a_rocm_device_is_recorded_as_one(
        self, hip: str | None, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        properties = SimpleNamespace(name="A GPU", total_memory=17, multi_processor_count=4, major=9, minor=0)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        described = backend().describe()
        assert described["kind"] == kind
        assert described["name"] == "A GPU" == backend().peak_lookup_key()
        assert described["memory_bytes"] == 17
        assert described["uuid"] is None

    @pytest.mark.parametrize("reported", ["", "Device 74a1", "0x74a1", "AMD Instinct MI300X"])
    @pytest.mark.parametrize("architecture", [None, "gfx942:sramecc+:xnack-"])
    def test_a_device_without_a_name_has_its_architecture_s_or_none(
        self, reported: str, architecture: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        properties = SimpleNamespace(name=reported, total_memory=17, multi_processor_count=4, major=9, minor=4)
        if architecture is not None:
            properties.gcnArchName = architecture
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        expected = reported if reported.startswith("AMD") else "gfx942" if architecture else None
        assert backend().describe()["name"] == expected

    def test_a_slice_of_a_gpu_has_no_peak(self, monkeypatch: pytest.MonkeyPatch) -> None:
        properties = SimpleNamespace(
            name="NVIDIA A100-SXM4-40GB MIG 3g.20gb", total_memory=17, multi_processor_count=4, major=8, minor=0
        )
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert backend().describe()["mig"] is True
        assert backend().peak_lookup_key() is None
        properties.uuid = UUID
        assert "slice of a GPU" in str(backend().telemetry())

    def test_an_amd_gpu_is_told_nothing_of_nvidias_tools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.version.hip", "7.2")
        assert backend().telemetry() == "the harness reads no sensor of AMD's GPUs"
        assert "see dmesg for amdgpu messages" in backend().explain_fault("HIP error: unspecified").remedy


class OnTheCpu(CudaBackend):
    """The backend with its tensors on the CPU and the faked torch.cuda for everything else."""

    pins_host_memory = False

    def device(self) -> torch.device:
        return torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Fake torch.cuda with one A100; return how many times it was synchronized and its peak reset."""
    called = {"synchronize": 0, "reset": 0}
    properties = SimpleNamespace(
        name="NVIDIA A100-SXM4-80GB", total_memory=80 * 2**30, multi_processor_count=108, major=8, minor=0,
        uuid=UUID,
    )  # fmt: skip
    answers = {
        "init": lambda: None,
        "device_count": lambda: 1,
        "set_device": lambda index: None,
        "get_device_properties": lambda device: properties,
        "get_device_name": lambda device: properties.name,
        "is_bf16_supported": lambda including_emulation: True,
        "get_allocator_backend": lambda: "native",
        "synchronize": lambda device: called.update(synchronize=called["synchronize"] + 1),
        "reset_peak_memory_stats": lambda device: called.update(reset=called["reset"] + 1),
        "mem_get_info": lambda device: (60 * 2**30, 80 * 2**30),
        "max_memory_allocated": lambda device: 1000,
        "max_memory_reserved": lambda device: 2000,
        "Event": FakeEvent,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    arithmetic = SimpleNamespace(
        allow_tf32=True, allow_bf16_reduced_precision_reduction=True, allow_fp16_reduced_precision_reduction=True
    )
    cudnn = {"allow_tf32": True, "benchmark": False, "enabled": True, "version": lambda: 91002}
    monkeypatch.setattr(torch.backends.cuda, "matmul", arithmetic)
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(**cudnn))
    return called


class TestAWholeRun:
    """Every member of the interface as a run uses it."""

    def test_what_the_record_holds(self, gpu: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reading = Reading(clock_mhz=1200.0, throttle_reasons=("power cap",), clock_limit_mhz=1410.0)
        sensor = SimpleNamespace(
            source="NVML", scope="the board", period_seconds=1.0, read=lambda: reading, close=lambda: None
        )
        monkeypatch.setattr(nvml, "open_sensor", lambda uuid: sensor if uuid == UUID else "another device")
        # One that ends, one that stays, and one that begins while the run trains.
        processes = iter([["ended (1)", "python3 (4711)"], ["python3 (4711)", "began (9)"]])
        monkeypatch.setattr(nvml, "other_processes", lambda uuid: next(processes))
        monkeypatch.setattr(nvml, "sharing", lambda uuid: {"mig": False, "mps": False})
        config = load([*TINY, "backend=cuda", f"out={tmp_path / 'run'}"])
        run(config, OnTheCpu(config.backend))
        record = json.loads((tmp_path / "run" / "record.json").read_text())
        jsonschema.validate(record, json.loads(SCHEMA.read_text()))
        assert record["status"] == "ok"
        device = record["device"]
        assert device["name"] == "NVIDIA A100-SXM4-80GB" == record["backend"]["peak_lookup_key"]
        assert (device["kind"], device["emulated"], device["mig"], device["mps"]) == ("cuda", False, False, False)
        assert device["uuid"] == UUID
        assert record["effective_settings"]["tf32_matmul"] is record["effective_settings"]["tf32_cudnn"] is False
        assert record["effective_settings"]["allocator"] == "native"
        assert record["memory"] == {
            "peak_allocated_bytes": 1000,
            "peak_reserved_bytes": 2000,
            "used_on_device_bytes": 20 * 2**30,
            "total_bytes": 80 * 2**30,
        }
        assert record["contention"]["device_processes"] == ["began (9)", "ended (1)", "python3 (4711)"]
        state = {
            "clock_mhz": 1200.0,
            "clock_limit_mhz": 1410.0,
            "throttle_reasons": ["power cap"],
            "temperature_celsius": None,
            "power_limit_watts": None,
            "default_power_limit_watts": None,
        }
        assert record["contention"]["device_condition"] == {"before": state, "after": state}
        assert gpu["synchronize"] > 0
        assert gpu["reset"] == 1
        assert all(interval["device_seconds"] for interval in record["timing"]["intervals"])


MISSING = CudaBackend(BackendConfig(name="cuda")).preflight()


@pytest.mark.skipif(bool(MISSING), reason=f"needs a CUDA device: {MISSING[0].what if MISSING else ''}")
class TestOnAGpu:
    def test_a_tiny_training(self, harness: Harness, tmp_path: Path) -> None:
        done = harness("backend=cuda", "experiment=smoke", "out=run")
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / "run" / "record.json").read_text())
        assert record["status"] == "ok"
        assert record["backend"]["name"] == "cuda"
        assert record["effective_settings"]["tf32_matmul"] is record["effective_settings"]["tf32_cudnn"] is False
        assert record["memory"]["peak_allocated_bytes"] > 0
        losses = record["losses"]["train"]
        assert losses[-1] < losses[0]

    def test_the_same_work_as_on_the_cpu(self, harness: Harness, tmp_path: Path) -> None:
        for name in ("cuda", "cpu"):
            done = harness(f"backend={name}", "experiment=smoke", f"out={name}")
            assert done.returncode == 0, done.stderr
        pair = compare(load_run_groups([tmp_path / "cpu", tmp_path / "cuda"])).pairs[0]
        assert [(gate.name, gate.passed) for gate in pair.gates[:3]] == [
            ("finished", True), ("comparable", True), ("same computation", True),
        ], pair.summary  # fmt: skip


@pytest.mark.parametrize(
    ("found", "hip", "remedies"),
    [
        (True, None, []),
        # The distribution of ROCm's has another name.
        (True, "7.2", []),
        (False, None, ["pip install triton"]),
        (False, "7.2", ["install torch for ROCm again, which brings its own triton"]),
    ],
)
def test_compilation_needs_triton(
    found: bool, hip: str | None, remedies: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if found else None)
    monkeypatch.setattr("torch.version.hip", hip)
    assert [problem.remedy for problem in backend().compile_problems()] == remedies
