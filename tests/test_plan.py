"""Plans without devices: their figures are those of real runs, and mistakes are one line."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining import schedules

from harness import backends
from harness.analysis.stage_memory import GIB, PassMemory, StageMemory, passes_in_flight
from harness.composition import load
from harness.config import BackendConfig
from harness.layout import layout_of, uneven_rounds
from harness.text import layered_settings
from harness.training.distributed import plan
from harness.training.distributed.pipeline import SCHEDULES
from tests.layouts import LLAMA, WORK, overrides_of
from tests.ranks import end_ranks, run_harness, start_ranks

MODEL = (*WORK, *LLAMA, "model.tie_word_embeddings=false", "model.vocab_size=257")
SHORT = ("workload.steps=3", "workload.timing_warmup_steps=1", "workload.lr_warmup_steps=1", "workload.eval_every=0",
         "fingerprint=false")  # fmt: skip
# Three activations of [1, 32, 32] a micro-batch, of a rank with two of four stages.
SENT_BYTES = 3 * 4 * 32 * 32


def settings(layout: str, *more: str) -> list[str]:
    return layered_settings(MODEL, ["parallel=mesh", *(f"parallel.{part}" for part in layout.split()), *more])


def planned(devices: int, overrides: list[str]) -> list[StageMemory]:
    config = load(overrides)
    layout = layout_of(config.parallel, devices)
    return plan.plan_stages(config, backends.create(BackendConfig(name="cpu")), layout)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "more"),
    [
        ("tensor=2", ("precision=bf16",)),
        ("tensor=2", ("model.num_experts=4", "model.routing=round_robin")),
        ("pipeline=2", ("precision=bf16",)),
        ("shard=2", ("model.activation_checkpointing=true",)),
        ("context=2", ()),
        ("pipeline=2 pipeline_virtual_stages=2", ()),
        ("pipeline=2 tensor=2", ("model.vocab_size=511",)),
    ],
)
def test_a_run_holds_what_was_planned(layout: str, more: tuple[str, ...], tmp_path: Path) -> None:
    """Parameters, gradients, optimizer state, and what a micro-batch leaves for its backward pass, to the byte."""
    devices = overrides_of(layout)[0]
    overrides = settings(layout, *SHORT, *more)
    run = start_ranks(devices, [*overrides, "out=run"], tmp_path, fault="held", module="tests.memory_probe")
    assert [ended.err for ended in end_ranks(run, 200) if ended.code] == []
    held = [json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in range(devices)]
    stages = planned(devices, overrides)
    each = devices // len(stages)
    for number, stage in enumerate(stages):
        ranks = held[number * each : (number + 1) * each]
        for key in ("parameters", "weight_bytes", "gradient_bytes", "moment_bytes"):
            assert getattr(stage, key) == max(rank[key] for rank in ranks), key
        assert stage.passes.activations == max(rank["activation_bytes"] for rank in ranks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "layout", "precision"),
    [
        ("1f1b", "pipeline=4", "fp32"),
        # Stages exchange activations in bf16.
        ("gpipe", "pipeline=4", "bf16_weights"),
        ("1f1b", "pipeline=2 shard=2 tensor=2", "fp32"),
        ("1f1b", "pipeline=2 shard=2 pipeline_virtual_stages=2", "fp32"),
        ("gpipe", "pipeline=2 pipeline_virtual_stages=2", "fp32"),
    ],
)
def test_few_micro_batches_tell_the_peak_of_a_schedule(
    schedule: str, layout: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's schedule over all micro-batches has the peak that follows from two, or from two rounds.

    But for the tokens of the others, and an output that waits to be sent: up to 1.1 % of these tiny models. On fake
    tensors nothing is held until it is sent.
    """
    more = ("workload.global_batch_size=12", f"parallel.pipeline_schedule={schedule}", f"precision={precision}")
    overrides = settings(layout, *more)
    devices = overrides_of(layout)[0]
    config = load(overrides)
    found = planned(devices, overrides)
    # One section: all passes.
    monkeypatch.setattr(plan._StepObserver, "_before_backward", lambda *_: None)
    backend, whole_layout = backends.create(BackendConfig(name="cpu")), layout_of(config.parallel, devices)
    count = plan.micro_batches_of(config, whole_layout)
    sent = SENT_BYTES * count if "virtual" in layout else 0
    calls = [(config, backend, whole_layout, stage.stage, count) for stage in found]
    for stage, (whole, _) in zip(found, plan._in_processes(plan._rehearse, calls), strict=True):
        peak = max(whole.passes.peak_of_first, whole.passes.peak_of_update)
        assert stage.peak_bytes - sent == pytest.approx(peak, rel=0.015)


