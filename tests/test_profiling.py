"""Profile of a step: phases by a scripted clock, idle time, bytes accessed, and the roofline."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import DeviceType

from harness.analysis.roofline import roofline
from harness.backends.step import PhaseContext
from harness.training import profiling
from harness.training.profiling import BytesAccessed, idle_fraction, time_phases

PHASE_SECONDS = {"host_to_device": 1.0, "forward": 10.0, "backward": 20.0, "communication": 4.0, "optimizer": 3.0}
OVERHEAD_SECONDS = 0.5


class ScriptedStep:
    """A step on a device that queues its work: its time passes at the next synchronization."""

    def __init__(self, *, opaque: bool = False) -> None:
        self.now, self.queued = 0.0, 0.0
        self.phase: PhaseContext = lambda name: nullcontext()
        self._opaque = opaque

    def record_phases(self, phase: PhaseContext | None) -> bool:
        self.phase = phase or (lambda name: nullcontext())
        return not self._opaque

    def __call__(self, micro_batches: Sequence[torch.Tensor], learning_rate: float = 0.0) -> Any:
        for _ in micro_batches:
            for name in ("host_to_device", "forward", "backward"):
                with self.phase(name):
                    self.queued += PHASE_SECONDS[name]
        for name in ("communication", "optimizer"):
            with self.phase(name):
                self.queued += PHASE_SECONDS[name]
        self.now += OVERHEAD_SECONDS

    def synchronize(self) -> None:
        self.now, self.queued = self.now + self.queued, 0.0

    def clock(self) -> float:
        return self.now


BATCHES = [[torch.zeros(1)] * 2] * 3


def timed(step: ScriptedStep, exposed_seconds: Any = lambda: 0.0) -> dict[str, Any]:
    run: Any = step
    return time_phases(run, run, BATCHES, step.synchronize, exposed_seconds, step.clock)


def test_phases_are_synchronized_means_over_steps() -> None:
    found = timed(ScriptedStep())
    assert found["phases"] == {
        **PHASE_SECONDS,
        **{name: 2 * PHASE_SECONDS[name] for name in ("host_to_device", "forward", "backward")},
    }
    assert found["host_overhead_seconds"] == pytest.approx(OVERHEAD_SECONDS)


def test_a_step_is_not_synchronized_afterwards() -> None:
    step = ScriptedStep()
    timed(step)
    step.queued = 7.0
    step(BATCHES[0])
    assert step.queued > 7.0, "the phases are still synchronized"


def test_exposed_communication_is_subtracted_from_its_phase() -> None:
    """Two seconds in each forward pass, three in the first backward pass, five in the last; read one phase later."""
    step_of_two = (0.0, 2.0, 3.0, 2.0, 5.0)

    def waits() -> Iterator[float]:
        yield 0.0
        yield from step_of_two  # of the step that is discarded
        yield 0.0
        yield from itertools.cycle(step_of_two)

    seconds = waits()
    phases = timed(ScriptedStep(), lambda: next(seconds))["phases"]
    assert phases["forward"] == 2 * PHASE_SECONDS["forward"] - 4.0
    assert phases["backward"] == 2 * PHASE_SECONDS["backward"] - 8.0
    assert phases["communication"] == PHASE_SECONDS["communication"] + 12.0


def test_unknown_exposed_communication_is_null() -> None:
    phases = timed(ScriptedStep(), lambda: None)["phases"]
    assert phases["communication"] is None
    assert phases["forward"] == 2 * PHASE_SECONDS["forward"]


def test_an_opaque_step_has_no_phases() -> None:
    assert timed(ScriptedStep(opaque=True)) == {"phases": None, "host_overhead_seconds": None}


@pytest.mark.parametrize(
    ("intervals", "idle"),
    [
        ([(0.0, 10.0)], 0.0),
        ([(0.0, 2.0), (5.0, 10.0)], 0.3),
        # One within another, and two that overlap.
        ([(0.0, 6.0), (1.0, 2.0), (5.0, 8.0)], 0.2),
        ([(5.0, 8.0), (0.0, 6.0)], 0.2),
        ([], None),
    ],
)
def test_idle_time_is_covered_by_no_operation(intervals: list[tuple[float, float]], idle: float | None) -> None:
    assert idle_fraction(intervals, 10.0) == (None if idle is None else pytest.approx(idle))


def event(name: str, kind: DeviceType, start: float, end: float, *, annotation: bool = False) -> Any:
    """One of a profiler's events; microseconds."""
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, device_type=kind, time_range=span, is_user_annotation=annotation)


EVENTS = [
    event("ProfilerStep#1", DeviceType.CPU, 0, 100),
    event("Optimizer.step#AdamW.step", DeviceType.CPU, 60, 100, annotation=True),
    event("autograd::engine::evaluate_function: MmBackward0", DeviceType.CPU, 5, 60),
    event("Torch-Compiled Region: 0/0", DeviceType.CPU, 5, 60),
    event("aten::mm", DeviceType.CPU, 10, 20),
    event("## Call CompiledFxGraph fabc ##", DeviceType.CPU, 40, 50),
]
ON_DEVICE = [
    event("gemm", DeviceType.CUDA, 30, 70),
    event("ProfilerStep#1", DeviceType.CUDA, 0, 100, annotation=True),
]


