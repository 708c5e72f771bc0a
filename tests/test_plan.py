"""Plans without devices: their figures are those of real runs, and mistakes are one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import backends
from harness.analysis.stage_memory import GIB, PassMemory, StageMemory, micro_batches_in_flight
from harness.composition import load
from harness.config import BackendConfig
from harness.layout import layout_of
from harness.text import layered_settings
from harness.training.distributed import plan
from tests.layouts import LLAMA, WORK
from tests.ranks import end_ranks, run_harness, start_ranks

MODEL = (*WORK, *LLAMA, "model.tie_word_embeddings=false", "model.vocab_size=257")
SHORT = ("workload.steps=3", "workload.timing_warmup_steps=1", "workload.lr_warmup_steps=1", "workload.eval_every=0",
         "fingerprint=false")  # fmt: skip


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
        ("pipeline=2", ("precision=bf16",)),
        ("shard=2", ("model.activation_checkpointing=true",)),
        ("context=2", ()),
        ("pipeline=2 tensor=2", ("model.vocab_size=511",)),
    ],
)
def test_a_run_holds_what_was_planned(layout: str, more: tuple[str, ...], tmp_path: Path) -> None:
    """Parameters, gradients, optimizer state, and what a micro-batch leaves for its backward pass, to the byte."""
    devices = math.prod(int(part.split("=")[1]) for part in layout.split())
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
    ("schedule", "layout"),
    [("1f1b", "pipeline=4"), ("gpipe", "pipeline=4"), ("1f1b", "pipeline=2 shard=2 tensor=2")],
)
def test_two_micro_batches_tell_the_peak_of_a_schedule(
    schedule: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's schedule over all micro-batches has the peak that follows from two.

    But for the tokens of the others, and an output that waits to be sent: up to 1.1 % of these tiny models.
    """
    overrides = settings(layout, "workload.global_batch_size=12", f"parallel.pipeline_schedule={schedule}")
    devices = math.prod(int(part.split("=")[1]) for part in layout.split())
    config = load(overrides)
    found = planned(devices, overrides)
    monkeypatch.setattr(plan, "MAX_MICRO_BATCHES", 100)
    backend = backends.create(BackendConfig(name="cpu"))
    calls = [(config, backend, layout_of(config.parallel, devices), stage.stage) for stage in found]
    for stage, (whole, _) in zip(found, plan._in_processes(plan._rehearse, calls), strict=True):
        peak = max(whole.passes.peak_of_first, whole.passes.peak_of_next or 0, whole.passes.peak_of_update)
        assert stage.peak_bytes == pytest.approx(peak, rel=0.015)


def test_micro_batches_in_flight() -> None:
    assert [micro_batches_in_flight("1f1b", stage, 4, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert [micro_batches_in_flight("1f1b", stage, 4, 2) for stage in range(4)] == [2, 2, 2, 1]
    assert [micro_batches_in_flight("gpipe", stage, 4, 8) for stage in range(4)] == [8] * 4
    assert [micro_batches_in_flight("zero_bubble", stage, 4, 8) for stage in range(4)] == [4] * 4
    assert micro_batches_in_flight("1f1b", 0, 1, 8) == 1


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
