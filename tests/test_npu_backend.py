"""The NPU backend over a fake of torch_npu: its settings, refusals and classified failures.

The fake answers as torch-npu 2.13.0 does and computes on the CPU: it checks calls, not numbers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from harness.backends.ascend import emulation, host
from harness.backends.host_checks import Problem
from harness.backends.npu import NpuBackend
from harness.composition import load
from harness.config import BackendConfig
from harness.errors import BackendUnavailable, UserError
from harness.training.run import run
from harness.world import World
from tests.fake_events import FakeEvent
from tests.tiny import TINY

FALLBACK = "TORCH_NPU_FALLBACK_CPU_DISABLE"
STAMP = "[ERROR] 2026-11-23-21:27:34 (PID:13111, Device:0, RankID:-1)"


class WriteOnly:
    """torch.npu.config, whose values cannot be read back."""

    def __init__(self) -> None:
        object.__setattr__(self, "written", {})

    def __setattr__(self, name: str, value: object) -> None:
        object.__getattribute__(self, "written")[name] = value


class FakeNpu:
    """The namespace torch.npu of one process with two chips, with torch-npu's defaults."""

    Event = FakeEvent

    def __init__(self) -> None:
        self.chip, self.has_bf16 = "Ascend910B3", True
        self.opened: list[int] = []
        self.synchronized: list[int | None] = []
        self.peaks_reset: list[int] = []
        self.open_error: Exception | None = None
        self.stream_error: Exception | None = None
        self.matmul = SimpleNamespace(allow_hf32=True)
        self.conv = SimpleNamespace(allow_hf32=True)
        self.config = WriteOnly()
        self.jit_compile = True

    def set_device(self, index: int) -> None:
        if self.open_error is not None:
            raise self.open_error
        self.opened.append(index)

    def synchronize(self, device: int | None = None) -> None:
        self.synchronized.append(device)

    def current_stream(self, index: int) -> object:
        """Return a stream. The first one makes the real torch-npu start CANN in full and look up every function."""
        if self.stream_error is not None:
            raise self.stream_error
        return object()

    def device_count(self) -> int:
        return 2

    def is_bf16_supported(self) -> bool:
        return self.has_bf16

    def get_device_name(self, index: int | None = None) -> str:
        return self.chip

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name=self.chip, total_memory=64 * 2**30, cube_core_num=20, vector_core_num=40)

    def set_compile_mode(self, *, jit_compile: bool) -> None:
        self.jit_compile = jit_compile

    def is_jit_compile_false(self) -> bool:
        return not self.jit_compile

    def get_task_queue_enable(self) -> int:
        return 1

    def _get_deterministic_level(self) -> int:
        return 0

    def option(self, name: str) -> bytes:
        """Return the option behind a write-only setting: empty before it is set."""
        assert name == "ALLOW_INTERNAL_FORMAT"
        written = self.config.__dict__["written"].get("allow_internal_format")
        return b"" if written is None else b"enable" if written else b"disable"

    def reset_peak_memory_stats(self, index: int) -> None:
        # The real one refuses a device that has not been opened.
        assert index in self.opened
        self.peaks_reset.append(index)

    def max_memory_allocated(self, index: int) -> int:
        return 1000

    def max_memory_reserved(self, index: int) -> int:
        return 2000

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 60 * 2**30, 64 * 2**30


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> FakeNpu:
    """Install the fake. `raising=False`: torch has no attribute npu until the plug-in adds it."""
    fake = FakeNpu()
    module = ModuleType("torch_npu")
    module._C = SimpleNamespace(_npu_getOption=fake.option)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    monkeypatch.setattr(torch, "npu", fake, raising=False)
    # load() changes this process's environment, which monkeypatch restores.
    monkeypatch.setenv(FALLBACK, "0")
    monkeypatch.setattr("harness.backends.ascend.host.installed_version", {"torch-npu": "2.13.0"}.get)
    return fake


def backend(index: int = 0) -> NpuBackend:
    return NpuBackend(BackendConfig(name="npu", device_index=index, threads=1))


