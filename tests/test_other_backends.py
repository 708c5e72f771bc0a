"""Backends without a device in CI (XPU, MPS, Gaudi), on fakes: refusals, classified failures, and a whole run of each.

A fake is a module whose tensors are on the CPU. The fake of Gaudi counts the step boundaries of lazy mode.
"""

from __future__ import annotations

import importlib.machinery
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch

from harness.backends import hpu, mps, xpu
from harness.backends.base import Backend
from harness.backends.hpu import HpuBackend
from harness.backends.mps import MpsBackend
from harness.backends.xpu import XpuBackend
from harness.composition import load
from harness.config import BackendConfig
from harness.errors import BackendUnavailable
from harness.text import layered_settings
from harness.training.run import run
from tests.conftest import PROJECT
from tests.fake_events import FakeEvent
from tests.tiny import TINY

XPU_BUILD = {"version": "2.13.0+xpu", "xpu": "20250301"}


def settings(name: str, **changes: Any) -> BackendConfig:
    return BackendConfig(name=name, **changes)


def problems_of(backend: Backend) -> str:
    return " | ".join(f"{problem.what}; {problem.remedy}" for problem in backend.preflight())


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Device nodes of both kinds in a temporary folder."""
    for name in ("renderD128", "accel0"):
        (tmp_path / name).touch()
    monkeypatch.setattr(xpu, "RENDER_NODES", str(tmp_path / "renderD*"))
    monkeypatch.setattr(hpu, "DEVICE_NODES", str(tmp_path / "accel*"))
    return tmp_path


class TestXpu:
    @pytest.fixture
    def host(self, nodes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(xpu, "torch_build", lambda: XPU_BUILD)
        return nodes

    @pytest.fixture
    def device(self, host: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        called = {"synchronize": 0}
        properties = SimpleNamespace(name="Intel(R) Data Center GPU Max 1550", total_memory=2**36, driver_version="1.3")
        answers: dict[str, Callable[..., Any] | type] = {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "set_device": lambda index: None,
            "get_device_properties": lambda device: properties,
            "is_bf16_supported": lambda including_emulation: True,
            "synchronize": lambda device: called.update(synchronize=called["synchronize"] + 1),
            "reset_peak_memory_stats": lambda device: None,
            "max_memory_allocated": lambda device: 1000,
            "max_memory_reserved": lambda device: 0,
            "Event": FakeEvent,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.xpu, name, answer)
        return called

    def test_a_fit_host_has_no_problem(self, host: Path) -> None:
        assert XpuBackend(settings("xpu")).preflight() == []

    def test_what_is_missing_is_named(self, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (host / "renderD128").unlink()
        monkeypatch.setattr(xpu, "torch_build", lambda: {"version": "2.13.0+cpu", "xpu": None})
        monkeypatch.setenv("PYTORCH_ENABLE_XPU_FALLBACK", "1")
        problems = problems_of(XpuBackend(settings("xpu")))
        assert "torch 2.13.0+cpu was built without XPU" in problems
        assert "renderD* is missing" in problems
        assert "--device /dev/dri" in problems
        assert "PYTORCH_ENABLE_XPU_FALLBACK=1 lets unsupported operations run on the host" in problems

    def test_a_node_that_may_not_be_opened(self, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.access", lambda path, mode: False)
        assert "may not be opened by this user; add the user to the group render" in problems_of(
            XpuBackend(settings("xpu"))
        )

    def test_an_index_beyond_the_devices(self, device: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        XpuBackend(settings("xpu", device_index=1)).load()
        with pytest.raises(
            BackendUnavailable,
            match=r"found 2, expected 0 to 1 \(visible devices: 2, ZE_AFFINITY_MASK=.*sycl-ls lists them",
        ):
            XpuBackend(settings("xpu", device_index=2)).load()
        monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
        with pytest.raises(
            BackendUnavailable, match=r"cannot be opened: no device found \(visible devices: 0, .*sycl-ls"
        ):
            XpuBackend(settings("xpu")).load()

    def test_a_driver_that_fails(self, device: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        def fails() -> bool:
            raise RuntimeError("Native API failed")

        monkeypatch.setattr(torch.xpu, "is_available", fails)
        with pytest.raises(BackendUnavailable, match="cannot be opened: Native API failed"):
            XpuBackend(settings("xpu")).load()

    def test_bf16_that_would_be_emulated_is_refused(
        self, device: dict[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda including_emulation: including_emulation)
        with pytest.raises(
            BackendUnavailable, match=r"precision=bf16: Intel\(R\) Data Center GPU Max 1550 has no bf16"
        ):
            XpuBackend(settings("xpu")).apply("bf16")
        XpuBackend(settings("xpu")).apply("fp16")

    @pytest.mark.parametrize(
        "line",
        [
            "[W1 Fallback.cpp:26] Warning: Aten Op fallback from XPU to CPU happends. This may have performance",
            "[W1 Fallback.cpp:31] Warning: The operator 'aten::x on the XPU backend is falling back to run on the CPU.",
            "Warning: The operator 'aten::x' is not currently supported on the XPU backend and will fall back "
            "to run on the CPU.",
        ],
    )
    def test_an_operation_that_ran_on_the_host_is_noticed(self, line: str) -> None:
        assert XpuBackend.fallback_pattern is not None
        assert re.search(XpuBackend.fallback_pattern, line)

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"), "oom"),
            (RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)"), "device_fault"),
            (RuntimeError("a shape does not fit"), None),
            (ValueError("UR_RESULT_ERROR_DEVICE_LOST"), None),
        ],
    )
    def test_failures(self, error: Exception, status: str | None) -> None:
        failure = XpuBackend(settings("xpu")).classify_error(error)
        assert (None if failure is None else failure.status) == status

    def test_a_whole_run(self, device: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(XpuBackend, "device", lambda self: torch.device("cpu"))
        monkeypatch.setattr(XpuBackend, "pins_host_memory", False)
        record = trained(XpuBackend(settings("xpu")), tmp_path)
        assert record["device"]["name"] == record["backend"]["peak_lookup_key"] == "Intel(R) Data Center GPU Max 1550"
        assert record["timing"]["step_seconds_method"] == "device_event"
        # An unknown figure is null, never 0.
        assert record["memory"] == {"peak_allocated_bytes": 1000, "peak_reserved_bytes": None, "total_bytes": 2**36}
        assert device["synchronize"] > 5


class TestMps:
    @pytest.fixture
    def device(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        called = {"synchronize": 0}
        monkeypatch.setattr(mps.sys, "platform", "darwin")
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        answers: dict[str, Any] = {
            "synchronize": lambda: called.update(synchronize=called["synchronize"] + 1),
            "driver_allocated_memory": lambda: 5000,
            "recommended_max_memory": lambda: 2**34,
            "Event": FakeEvent,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.mps, name, answer, raising=False)
        return called

    def test_elsewhere_than_on_a_mac(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mps.sys, "platform", "linux")
        assert "this host runs linux" in problems_of(MpsBackend(settings("mps")))

    def test_a_fit_host_has_no_problem(self, device: dict[str, int]) -> None:
        assert MpsBackend(settings("mps")).preflight() == []

    @pytest.mark.parametrize("name", ["PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_FAST_MATH"])
    def test_variables_that_falsify_a_run(
        self, name: str, device: dict[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "1")
        assert f"{name}=1" in problems_of(MpsBackend(settings("mps")))

    def test_a_second_gpu_there_is_not(self, device: dict[str, int]) -> None:
        assert "there is one GPU" in problems_of(MpsBackend(settings("mps", device_index=1)))

    def test_a_build_or_a_system_without(self, device: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(BackendUnavailable, match="no usable GPU"):
            MpsBackend(settings("mps")).load()
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
        with pytest.raises(BackendUnavailable, match="built without MPS"):
            MpsBackend(settings("mps")).load()

    def test_a_command_that_failed_is_the_device_s(self) -> None:
        failure = MpsBackend(settings("mps")).classify_error(
            RuntimeError("Command buffer execution failed: timeout\nmore")
        )
        assert failure is not None
        assert (failure.status, failure.cause) == ("device_fault", "Command buffer execution failed: timeout")

    def test_a_whole_run(self, device: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MpsBackend, "device", lambda self: torch.device("cpu"))
        record = trained(MpsBackend(settings("mps")), tmp_path)
        assert record["device"]["kind"] == "mps"
        assert record["device"]["memory_bytes"] == 2**34
        assert record["backend"]["peak_lookup_key"] is None
        assert record["memory"]["peak_allocated_bytes"] is None
        assert record["memory"]["held_by_driver_bytes"] == 5000
        assert device["synchronize"] > 5


class LazyGaudi:
    """habana_frameworks with one Gaudi 2. Counts step boundaries and synchronizations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> None:
        self.boundaries = self.synchronized = 0
        core = self.module("habana_frameworks.torch.core", mark_step=self.mark_step)
        device = self.module(
            "habana_frameworks.torch.hpu",
            device_count=lambda: devices,
            set_device=lambda index: None,
            synchronize=self.synchronize,
            Event=FakeEvent,
            reset_peak_memory_stats=lambda: None,
            max_memory_allocated=lambda: 1000,
            mem_get_info=lambda: (1, 96 * 10**9),
            get_device_name=lambda: "GAUDI2",
        )
        frameworks = self.module("habana_frameworks.torch", core=core, hpu=device)
        for module in (self.module("habana_frameworks", torch=frameworks), frameworks, core, device):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    @staticmethod
    def module(name: str, **members: Any) -> ModuleType:
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        vars(module).update(members)
        return module

    def mark_step(self) -> None:
        self.boundaries += 1

    def synchronize(self) -> None:
        self.synchronized += 1