@pytest.mark.parametrize(
    ("schedule", "virtual_stages", "micro_batches", "expected"),
    [
        ("1f1b", 1, 8, [4, 3, 2, 1]),
        ("1f1b", 1, 2, [2, 2, 2, 1]),
        ("gpipe", 1, 8, [8, 8, 8, 8]),
        ("zero_bubble", 1, 8, [4, 4, 4, 4]),
        ("1f1b", 2, 8, [11, 9, 7, 5]),
        ("1f1b", 2, 4, [8, 8, 7, 5]),
        ("1f1b", 2, 10, [12, 10, 8, 6]),
        ("gpipe", 2, 8, [16, 16, 16, 16]),
    ],
)
def test_passes_in_flight(schedule: str, virtual_stages: int, micro_batches: int, expected: list[int]) -> None:
    assert [passes_in_flight(schedule, rank, 4, virtual_stages, micro_batches) for rank in range(4)] == expected
    assert passes_in_flight(schedule, 0, 1, 1, 8) == 1


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero_bubble"])
@pytest.mark.parametrize(("virtual_stages", "micro_batches"), [(1, 4), (1, 12), (2, 4), (2, 6), (2, 12), (3, 8)])
def test_pytorchs_schedules_keep_as_many(schedule: str, virtual_stages: int, micro_batches: int) -> None:
    for rank in range(4):
        planned = passes_in_flight(schedule, rank, 4, virtual_stages, micro_batches)
        assert _kept_by_pytorch(schedule, rank, 4, virtual_stages, micro_batches) == planned


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero_bubble"])
@pytest.mark.parametrize("virtual_stages", [1, 2])
@pytest.mark.parametrize("micro_batches", range(3, 13))
def test_uneven_rounds_are_those_that_pytorch_refuses(schedule: str, virtual_stages: int, micro_batches: int) -> None:
    if uneven_rounds(schedule, 3, virtual_stages > 1, micro_batches):
        with pytest.raises(ValueError, match="requires the number of microbatches"):
            _kept_by_pytorch(schedule, 0, 3, virtual_stages, micro_batches)
    else:
        _kept_by_pytorch(schedule, 0, 3, virtual_stages, micro_batches)
    assert uneven_rounds(schedule, 3, virtual_stages > 1, 2) == (schedule != "gpipe")


def test_ranks_that_recompute_other_numbers_of_blocks_are_planned_apart() -> None:
    """Of eight blocks, 3 and 7 recompute."""
    more = ("model.num_hidden_layers=8", "model.activation_checkpointing=true", "parallel.pipeline_blocks=2-2-2-2",
            "model.activation_checkpointing_blocks=2")  # fmt: skip
    _, second, third, _ = planned(4, settings("pipeline=4", *more))
    assert second.passes.activations < third.passes.activations


def _kept_by_pytorch(schedule: str, rank: int, size: int, virtual_stages: int, micro_batches: int) -> int:
    """Return of how many forward passes a rank has yet to take the backward pass, at most."""
    stages = [SimpleNamespace(group_size=size, group_rank=rank, num_stages=size * virtual_stages, has_backward=True,
                              stage_index=number * size + rank, is_first=False, is_last=False, submod=None)
              for number in range(virtual_stages)]  # fmt: skip
    built: Any = SCHEDULES[schedule, virtual_stages > 1](stages, micro_batches)
    order = built.pipeline_order if hasattr(built, "pipeline_order") else built._get_pipeline_order()
    change = {schedules.FORWARD: 1, schedules.FULL_BACKWARD: -1, schedules.BACKWARD_WEIGHT: -1}
    changes = [change.get(action.computation_type, 0) for action in order[rank] if action is not None]
    assert sum(changes) == 0
    return max(accumulate(changes))


