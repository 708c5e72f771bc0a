"""Sabotages by somebody who had not read the gates: a sample. scripts/bench_sabotage.py runs them all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.analysis.run_group import load_run_groups
from harness.analysis.verdict import DIFFERENT, IMPLAUSIBLE, NOT_COMPARABLE, compare
from tests.conftest import PROJECT
from tests.ranks import end_ranks, shared_zygote

WORK = (
    "model=tiny", "model.num_hidden_layers=2", "model.hidden_size=64", "model.num_attention_heads=4", "model.bias=true",
    "workload=smoke", "workload.steps=60", "workload.timing_warmup_steps=10", "workload.seq_len=64",
    "workload.global_batch_size=8", "workload.micro_batch_size=4", "workload.eval_every=30",
    "workload.max_grad_norm=0.5", "backend.threads=1", "precision=bf16",
)  # fmt: skip
# Each is far above rounding, and passed the gates before they had a fingerprint, or is one of its kind.
COMPUTATION = (
    "fp8_operands", "int8_weights_per_channel", "fp8_every_4th_step", "fp8_in_window", "no_weight_decay_after_30",
    "repeated_batch_every_10th", "every_25th_update_skipped", "attention_scale", "light_last_micro_batch",
    "evaluation_flattered", "rope_off_by_one",
)  # fmt: skip
TIMING = ("clock_started_late", "scaled_by_3_percent", "optimizer_outside_the_clock", "untimed_rehearsal")


def train(out: Path, sabotage: str = "") -> Path:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    program = ["tests.red_team.drive", sabotage] if sabotage else ["harness"]
    [ended] = end_ranks([shared_zygote().start([*program, *WORK, f"out='{out}'"], PROJECT, environment)])
    assert ended.code == 0, ended.err
    return out


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("honest") / "run")


@pytest.mark.parametrize("name", [*COMPUTATION, *TIMING])
def test_is_caught(name: str, honest: Path, tmp_path: Path) -> None:
    sabotaged = train(tmp_path / "run", name)
    [pair] = compare(load_run_groups([honest, sabotaged])).pairs
    print(pair.summary)
    assert pair.verdict in ((IMPLAUSIBLE,) if name in TIMING else (DIFFERENT, NOT_COMPARABLE))
    assert pair.quantities == ()


def test_the_honest_run_passes(honest: Path, tmp_path: Path) -> None:
    [pair] = compare(load_run_groups([honest, train(tmp_path / "run")])).pairs
    assert all(gate.passed is not False for gate in pair.gates), pair.summary