def test_a_device_is_busy_while_its_kernels_run() -> None:
    kind = profiling._accelerator_kind([*EVENTS, *ON_DEVICE])
    assert kind == DeviceType.CUDA
    assert idle_fraction(profiling._intervals([*EVENTS, *ON_DEVICE], kind), 100e-6) == pytest.approx(0.6)


def test_a_cpu_is_busy_while_operations_run() -> None:
    intervals = profiling._intervals(EVENTS, DeviceType.CPU)
    assert idle_fraction(intervals, 100e-6) == pytest.approx(0.8), "events around operations do not count"


def test_a_device_that_the_profiler_does_not_see_has_no_idle_time() -> None:
    assert profiling._accelerator_kind(EVENTS) is None
    assert idle_fraction(profiling._intervals(EVENTS, None), 1.0) is None


def average(name: str, kind: DeviceType, *, own_host: float, own_device: float) -> Any:
    """One of a profiler's averages over 3 steps; microseconds."""
    return SimpleNamespace(
        key=name, device_type=kind, count=3, is_user_annotation=False,
        self_cpu_time_total=own_host, self_device_time_total=own_device,
    )  # fmt: skip


def test_a_kernel_is_listed_once() -> None:
    """The profiler also attributes a kernel's time to the host's call that launched it."""
    averages = [
        average("aten::mm", DeviceType.CPU, own_host=30.0, own_device=300.0),
        average("gemm", DeviceType.CUDA, own_host=0.0, own_device=300.0),
    ]
    profiler = SimpleNamespace(key_averages=lambda: averages)
    [listed] = profiling._list_operations(profiler, DeviceType.CUDA, 3)
    assert listed == {"name": "gemm", "calls": 1.0, "seconds": pytest.approx(1e-4)}
    assert [each["name"] for each in profiling._list_operations(profiler, DeviceType.CPU, 3)] == ["aten::mm"]


class TestBytesAccessed:
    def test_a_product_reads_two_and_writes_one(self) -> None:
        left, right = torch.zeros(3, 5), torch.zeros(5, 7)
        with BytesAccessed() as counted:
            _ = left @ right
        assert counted.total == 4 * (15 + 35 + 21)

    def test_views_and_fresh_memory_move_nothing(self) -> None:
        left = torch.zeros(6, 4)
        with BytesAccessed() as counted:
            left.view(4, 6).transpose(0, 1)[1:]
            torch.empty(100)
        assert counted.total == 0

    def test_an_expanded_tensor_counts_its_storage(self) -> None:
        row, table = torch.zeros(1, 8), torch.zeros(10, 8)
        with BytesAccessed() as counted:
            _ = table + row.expand(10, 8)
        assert counted.total == 4 * (80 + 8 + 80)

    def test_an_embedding_reads_its_rows_alone(self) -> None:
        table = torch.zeros(1000, 8)
        with BytesAccessed() as counted:
            torch.nn.functional.embedding(torch.tensor([1, 2]), table)
        assert counted.total == 2 * 4 * 16

    def test_the_backward_pass_and_lists_count_too(self) -> None:
        weight = torch.zeros(4, 4, requires_grad=True)
        loss = (weight @ torch.zeros(4, 4)).sum()
        with BytesAccessed() as counted:
            loss.backward()
            torch.ops.aten._foreach_add_.Scalar([torch.zeros(4), torch.zeros(4)], 1.0)
        # The product for the weight's gradient; what sum's backward expands from; two lists of four, read and written.
        assert counted.total >= 4 * (3 * 16 - 15) + 2 * 2 * 16


class TestRoofline:
    def test_beyond_the_ridge_it_is_bound_by_compute(self) -> None:
        found = roofline(1000.0, 10.0, 2.0, peak_flops=800.0, memory_bytes_per_second=20.0)
        assert found == {
            "arithmetic_intensity": 100.0,
            "achieved_flops": 500.0,
            "ridge_arithmetic_intensity": 40.0,
            "attainable_flops": 800.0,
            "bound_by": "compute",
        }

    def test_before_the_ridge_it_is_bound_by_memory(self) -> None:
        found = roofline(1000.0, 100.0, 10.0, peak_flops=800.0, memory_bytes_per_second=20.0)
        assert (found["attainable_flops"], found["bound_by"]) == (200.0, "memory")

    def test_faster_than_its_bytes_allow_is_unknown(self) -> None:
        found = roofline(1000.0, 100.0, 2.0, peak_flops=800.0, memory_bytes_per_second=40.0)
        assert found["attainable_flops"] is None
        assert found["bound_by"] is None

    @pytest.mark.parametrize("peaks", [(None, 20.0), (800.0, None)])
    def test_without_peaks_the_bound_is_unknown(self, peaks: tuple[float | None, float | None]) -> None:
        found = roofline(1000.0, 10.0, 2.0, *peaks)
        assert (found["bound_by"], found["attainable_flops"], found["arithmetic_intensity"]) == (None, None, 100.0)