def test_the_peak_of_a_stage() -> None:
    passes = PassMemory(activations=10, first_in_flight=2, peak_of_first=70, peak_of_next=65, peak_of_update=50)
    stage = StageMemory(0, 4, 5, 20, 20, 10, passes, in_flight=4, in_flight_later=4, buffer_bytes=3)
    assert stage.peak_bytes == 3 + max(70 + 2 * 10, 65 + 3 * 10)
    assert stage.other_bytes == stage.peak_bytes - (20 + 20 + 10 + 40)
    last = replace(stage, in_flight=1, in_flight_later=1, buffer_bytes=0)
    assert last.peak_bytes == 65
    assert replace(last, passes=replace(passes, peak_of_update=99)).peak_bytes == 99


def run_plan(folder: Path, *argv: str) -> Any:
    return run_harness(folder, "plan", *argv)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    argv = ("--devices", "8", *settings("tensor=2 pipeline=2"))
    ended = run_plan(tmp_path, "--memory-gib", "1", *argv)
    assert (ended.code, ended.err) == (0, "")
    assert "layout  pipeline 2 x shard 2 x tensor 2, on 8 devices of 1 GiB" in ended.out
    assert "Fits: stage 0 needs" in ended.out
    ended = run_plan(tmp_path, "--memory-gib", "0.0001", "--format=json", *argv)
    assert ended.code == 1, ended.err
    found = json.loads(ended.out)
    largest = max(stage["peak_bytes"] for stage in found["stages"])
    assert not found["fits"]
    assert found["free_bytes"] == int(0.0001 * GIB) - largest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_experts_are_planned_with_equal_loads(tmp_path: Path) -> None:
    """A router's choices are not known before the run."""
    mixture = settings("tensor=2", "model.num_experts=4")
    learned, turns = (
        run_plan(tmp_path, "--devices=2", "--memory-gib=1", "--format=json", *mixture, f"model.routing={routing}")
        for routing in ("learned", "round_robin")
    )
    assert (learned.code, learned.err) == (0, "")
    assert json.loads(learned.out)["stages"] == json.loads(turns.out)["stages"]
    longer = run_plan(tmp_path, "--devices=2", "--memory-gib=1", *settings("tensor=2", "model.num_experts=10"))
    assert "1 x 40 tokens" in longer.out, longer.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "plan: --devices is missing; python -m harness plan --help"),
        (("--devices=2",), "plan: --memory-gib is missing; python -m harness plan --help"),
        (("--devices=two", "--memory-gib=80"), "plan: argument --devices: found 'two', expected a whole number from 1"),
        (("--devices=2", "--memory-gib=80GB"), "plan: argument --memory-gib: found '80GB', expected a number of GiB"),
        (("--devices=2", "--memory-gib=nan"), "plan: argument --memory-gib: found 'nan', expected a number of GiB"),
        (("--devices=2", "--memory-gib=80", "model=llama4"), "model: found 'llama4', expected one of: "),
        (("--devices=6", "--memory-gib=80", "parallel=mesh", "parallel.tensor=4"),
         "parallel.tensor=4: needs 4 processes or a multiple, found 6; start 4 or 8 processes, or change the layout"),
        (("--devices=2", "--memory-gib=80"), "parallel=single: needs 1 processes, found 2"),
        (("--devices=3", "--memory-gib=80", "parallel=mesh", "parallel.tensor=3"), "parallel.tensor: found 3, which "),
        (("--devices=1", "--memory-gib=80", "track=tuned"), "track: found tuned, whose memory depends on the device"),
        (("--devices=2", "--memory-gib=80", "parallel=fsdp", "parallel.cpu_offload=true"), "parallel.cpu_offload: "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(argv: tuple[str, ...], message: str, tmp_path: Path) -> None:
    ended = run_plan(tmp_path, *argv)
    [line] = ended.err.splitlines()
    assert (ended.code, ended.out) == (2, "")
    assert message in line