def refusal(made: NpuBackend) -> str:
    with pytest.raises(BackendUnavailable) as refused:
        made.load()
    assert refused.value.exit_code == 3
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file torch_npu.py for a test to write. Its entry in sys.modules is removed afterwards."""
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    monkeypatch.setattr(torch, "npu", FakeNpu(), raising=False)
    monkeypatch.setenv(FALLBACK, "0")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "torch_npu.py"
    sys.modules.pop("torch_npu", None)


class TestLoad:
    def test_opens_the_device_asked_for(self, npu: FakeNpu) -> None:
        backend(index=1).load()
        assert npu.opened == [1]
        # Only work shows whether the device answers.
        assert len(npu.synchronized) == 1

    def test_forbids_the_fallback_before_the_plug_in_starts(self, importable: Path) -> None:
        importable.write_text(f"import os\nseen_at_import = os.environ.get({FALLBACK!r})\n")
        backend().load()
        assert sys.modules["torch_npu"].seen_at_import == "1"

    def test_overrules_a_fallback_that_the_user_allowed(self, npu: FakeNpu) -> None:
        backend().load()
        assert os.environ[FALLBACK] == "1"

    def test_does_not_touch_the_device_or_the_environment_before(self, npu: FakeNpu) -> None:
        made = backend()
        made.preflight()
        made.versions()
        made.classify_error(ValueError("x"))
        assert npu.opened == []
        assert os.environ[FALLBACK] == "0"


class TestImportThatFails:
    def test_because_cann_is_missing(self, importable: Path) -> None:
        # As raised by torch's own entry point: the reason is the cause of the cause.
        importable.write_text(
            "try:\n"
            "    raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')\n"
            "except ImportError as error:\n"
            "    raise RuntimeError('Failed to load the backend extension: torch_npu.') from error\n"
        )
        text = refusal(backend())
        assert "backend npu cannot be opened" in text
        assert "CANN is not on the loader's path (missing libhccl.so)" in text
        assert "source /usr/local/Ascend/cann/set_env.sh" in text

    def test_because_the_package_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(FALLBACK, "0")
        monkeypatch.setitem(sys.modules, "torch_npu", None)
        text = refusal(backend())
        assert "torch_npu cannot be imported" in text
        assert "python -c 'import torch_npu'" in text

    def test_because_torch_is_another_one(self, importable: Path) -> None:
        importable.write_text("raise ImportError('libtorch_npu.so: undefined symbol: _ZN3c108ListType')")
        text = refusal(backend())
        assert "torch and torch-npu do not match" in text
        assert "install the torch-npu that is made for this torch" in text

    def test_the_reason_is_kept_for_the_curious(self, importable: Path) -> None:
        importable.write_text("raise ImportError('some reason')")
        with pytest.raises(BackendUnavailable) as refused:
            backend().load()
        assert isinstance(refused.value.__cause__, ImportError)


def set_device_failed(code: int, said: str) -> RuntimeError:
    return RuntimeError(
        "ExchangeDevice:../torch_npu/csrc/core/npu/sys_ctrl/npu_sys_ctrl.cpp:337 NPU function error: "
        f"c10_npu::SetDevice(device), error code is {code}\n"
        f"{STAMP} ERR00100 PTA call acl api failed\n[Error]: {said}\nEZ9999: Inner Error!"
    )


def raising(error: Exception) -> Callable[..., Any]:
    def function(*words: object, **named: object) -> None:
        raise error

    return function


class TestDeviceThatCannotBeOpened:
    @pytest.mark.parametrize(
        "error",
        [
            set_device_failed(107001, "Invalid device ID."),
            set_device_failed(107001, ""),
            RuntimeError(f"No NPUs are available\n{STAMP} ERR00009 PTA resource unavailable"),
            AssertionError(f"Invalid device id\n{STAMP} ERR00003 PTA invalid value"),
        ],
        ids=["107001", "107001 alone", "ERR00009", "ERR00003"],
    )
    @pytest.mark.parametrize("visible", [None, "0,1"])
    def test_because_there_is_none_of_that_number(
        self, error: Exception, visible: str | None, npu: FakeNpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if visible is None:
            monkeypatch.delenv(host.VISIBLE_DEVICES, raising=False)
        else:
            monkeypatch.setenv(host.VISIBLE_DEVICES, visible)
        npu.open_error = error
        text = refusal(backend(index=5))
        for part in (
            "backend.device_index",
            "found 5",
            "expected 0 to 1",
            host.VISIBLE_DEVICES,
            "npu-smi info lists them",
        ):
            assert part in text
        assert f"visible devices: 2, {host.VISIBLE_DEVICES}={visible or 'not set'}" in text

    @pytest.mark.parametrize(
        ("code", "said", "cause"),
        [
            (507008, "Failed to obtain the SOC version.", "the chip's version could not be read"),
            (507033, "Failed to start the device.", "the device could not be started"),
            (507899, "An internal error occurs in the Driver module.", "the driver reported an internal error"),
        ],
    )
    def test_because_it_does_not_start(self, code: int, said: str, cause: str, npu: FakeNpu) -> None:
        npu.open_error = set_device_failed(code, said)
        text = refusal(backend())
        assert "backend npu cannot be opened" in text
        assert cause in text
        assert str(code) in text
        assert "driver's and CANN's versions" in text

    def test_because_cann_is_too_old(self, npu: FakeNpu) -> None:
        """Importing the plug-in succeeds with such a CANN; the first call that needs the new function fails."""
        npu.stream_error = RuntimeError(
            f"Failed to find function aclrtSetDeviceSatMode\n{STAMP} ERR04008 PROF resource not found"
        )
        text = refusal(backend())
        assert "aclrtSetDeviceSatMode" in text
        assert "CANN is too old for this torch-npu" in text
        assert "install the CANN release" in text

    def test_because_the_plug_in_is_older_than_the_chip(self, npu: FakeNpu) -> None:
        """set_device raises it, not the import."""
        npu.open_error = RuntimeError("Unsupported soc version: Ascend910B9Z")
        text = refusal(backend())
        assert "Ascend910B9Z" in text
        assert "install a newer torch-npu" in text

    def test_for_a_reason_nobody_knows(self, npu: FakeNpu) -> None:
        npu.open_error = RuntimeError("something new\nin two lines")
        text = refusal(backend())
        assert "something new in two lines" in text
        assert "npu-smi info" in text


class TestApply:
    def test_arithmetic_is_what_float32_means(self, npu: FakeNpu) -> None:
        backend().apply("fp32")
        assert npu.matmul.allow_hf32 is False
        assert npu.conv.allow_hf32 is False
        assert npu.jit_compile is False
        assert npu.config.__dict__["written"] == {"allow_internal_format": False}
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_num_threads() == 1

    @pytest.mark.parametrize("chip", ["Ascend910A", "Ascend910ProB", "Ascend310P3"])
    def test_bf16_is_refused_on_a_chip_without_it(self, chip: str, npu: FakeNpu) -> None:
        npu.chip, npu.has_bf16 = chip, False
        with pytest.raises(BackendUnavailable) as refused:
            backend().apply("bf16")
        text = str(refused.value)
        assert "precision=bf16" in text
        assert chip in text
        assert "precision=fp16 or fp32" in text
        backend().apply("fp16")
        backend().apply("fp32")

    @pytest.mark.parametrize("chip", ["Ascend910B3", "Ascend910_9391"])
    def test_bf16_is_taken_on_a_chip_with_it(self, chip: str, npu: FakeNpu) -> None:
        npu.chip = chip
        backend().apply("bf16")

    @pytest.mark.parametrize(
        ("precision", "adamw", "refused"),
        [("fp16", "fused", True), ("fp16", "foreach", False), ("bf16", "fused", False), ("fp32", "fused", False)],
    )
    def test_an_optimizer_that_would_not_skip_overflows_is_refused(
        self, precision: str, adamw: str, refused: bool
    ) -> None:
        config = load([*TINY, "backend=npu", f"precision={precision}", f"track.adamw={adamw}"])
        if not refused:
            backend().check_work(config)
            return
        with pytest.raises(BackendUnavailable, match=r"track\.adamw=fused with precision=fp16.*track\.adamw=foreach"):
            backend().check_work(config)

    @pytest.mark.parametrize("size", [1, 2])
    @pytest.mark.parametrize("shown", [True, False])
    def test_ranks_that_cannot_agree_on_an_overflow_are_refused(
        self, shown: bool, size: int, npu: FakeNpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(npu, "utils", SimpleNamespace(is_support_inf_nan=lambda: shown), raising=False)
        config, made = load([*TINY, "backend=npu", "precision=fp16", "parallel=ddp"]), backend()
        made.world = World(rank=0, size=size)
        assert made.effective_settings()["inf_nan_mode"] is shown
        if shown or size == 1:
            made.check_work(config)
        else:
            with pytest.raises(BackendUnavailable, match="precision=fp16 on several devices"):
                made.check_work(config)

    @pytest.mark.parametrize(("release", "known"), [("2.13.0", True), ("2.12.0.post1", False), (None, False)])
    def test_the_switch_against_fallback_is_known_from_a_release_on(
        self, release: str | None, known: bool, npu: FakeNpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("harness.backends.ascend.host.installed_version", {"torch-npu": release}.get)
        monkeypatch.setenv(FALLBACK, "1")
        assert backend().effective_settings()["cpu_fallback_disabled"] is (True if known else None)

    def test_effective_is_read_back(self, npu: FakeNpu) -> None:
        made = backend()
        assert made.effective_settings() == {
            "hf32_matmul": True,
            "hf32_conv": True,
            "jit_compile": True,
            "task_queue_level": 1,
            "deterministic_level": 0,
            "cpu_affinity": None,
            "allocator_settings": None,
            "cpu_fallback_disabled": False,
            "inf_nan_mode": None,
            "internal_format": None,
        }
        made.load()
        made.apply("fp32")
        effective = made.effective_settings()
        json.dumps(effective)
        assert effective["hf32_matmul"] is effective["hf32_conv"] is effective["jit_compile"] is False
        assert effective["cpu_fallback_disabled"] is True
        assert effective["internal_format"] is False
        # Read back from the device, not from the request.
        npu.matmul.allow_hf32 = True
        assert made.effective_settings()["hf32_matmul"] is True

    def test_a_release_without_getters_leaves_settings_unknown(
        self, npu: FakeNpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(FakeNpu, "get_task_queue_enable")
        monkeypatch.delattr(FakeNpu, "_get_deterministic_level")
        effective = backend().effective_settings()
        assert effective["task_queue_level"] is effective["deterministic_level"] is None

    def test_effective_settings_include_those_of_the_environment(
        self, npu: FakeNpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CPU_AFFINITY_CONF", "2")
        monkeypatch.setenv("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True")
        effective = backend().effective_settings()
        assert effective["cpu_affinity"] == "2"
        assert effective["allocator_settings"] == "expandable_segments:True"

    def test_an_unreadable_setting_is_null(self, npu: FakeNpu, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(FakeNpu, "_get_deterministic_level")
        monkeypatch.delattr(sys.modules["torch_npu"], "_C")
        effective = backend().effective_settings()
        assert effective["deterministic_level"] is None
        assert effective["internal_format"] is None


class TestDescription:
    def test_device_is_always_named_with_its_index(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # torch.device("npu") != torch.device("npu:0") in torch-npu; without the plug-in torch knows neither.
        monkeypatch.setattr(torch, "device", lambda *words: words)
        assert backend(index=3).device() == ("npu", 3)
        assert backend().device() == ("npu", 0)

    def test_describe(self, npu: FakeNpu) -> None:
        described = backend(index=1).describe()
        json.dumps(described)
        assert described == {
            "kind": "npu",
            "name": "Ascend910B3",
            "index": 1,
            "count": 2,
            "memory_bytes": 64 * 2**30,
            "cube_cores": 20,
            "vector_cores": 40,
            "emulated": False,
        }
        assert backend().peak_lookup_key() == "Ascend910B3"

    def test_an_emulated_device_is_marked_and_has_no_peak(self, npu: FakeNpu, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulation, "is_emulated", lambda: True)
        assert backend().describe()["name"] == "Ascend910B3 (emulated)"
        assert backend().describe()["emulated"] is True
        assert backend().peak_lookup_key() is None

    def test_core_counts_that_an_older_release_lacks_are_null(
        self, npu: FakeNpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(npu, "get_device_properties", lambda index: SimpleNamespace(total_memory=1))
        assert backend().describe()["cube_cores"] is None
        assert backend().describe()["vector_cores"] is None

    def test_memory_outside_the_allocator_is_included(self, npu: FakeNpu) -> None:
        assert backend().memory() == {
            "peak_allocated_bytes": 1000,
            "peak_reserved_bytes": 2000,
            "used_on_device_bytes": 4 * 2**30,
            "total_bytes": 64 * 2**30,
        }

    def test_synchronize_and_peaks_are_of_this_device(self, npu: FakeNpu) -> None:
        made = backend(index=1)
        made.load()
        npu.synchronized.clear()
        made.synchronize()
        made.reset_peak_memory()
        assert npu.synchronized == [1]
        assert npu.peaks_reset == [1]

    def test_events_are_in_seconds(self, npu: FakeNpu) -> None:
        timer = backend().event_timer()
        assert timer is not None
        for _ in range(3):
            timer.mark()
        assert timer.intervals_seconds() == [0.25, 0.25]
        assert timer.intervals_seconds() == []

    def test_versions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "cann_version", lambda: "9.1.0")
        monkeypatch.setattr(host, "driver_version", lambda: None)
        versions = backend().versions()
        assert set(versions) == {"torch", "torch-npu", "torch-npu commit", "cann", "driver", "firmware"}
        assert versions["cann"] == "9.1.0"
        assert versions["driver"] is None

    def test_what_can_change_the_device_is_recorded(self) -> None:
        for name in (
            "ASCEND_RT_VISIBLE_DEVICES",
            "HCCL_DETERMINISTIC",
            "TORCH_NPU_FALLBACK_CPU_DISABLE",
            "ACL_OP_COMPILER_CACHE_MODE",
            "PYTORCH_NPU_ALLOC_CONF",
            "TASK_QUEUE_ENABLE",
            "CPU_AFFINITY_CONF",
            "COMBINED_ENABLE",
            "MULTI_STREAM_MEMORY_REUSE",
            "INF_NAN_MODE_ENABLE",
        ):
            assert name.startswith(NpuBackend.environment_prefixes)


class TestClassify:
    @pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError], ids=["2.13", "older"])
    def test_out_of_memory_of_new_and_old_releases(self, kind: type[RuntimeError]) -> None:
        failure = backend().classify_error(
            kind("NPU out of memory. Tried to allocate 2.00 MiB (NPU 0; 64.00 GiB total)")
        )
        assert failure is not None
        assert failure.status == "oom"
        assert "workload.micro_batch_size" in failure.remedy

    def test_the_hosts_own_out_of_memory(self) -> None:
        failure = backend().classify_error(MemoryError())
        assert failure is not None
        assert failure.status == "oom"

    def test_a_fault_of_the_device(self) -> None:
        failure = backend().classify_error(set_device_failed(507015, "The aicore execution is abnormal."))
        assert failure is not None
        assert failure.status == "device_fault"

    def test_a_fallback_to_the_host(self) -> None:
        failure = backend().classify_error(
            RuntimeError("The operator 'aten::x' would execute ... CPU fallback is disabled")
        )
        assert failure is not None
        assert failure.status == "failed"


class TestPreflight:
    def test_asks_for_everything_most_fundamental_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        order = ("package", "library", "device", "variable")
        for name in (*order, "installation"):
            problem = SimpleNamespace(what=name, remedy="x")
            monkeypatch.setattr(host, f"{name}_problems", lambda problem=problem: [problem])
        assert tuple(problem.what for problem in backend().preflight()) == order
        # The installation is checked only if CANN's libraries are on the loader's path.
        monkeypatch.setattr(host, "library_problems", list)
        found = tuple(problem.what for problem in backend().preflight())
        assert found == ("package", "installation", "device", "variable")

    def test_the_emulator_needs_no_device_node(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("package", "library", "installation", "variable"):
            monkeypatch.setattr(host, f"{name}_problems", list)
        monkeypatch.setattr(host, "device_problems", lambda: [Problem("no node", "x")])
        monkeypatch.setattr(host, "driver_problems", lambda: [Problem("no driver", "x")])
        monkeypatch.setattr(emulation, "is_emulated", lambda: True)
        assert backend().preflight() == []
        monkeypatch.setattr(emulation, "is_emulated", lambda: False)
        # Without a device node the driver's library is not checked.
        assert [problem.what for problem in backend().preflight()] == ["no node"]
        monkeypatch.setattr(host, "device_problems", list)
        assert [problem.what for problem in backend().preflight()] == ["no driver"]


class TestTelemetry:
    def test_the_sensor_is_the_devices_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulation, "is_emulated", lambda: False)
        monkeypatch.setattr("harness.backends.npu.open_npu_smi", lambda index: f"sensor of {index}")
        assert backend(3).telemetry() == "sensor of 3"

    def test_an_emulation_draws_no_power(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulation, "is_emulated", lambda: True)
        assert "emulated" in str(backend().telemetry())

    def test_no_compilation(self) -> None:
        [problem] = backend().compile_problems()
        assert "not supported on NPU" in problem.what


class CpuInDisguise(NpuBackend):
    """The same backend with its tensors on the CPU: without the plug-in, torch knows no device of that name."""

    # Pinned memory needs a real accelerator.
    pins_host_memory = False

    def device(self) -> torch.device:
        return torch.device("cpu")


class TestARun:
    def words(self, tmp_path: Path) -> list[str]:
        return [*TINY, "backend=npu", "precision=bf16", f"out={tmp_path / 'run'}"]

    def test_leaves_a_record_with_the_devices_own_words(self, npu: FakeNpu, tmp_path: Path) -> None:
        config = load(self.words(tmp_path))
        outcome = run(config, CpuInDisguise(config.backend))
        record: dict[str, Any] = outcome.record
        assert record["status"] == "ok", record["error"]
        assert record["backend"]["name"] == "npu"
        assert record["device"]["name"] == record["backend"]["peak_lookup_key"] == "Ascend910B3"
        assert record["effective_settings"]["hf32_matmul"] is False
        assert record["effective_settings"]["cpu_fallback_disabled"] is True
        assert record["effective_settings"]["matmul_dtype"] == "bfloat16"
        assert record["memory"]["used_on_device_bytes"] == 4 * 2**30
        assert record["environment"]["variables"][FALLBACK] == "1"
        assert all(interval["device_seconds"] for interval in record["timing"]["intervals"])
        assert npu.opened == [0]
        assert len(npu.synchronized) > 5

    def test_that_dies_on_the_device_is_a_record_too(
        self, npu: FakeNpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = load(self.words(tmp_path))
        made = CpuInDisguise(config.backend)
        prepared = made.prepare

        def prepare(*words: Any, **named: Any) -> Any:
            # From here on the context is lost: every call of the device raises the same error.
            for name in ("synchronize", "mem_get_info", "get_device_properties", "get_device_name", "device_count"):
                monkeypatch.setattr(npu, name, raising(set_device_failed(507015, "The aicore execution is abnormal.")))
            return prepared(*words, **named)

        monkeypatch.setattr(made, "prepare", prepare)
        outcome = run(config, made)
        assert outcome.record["status"] == "device_fault"
        assert "AI core raised an exception" in outcome.record["error"]
        assert "ASCEND_LAUNCH_BLOCKING" in outcome.record["error"]
        assert outcome.record["device"]["name"] == "Ascend910B3"
        assert (tmp_path / "run" / "record.json").is_file()

    def test_whose_first_operation_fails_ends_in_one_line(
        self, npu: FakeNpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The probe runs the first operation, which fails if CANN's kernels are missing."""
        failure = RuntimeError(
            "matmul_implement_npu:../third_party/op-plugin/op_plugin/ops/opapi/MatmulKernelNpuOpApi.cpp:94 NPU "
            f"function error: call aclnnMatmul failed, error code is 561103\n{STAMP} ERR00100 PTA call acl api failed."
        )
        monkeypatch.setattr(torch.Tensor, "__matmul__", raising(failure))
        config = load(self.words(tmp_path))
        with pytest.raises(UserError, match="call aclnnMatmul failed, error code is 561103"):
            run(config, CpuInDisguise(config.backend))

    def test_that_asks_for_bf16_in_vain_leaves_no_folder(self, npu: FakeNpu, tmp_path: Path) -> None:
        npu.chip, npu.has_bf16 = "Ascend910A", False
        config = load(self.words(tmp_path))
        with pytest.raises(BackendUnavailable, match="Ascend910A has no bf16 arithmetic"):
            run(config, CpuInDisguise(config.backend))
        assert not (tmp_path / "run").exists()


