"""track=tuned on the emulated device computes the same, and profile, peak and autotune are refused there."""

from __future__ import annotations

import pytest

from tests.emulated.conftest import Emulated
from tests.integration.test_parallel import relative
from tests.tiny import TINY

# Kernels launched by npu_rms_norm, npu_swiglu and npu_rotary_mul, forward and backward.
FUSED = {
    "aclnnRmsNorm",
    "aclnnRmsNormGrad",
    "aclnnSwiGlu",
    "aclnnSwiGluGrad",
    "aclnnRotaryPositionEmbeddingV2",
    "aclnnRotaryPositionEmbeddingGrad",
}
LLAMA = (
    "model.norm=rmsnorm",
    "model.activation=swiglu",
    "model.position_embedding=rotary",
    "model.num_key_value_heads=1",
)
ALL_FUSED = ("track=tuned", "track.rms_norm=fused", "track.swiglu=fused", "track.rotary=fused")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_chunked_cross_entropy_computes_what_the_stock_one_does(precision: str, emulated: Emulated) -> None:
    words = ("backend=npu", *TINY, f"precision={precision}")
    for name, track in (("stock", ()), ("chunked", ("track=tuned", "track.cross_entropy=chunked"))):
        done = emulated.harness(*words, *track, f"out={name}")
        assert done.code == 0, done.err
    stock, chunked = (emulated.record(name) for name in ("stock", "chunked"))
    assert chunked["effective_settings"]["cross_entropy"] == "chunked"
    assert chunked["digests"] == stock["digests"]
    limit = {"fp32": 1e-5, "bf16": 1e-3}[precision]
    assert relative(chunked["losses"]["train"], stock["losses"]["train"]) < limit


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_kernels_compute_what_stock_operations_do(precision: str, emulated: Emulated) -> None:
    words = ("backend=npu", *TINY, *LLAMA, f"precision={precision}")
    for name, track in (("stock", ()), ("fused", ALL_FUSED)):
        launches = str(emulated.folder / f"{name}.txt")
        done = emulated.harness(*words, *track, f"out={name}", variables={"CANN_EMULATOR_LAUNCHES": launches})
        assert done.code == 0, done.err
    stock, fused = (emulated.record(name) for name in ("stock", "fused"))
    assert fused["digests"] == stock["digests"]
    limit = {"fp32": 1e-5, "bf16": 1e-3}[precision]
    assert relative(fused["losses"]["train"], stock["losses"]["train"]) < limit
    launched = {name: set((emulated.folder / f"{name}.txt").read_text().split()) for name in ("stock", "fused")}
    assert launched["fused"] >= FUSED
    assert not launched["stock"] & FUSED
    # The kernels they replace are gone, except those of the embedding.
    assert not launched["fused"] & {"aclnnSilu", "aclnnSiluBackward", "aclnnRsqrt"}
    assert {operation: fused["effective_settings"][operation] for operation in ("rms_norm", "swiglu", "rotary")} == {
        "rms_norm": "fused",
        "swiglu": "fused",
        "rotary": "fused",
    }


def test_compilation_is_refused_with_the_reason(emulated: Emulated) -> None:
    done = emulated.harness("backend=npu", *TINY, "track=tuned", "track.compile=blocks", "out=run")
    assert done.code == 3
    assert "torch.compile of a training step is not supported on NPU" in done.err


def test_an_emulation_has_no_profile(emulated: Emulated) -> None:
    done = emulated.harness("backend=npu", *TINY, "profile=true", "out=run")
    assert done.code == 3
    assert "profile: " in done.err
    assert "emulated device" in done.err
    assert not (emulated.folder / "run").exists()


def test_an_emulation_has_no_fastest_size(emulated: Emulated) -> None:
    words = ("backend=npu", *TINY, "experiment=autotune", "workload.steps=4", "workload.timing_warmup_steps=2", "out=a")
    done = emulated.harness(*words)
    assert done.code == 3, done.err
    assert "autotune: the device is an emulation" in done.err


def test_an_emulation_has_no_peak(emulated: Emulated) -> None:
    done = emulated.harness("peak", "backend=npu")
    assert done.code == 3
    assert "the device is emulated" in done.err
    assert not (emulated.folder / "runs").exists()