class TestHpu:
    @pytest.fixture
    def gaudi(self, nodes: Path, monkeypatch: pytest.MonkeyPatch) -> LazyGaudi:
        # Set and deleted, so that monkeypatch also restores what the backend sets.
        monkeypatch.setenv("PT_HPU_LAZY_MODE", "")
        monkeypatch.delenv("PT_HPU_LAZY_MODE")
        return LazyGaudi(monkeypatch)

    def test_a_fit_host_has_no_problem(self, gaudi: LazyGaudi) -> None:
        assert HpuBackend(settings("hpu")).preflight() == []

    def test_what_is_missing_is_named(self, nodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (nodes / "accel0").unlink()
        monkeypatch.setenv("PT_HPU_GPU_MIGRATION", "1")
        problems = problems_of(HpuBackend(settings("hpu")))
        assert "habana_frameworks is not installed" in problems
        assert "accel* is missing" in problems
        assert "PT_HPU_GPU_MIGRATION" in problems

    def test_an_index_beyond_the_devices(self, gaudi: LazyGaudi) -> None:
        with pytest.raises(
            BackendUnavailable, match=r"found 1, expected 0 \(visible devices: 1, HABANA_VISIBLE_DEVICES="
        ):
            HpuBackend(settings("hpu", device_index=1)).load()

    def test_a_plug_in_that_does_not_load(self, gaudi: LazyGaudi, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "habana_frameworks.torch.core", None)
        with pytest.raises(BackendUnavailable, match="backend hpu cannot be opened"):
            HpuBackend(settings("hpu")).load()

    @pytest.mark.parametrize(
        ("text", "status"),
        [
            ("synStatus=26 [Generic failure] Device critical error", "device_fault"),
            ("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::1024", "oom"),
            ("a shape does not fit", None),
        ],
    )
    def test_failures(self, text: str, status: str | None) -> None:
        failure = HpuBackend(settings("hpu")).classify_error(RuntimeError(text))
        assert (None if failure is None else failure.status) == status

    @pytest.mark.parametrize("asked", [None, "0", "1"])
    def test_a_whole_run(
        self, asked: str | None, gaudi: LazyGaudi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In lazy mode each backward pass and each update ends at a boundary: two micro-batches a step, and 6 steps."""
        if asked is not None:
            monkeypatch.setenv("PT_HPU_LAZY_MODE", asked)
        lazy = asked == "1"
        monkeypatch.setattr(HpuBackend, "device", lambda self: torch.device("cpu"))
        record = trained(HpuBackend(settings("hpu")), tmp_path, "workload.micro_batch_size=2", "fingerprint=false")
        steps = len(record["losses"]["train"])
        micro_batches = record["config"]["workload"]["global_batch_size"] // 2
        assert micro_batches > 1
        assert gaudi.boundaries == (steps * (micro_batches + 1) if lazy else 0)
        assert record["effective_settings"]["lazy_mode"] is lazy
        # The libraries read it on import, and their default differs between releases.
        assert record["environment"]["variables"]["PT_HPU_LAZY_MODE"] == ("1" if lazy else "0")
        # An event recorded lazily enters the device's queue at the next boundary only.
        assert record["timing"]["step_seconds_method"] == ("interval_mean" if lazy else "device_event")
        assert record["device"]["name"] == record["backend"]["peak_lookup_key"] == "GAUDI2"
        assert record["utilization"] is None or record["utilization"]["catalogued_peak_flops"] is None
        assert gaudi.synchronized > 5


def trained(backend: Backend, folder: Path, *words: str) -> dict[str, Any]:
    """Train the tiny workload on a backend and return its record."""
    config = load(layered_settings(TINY, [f"backend={backend.name}", f"out={folder / 'run'}", *words]))
    run(config, backend)
    record = json.loads((folder / "run" / "record.json").read_text())
    jsonschema.validate(record, json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text()))
    assert record["status"] == "ok"
    return record