class TestFusedKernels:
    """Their results are tested on the emulated device (tests/emulated/test_tuned.py)."""

    def test_each_is_one_call(self, npu: FakeNpu) -> None:
        plug_in = sys.modules["torch_npu"]
        asked: dict[str, tuple[Any, ...]] = {}

        def note(name: str, result: Any) -> None:
            def kernel(*values: Any, **named: Any) -> Any:
                asked[name] = (*values, named)
                return result(*values)

            setattr(plug_in, name, kernel)

        note("npu_rotary_mul", lambda x, cos, sin: x)
        note("npu_rms_norm", lambda x, weight: (x, None))
        note("npu_swiglu", lambda x: x[..., :2])
        kernels = backend().kernels()
        x, tables = torch.ones(1, 2, 3, 4, dtype=torch.bfloat16), torch.ones(3, 4)
        turned = kernels["rotary"]["fused"](x, tables, tables)
        # In float32 like the tables, and back to the input's dtype.
        assert asked["npu_rotary_mul"][0].dtype == torch.float32
        assert asked["npu_rotary_mul"][1].shape == (1, 1, 3, 4)
        assert turned.dtype == torch.bfloat16
        assert kernels["rms_norm"]["fused"](x, tables[0], 1e-6).shape == x.shape
        assert asked["npu_rms_norm"][-1] == {"epsilon": 1e-6}
        assert kernels["swiglu"]["fused"](x[..., :2], x[..., :2]).shape == (1, 2, 3, 2)
        assert asked["npu_swiglu"][-1] == {"dim": -1}
        assert kernels["cross_entropy"].keys() == {"chunked"}
