"""Training on the emulated NPU equals training on the CPU: weights, tokens, losses and gradient norms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.emulated.conftest import Emulated
from tests.emulated.training import MIXTURES, Setup, distance, setups, train

STEPS = 5
# The backend refuses fp16 with the fused AdamW; test_fused_adamw_applies_steps_... below shows why.
SETUPS = [str(setup) for setup in setups() if (setup.precision, setup.adamw) != ("fp16", "fused")]
SETUPS += ["gpt2-bf16_weights-foreach", "llama-bf16_weights-foreach"]
SETUPS += [f"{mixture}-{precision}-foreach" for mixture in MIXTURES for precision in ("fp32", "bf16")]


@pytest.fixture(scope="module")
def on_cpu() -> dict[str, Any]:
    return {name: train("cpu", Setup(*name.split("-")), STEPS) for name in SETUPS}


@pytest.fixture(scope="module")
def on_npu(emulated_host: Emulated) -> dict[str, Any]:
    return emulated_host.program("curves", str(STEPS), *SETUPS)


@pytest.mark.parametrize("name", SETUPS)
def test_equals_the_cpu(name: str, on_cpu: dict[str, Any], on_npu: dict[str, Any]) -> None:
    found = on_npu["curves"][name]
    assert found["init"] == on_cpu[name]["init"]
    # The router's gradient in float32 is a product that the two add up in other orders.
    limit = 2e-7 if name in ("learned-fp32-foreach", "round_robin-fp32-foreach") else 0.0
    assert distance(on_cpu[name], found) <= limit


def test_skipped_steps_are_among_what_is_compared(on_cpu: dict[str, Any]) -> None:
    assert all(curve["skipped"] > 0 for name, curve in on_cpu.items() if "fp16" in name)


@pytest.mark.parametrize("name", SETUPS)
def test_the_fused_attention_runs(name: str, on_npu: dict[str, Any]) -> None:
    assert "NpuFusionAttention" in on_npu["curves"][name]["effective_settings"]["attention_kernel"]


VARIANTS = {
    "poisoned memory": {"POISON": "1"},
    "task queue off": {"TASK_QUEUE_ENABLE": "0"},
    "task queue 2": {"TASK_QUEUE_ENABLE": "2"},
    "blocking launch": {"ASCEND_LAUNCH_BLOCKING": "1"},
    "expandable segments, poisoned": {"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True", "POISON": "1"},
    "A3": {"CANN_EMULATOR_SOC": "Ascend910_9391"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_equal_the_cpu(variant: str, emulated: Emulated, on_cpu: dict[str, Any]) -> None:
    names = ["gpt2-fp32-foreach", "llama-bf16-foreach"]
    found = emulated.program("curves", str(STEPS), *names, variables=VARIANTS[variant])
    for name in names:
        assert distance(on_cpu[name], found["curves"][name]) == 0.0


def test_the_first_chip_decomposes_attention(emulated: Emulated, on_cpu: dict[str, Any]) -> None:
    """910A has no fused attention: the results differ by rounding."""
    found = emulated.program("curves", str(STEPS), "gpt2-fp32-foreach", variables={"CANN_EMULATOR_SOC": "Ascend910A"})
    curve = found["curves"]["gpt2-fp32-foreach"]
    assert "NpuFusionAttention" not in curve["effective_settings"]["attention_kernel"]
    assert 0.0 < distance(on_cpu["gpt2-fp32-foreach"], curve) < 1e-5


# Shorter than experiment=smoke itself: an emulated step takes half a second.
SMOKE = ("experiment=smoke", "workload.steps=12", "workload.timing_warmup_steps=4", "workload.eval_every=6",
         "backend.threads=1")  # fmt: skip


def test_a_run_by_command_line_computes_the_same_and_has_no_speed(emulated: Emulated, tmp_path: Path) -> None:
    npu = emulated.python("-m", "harness", *SMOKE, "backend=npu", "out=npu")
    cpu = emulated.harness(*SMOKE, "backend=cpu", "out=cpu")
    assert (npu.returncode, cpu.code) == (0, 0), npu.stderr
    mine, other = emulated.record("npu"), emulated.record("cpu")
    assert mine["device"]["emulated"] is True
    assert mine["device"]["name"] == "Ascend910B3 (emulated)"
    for field in ("workload_id", "digests"):
        assert mine[field] == other[field]
    # Norms of tensors of more than MAX_PIECE elements are added up in another order than on the CPU.
    assert mine["losses"]["train"] == pytest.approx(other["losses"]["train"], rel=1e-6)
    evaluated, expected = ([point["loss"] for point in found["eval"]["points"]] for found in (mine, other))
    assert evaluated == pytest.approx(expected, rel=1e-6)
    shown = npu.stdout + npu.stderr
    assert "emulated" in shown
    assert "tokens/s" not in shown
    assert " ms" not in shown
    compared = emulated.harness("compare", "cpu", "npu", "--out", "report")
    assert compared.code == 0, compared.err
    assert "computes the same as" in compared.out
    assert "no speed is stated" in compared.out


def test_fused_adamw_applies_steps_that_the_loss_scaler_skips(emulated: Emulated) -> None:
    """If this fails with another torch-npu, NpuBackend.check_work need no longer refuse the combination."""
    name = "gpt2-fp16-fused"
    found = emulated.program("curves", "3", name)["curves"][name]
    assert math.isnan(found["losses"][-1])


def test_the_rehearsed_comparison_does_not_test_a_claim(emulated: Emulated) -> None:
    """experiment=iflytek/smoke on CPU and emulated NPU: the same computation, and no statement on time."""
    short = ("experiment=iflytek/smoke", "workload.steps=12", "workload.eval_every=0", "repeats=1")
    for name in ("cpu", "npu"):
        done = emulated.harness(*short, f"backend={name}", f"out={name}")
        assert done.code == 0, done.err
    compared = emulated.harness("compare", "cpu", "npu", "--claim", "rehearsal")
    assert compared.code == 0, compared.err
    text = " ".join(compared.out.split())
    assert "'npu' computes the same as 'cpu'" in text
    assert "Claim rehearsal: not tested. Emulated device: npu has no speed." in text
    expecting = emulated.harness("compare", "cpu", "npu", "--claim", "rehearsal", "--expect", "supported")
    assert expecting.code == 1
