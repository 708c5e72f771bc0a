"""Where the time of a step goes: its parts by a scripted clock, idle stretches, bytes of operands, and the roofline."""

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

LASTS = {"host_to_device": 1.0, "forward": 10.0, "backward": 20.0, "communication": 4.0, "optimizer": 3.0}
BETWEEN = 0.5


class ScriptedStep:
    """A step on a device that queues its work: only a synchronisation lets the time pass that it takes."""

    def __init__(self, *, whole: bool = False) -> None:
        self.now, self.queued = 0.0, 0.0
        self.part: PhaseContext = lambda name: nullcontext()
        self._whole = whole

    def record_phases(self, part: PhaseContext | None) -> bool:
        self.part = part or (lambda name: nullcontext())
        return not self._whole

    def __call__(self, micro_batches: Sequence[torch.Tensor], learning_rate: float = 0.0) -> Any:
        for _ in micro_batches:
            for name in ("host_to_device", "forward", "backward"):
                with self.part(name):
                    self.queued += LASTS[name]
        for name in ("communication", "optimizer"):
            with self.part(name):
                self.queued += LASTS[name]
        self.now += BETWEEN

    def synchronize(self) -> None:
        self.now, self.queued = self.now + self.queued, 0.0

    def clock(self) -> float:
        return self.now


BATCHES = [[torch.zeros(1)] * 2] * 3


def watched(step: ScriptedStep, waited: Any = lambda: 0.0) -> dict[str, Any]:
    run: Any = step
    return time_phases(run, run, BATCHES, step.synchronize, waited, step.clock)


def test_parts_are_waited_for_and_are_means_over_steps() -> None:
    found = watched(ScriptedStep())
    assert found["phases"] == {**LASTS, **{name: 2 * LASTS[name] for name in ("host_to_device", "forward", "backward")}}
    assert found["host_overhead_seconds"] == pytest.approx(BETWEEN)


def test_nobody_watches_afterwards() -> None:
    step = ScriptedStep()
    watched(step)
    step.queued = 7.0
    step(BATCHES[0])
    assert step.queued > 7.0, "the parts are still synchronised"


def test_what_is_waited_is_taken_off_its_part() -> None:
    """In each forward pass two seconds, in the first backward pass three, in the last five; each told later."""
    step_of_two = (0.0, 2.0, 3.0, 2.0, 5.0)

    def waits() -> Iterator[float]:
        yield 0.0
        yield from step_of_two  # of the step that is thrown away
        yield 0.0
        yield from itertools.cycle(step_of_two)

    told = waits()
    parts = watched(ScriptedStep(), lambda: next(told))["phases"]
    assert parts["forward"] == 2 * LASTS["forward"] - 4.0
    assert parts["backward"] == 2 * LASTS["backward"] - 8.0
    assert parts["communication"] == LASTS["communication"] + 12.0


def test_waiting_that_nobody_knows_is_null() -> None:
    parts = watched(ScriptedStep(), lambda: None)["phases"]
    assert parts["communication"] is None
    assert parts["forward"] == 2 * LASTS["forward"]


def test_a_step_in_one_piece_has_no_parts() -> None:
    assert watched(ScriptedStep(whole=True)) == {"phases": None, "host_overhead_seconds": None}


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
def test_idle_is_what_no_operation_covers(intervals: list[tuple[float, float]], idle: float | None) -> None:
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
    kind = profiling._other_device([*EVENTS, *ON_DEVICE])
    assert kind == DeviceType.CUDA
    assert idle_fraction(profiling._intervals([*EVENTS, *ON_DEVICE], kind), 100e-6) == pytest.approx(0.6)


def test_a_host_that_is_the_device_is_busy_while_operations_are_under_way() -> None:
    intervals = profiling._intervals(EVENTS, DeviceType.CPU)
    assert idle_fraction(intervals, 100e-6) == pytest.approx(0.8), "what is around operations is none"


def test_a_device_that_the_profiler_does_not_see_has_no_idle_time() -> None:
    assert profiling._other_device(EVENTS) is None
    assert idle_fraction(profiling._intervals(EVENTS, None), 1.0) is None


def average(name: str, kind: DeviceType, *, own_host: float, own_device: float) -> Any:
    """One of a profiler's averages over 3 steps; microseconds."""
    return SimpleNamespace(
        key=name, device_type=kind, count=3, is_user_annotation=False,
        self_cpu_time_total=own_host, self_device_time_total=own_device,
    )  # fmt: skip


def test_a_kernel_is_listed_once() -> None:
    """The host's call is told the time of the kernel that it launched, too."""
    averages = [
        average("aten::mm", DeviceType.CPU, own_host=30.0, own_device=300.0),
        average("gemm", DeviceType.CUDA, own_host=0.0, own_device=300.0),
    ]
    profiler = SimpleNamespace(key_averages=lambda: averages)
    [listed] = profiling._operations(profiler, DeviceType.CUDA, 3)
    assert listed == {"name": "gemm", "calls": 1.0, "seconds": pytest.approx(1e-4)}
    assert [each["name"] for each in profiling._operations(profiler, DeviceType.CPU, 3)] == ["aten::mm"]


class TestOperandBytes:
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

    def test_an_expanded_tensor_counts_as_what_there_is(self) -> None:
        row, table = torch.zeros(1, 8), torch.zeros(10, 8)
        with BytesAccessed() as counted:
            _ = table + row.expand(10, 8)
        assert counted.total == 4 * (80 + 8 + 80)

    def test_a_look_up_reads_its_rows_alone(self) -> None:
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
    def test_beyond_the_ridge_arithmetic_is_the_bound(self) -> None:
        found = roofline(1000.0, 10.0, 2.0, peak_flops=800.0, memory_bytes_per_second=20.0)
        assert found == {
            "arithmetic_intensity": 100.0,
            "achieved_flops": 500.0,
            "ridge_arithmetic_intensity": 40.0,
            "attainable_flops": 800.0,
            "bound_by": "compute",
        }

    def test_before_it_memory_is(self) -> None:
        found = roofline(1000.0, 100.0, 10.0, peak_flops=800.0, memory_bytes_per_second=20.0)
        assert (found["attainable_flops"], found["bound_by"]) == (200.0, "memory")

    def test_faster_than_its_bytes_allow_shows_that_they_are_too_many(self) -> None:
        found = roofline(1000.0, 100.0, 2.0, peak_flops=800.0, memory_bytes_per_second=40.0)
        assert found["attainable_flops"] is None
        assert found["bound_by"] is None

    @pytest.mark.parametrize("ceilings", [(None, 20.0), (800.0, None)])
    def test_without_ceilings_it_is_not_told(self, ceilings: tuple[float | None, float | None]) -> None:
        found = roofline(1000.0, 10.0, 2.0, *ceilings)
        assert (found["bound_by"], found["attainable_flops"], found["arithmetic_intensity"]) == (None, None, 100.0)
