"""Probes: a run whose device does something else than requested fails before it starts, and the message names both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness.backends.cpu import CpuBackend
from harness.backends.eager import EagerStep
from harness.composition import load
from harness.config import BackendConfig, Config
from harness.errors import BackendUnavailable, RunFailed
from harness.text import layered_settings
from harness.training import probe as probe_module
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.parallel import ParallelModel
from harness.training.probe import MAX_FP32_ERROR, ForwardObservation, observe_forward, probe
from harness.workload.initialization import build_model
from harness.workload.optimizer import build_optimizer
from tests.tiny import TINY

# Bits of a float32 significand that the reduced forms keep; the hidden leading one is not counted.
FORMATS = {"TF32": 10, "bf16": 7}


class FakeBackend(CpuBackend):
    """The CPU under another name, so that a message cannot be right by chance."""

    name = "fake"


def config(precision: str = "fp32", *overrides: str) -> Config:
    return load(layered_settings(TINY, [f"precision={precision}", *overrides]))


def backend(threads: int | None = 1, precision: str = "fp32") -> FakeBackend:
    made = FakeBackend(BackendConfig(name="fake", threads=threads))
    made.apply(precision)
    return made


def truncated(x: torch.Tensor, kept_bits: int) -> torch.Tensor:
    """Drop the low bits of each float32 significand, as hardware does to the inputs of a reduced product."""
    mask = -1 << (23 - kept_bits)
    return (x.contiguous().view(torch.int32) & mask).view(torch.float32)


def reduce_matmul(monkeypatch: pytest.MonkeyPatch, kept_bits: int) -> None:
    exact = torch.Tensor.__matmul__

    def matmul(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if self.dtype == torch.float32:
            self, other = truncated(self, kept_bits), truncated(other, kept_bits)
        return exact(self, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)


class TestSupported:
    @pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
    def test_passes_and_is_recorded(self, precision: str, dtype: str) -> None:
        found = probe(backend(precision=precision), config(precision))
        assert found["matmul_dtype"] == dtype
        assert found["threads"] == 1
        assert found["track"] == "portable"
        assert found["adamw"] == "foreach"
        assert found["compiled"] is False
        assert found["deterministic_algorithms"] is False
        assert found["instruction_set"] == torch.backends.cpu.get_cpu_capability()

    def test_the_fp32_bound_is_far_from_either_side(self) -> None:
        error = probe(backend(), config())["matmul_relative_error"]
        assert 0 < error < MAX_FP32_ERROR / 10

    @pytest.mark.parametrize(
        "overrides",
        [(), ("model.num_key_value_heads=1",), ("model.num_attention_heads=4", "model.num_key_value_heads=2")],
    )
    def test_the_attention_kernel_is_named(self, overrides: tuple[str, ...]) -> None:
        kernel = probe(backend(), config("fp32", *overrides))["attention_kernel"]
        assert kernel.endswith("Backward0")
        assert "attention" in kernel.lower() or "bmm" in kernel.lower() or "view" in kernel.lower()

    def test_deterministic_algorithms_are_seen(self) -> None:
        torch.use_deterministic_algorithms(True)
        try:
            assert probe(backend(), config())["deterministic_algorithms"] is True
        finally:
            torch.use_deterministic_algorithms(False)


class TestWrongType:
    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_autocast_that_only_warns_and_computes_in_float32(
        self, precision: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The behavior of torch-npu on a chip without bf16."""
        monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
        with pytest.raises(BackendUnavailable) as raised:
            probe(backend(), config(precision))
        text = str(raised.value)
        assert raised.value.exit_code == 3
        assert "backend fake" in text
        assert f"precision={precision}" in text
        assert "float32" in text
        assert "choose another" in text

    def test_autocast_to_the_other_half_precision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = torch.autocast
        monkeypatch.setattr(torch, "autocast", lambda kind, dtype: real(kind, dtype=torch.float16))
        with pytest.raises(BackendUnavailable, match=r"precision=bf16 .* has type float16"):
            probe(backend(), config("bf16"))

    def test_fp32_under_an_autocast_left_on(self) -> None:
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            pytest.raises(BackendUnavailable, match=r"precision=fp32 .* has type bfloat16"),
        ):
            probe(backend(), config())


class TestReducedPrecision:
    @pytest.mark.parametrize("kept_bits", FORMATS.values(), ids=FORMATS)
    def test_is_an_error_that_states_the_deviation(self, kept_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
        reduce_matmul(monkeypatch, kept_bits)
        with pytest.raises(BackendUnavailable) as raised:
            probe(backend(), config())
        text = str(raised.value)
        assert "backend fake" in text
        assert "precision=fp32" in text
        assert "TF32, HF32 or bf16" in text
        assert "ONEDNN_DEFAULT_FPMATH_MODE" in text
        assert "e-0" in text, "the relative error"

    def test_all_the_bits_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reduce_matmul(monkeypatch, 23)
        assert probe(backend(), config())["matmul_relative_error"] < MAX_FP32_ERROR

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
    def test_garbage_is_an_error(self, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
        exact = torch.Tensor.__matmul__

        def garbage(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            product = exact(self, other)
            return product if self.dtype == torch.float64 else torch.full_like(product, value)

        monkeypatch.setattr(torch.Tensor, "__matmul__", garbage)
        with pytest.raises(BackendUnavailable, match="precision=fp32"):
            probe(backend(), config())


class TestThreads:
    def test_another_count_than_requested_is_an_error(self) -> None:
        two_threads = backend(threads=2)
        torch.set_num_threads(1)
        with pytest.raises(BackendUnavailable) as raised:
            probe(two_threads, config())
        text = str(raised.value)
        assert "backend.threads" in text
        assert "found 1 thread" in text
        assert "expected 2" in text

    def test_null_is_all_allowed_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("harness.backends.base.allowed_cores", lambda: 2)
        assert probe(backend(threads=None), config())["threads"] == 2


def test_a_backend_cannot_overwrite_probed_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend's own report is added to the probed values, never in place of them."""
    claims: dict[str, Any] = {"matmul_dtype": "float64", "threads": 99, "own": True}
    monkeypatch.setattr(FakeBackend, "effective_settings", lambda self: claims)
    found = probe(backend(), config())
    assert found["own"] is True
    assert found["matmul_dtype"] == "float32"
    assert found["threads"] == 1


def test_the_probe_does_not_touch_torchs_random_stream() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    probe(backend(), config())
    assert torch.equal(torch.rand(1), expected)


def test_the_probe_runs_the_workloads_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Size, torch.Size, torch.dtype]] = []
    real = probe_module.causal_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((q.shape, k.shape, q.dtype))
        return real(q, k, v)

    monkeypatch.setattr(probe_module, "causal_attention", watched)
    probe(backend(precision="bf16"), config("bf16", "model.num_attention_heads=4", "model.num_key_value_heads=2"))
    assert seen == [(torch.Size([1, 4, 32, 8]), torch.Size([1, 2, 32, 8]), torch.bfloat16)]


class TestObservedForward:
    """Products and activations of the training step's own layers, observed with hooks."""

    def observed(self, precision: str, actual: str) -> ForwardObservation:
        settings = config(precision)
        model = build_model(settings.model, 1, torch.device("cpu"))
        optimizer = build_optimizer(model, settings.workload, settings.track)
        step = EagerStep(model, optimizer, torch.device("cpu"), actual, 1.0)
        return observe_forward(step, ParallelModel(model, model, {}), torch.arange(9).view(1, 9), precision, Ranks())

    @pytest.mark.parametrize(
        ("precision", "dtype", "between"),
        [
            ("fp32", "float32", "float32"),
            ("bf16", "bfloat16", "float32"),
            ("fp16", "float16", "float32"),
        ],
    )
    def test_is_recorded(self, precision: str, dtype: str, between: str) -> None:
        found = self.observed(precision, precision)
        assert (found.linear_dtypes, found.block_dtypes) == ([dtype], [between])
        assert found.to_settings()["block_output_dtypes"] == [between]

    @pytest.mark.parametrize(("requested", "actual"), [("bf16", "fp16"), ("bf16", "fp32"), ("fp32", "bf16")])
    def test_another_precision_is_an_error(self, requested: str, actual: str) -> None:
        with pytest.raises(RunFailed, match=f"precision={requested} was requested, but the training step computes in"):
            self.observed(requested, actual)

    @pytest.mark.parametrize(
        ("precision", "low", "high"), [("fp32", 0, 1e-6), ("bf16", 5e-4, 4e-3), ("fp16", 5e-5, 6e-4)]
    )
    def test_measures_the_error_of_every_product(self, precision: str, low: float, high: float) -> None:
        found = self.observed(precision, precision)
        assert found.product_error is not None
        assert low < found.product_error < high
        assert found.to_settings()["largest_product_error"] == found.product_error

    @pytest.mark.parametrize(
        ("precision", "rounded"),
        [
            ("fp32", lambda x: truncated(x, FORMATS["TF32"])),
            ("bf16", lambda x: x.to(torch.float8_e4m3fn).to(x.dtype)),
            ("fp16", lambda x: x.bfloat16().to(x.dtype)),
        ],
        ids=["TF32 in fp32", "fp8 in bf16", "bf16 in fp16"],
    )
    def test_operands_of_one_layer_rounded_further_are_an_error(
        self, precision: str, rounded: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        exact = torch.nn.Linear.forward

        def forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
            return exact(self, rounded(x) if self.out_features < self.in_features else x)

        monkeypatch.setattr(torch.nn.Linear, "forward", forward)
        with pytest.raises(RunFailed, match=r"product of layer blocks\.0\.feed_forward\.down has a relative error of"):
            self.observed(precision, precision)

    def test_keeps_a_sketch_of_every_block_and_of_the_last_norm(self) -> None:
        settings = config()
        assert len(self.observed("fp32", "fp32").activations) == settings.model.num_hidden_layers + 1

    def test_leaves_no_hook_behind(self) -> None:
        settings = config()
        model = build_model(settings.model, 1, torch.device("cpu"))
        optimizer = build_optimizer(model, settings.workload, settings.track)
        step = EagerStep(model, optimizer, torch.device("cpu"), "fp32", 1.0)
        observe_forward(step, ParallelModel(model, model, {}), torch.zeros(1, 9, dtype=torch.int64), "fp32", Ranks())
        assert not any(part._forward_hooks for part in model.modules())


class TestActivation:
    """Ascend's kernel computes GELU's tanh approximation for both formulas, which must be an error."""

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
    def test_the_requested_one_is_recorded(self, activation: str, precision: str) -> None:
        found = probe(backend(precision=precision), config(precision, f"model.activation={activation}"))
        assert found["activation"] == activation

    def test_swiglu_is_not_probed(self) -> None:
        assert "activation" not in probe(backend(), config("fp32", "model.activation=swiglu"))

    def give_device_only(self, monkeypatch: pytest.MonkeyPatch, formula: Callable[..., torch.Tensor]) -> None:
        real = probe_module.activate

        def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
            # Values in float64 are the reference, on the host.
            return real(x, activation) if x.dtype == torch.float64 else formula(x)

        monkeypatch.setattr(probe_module, "activate", activate)

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize(("requested", "available"), [("gelu", "gelu_tanh"), ("gelu_tanh", "gelu")])
    def test_a_device_with_only_the_other_is_an_error(
        self, requested: str, available: str, precision: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        approximate = "tanh" if available == "gelu_tanh" else "none"
        self.give_device_only(monkeypatch, lambda x: F.gelu(x, approximate=approximate))
        with pytest.raises(BackendUnavailable) as raised:
            probe(backend(precision=precision), config(precision, f"model.activation={requested}"))
        text = str(raised.value)
        for part in (
            "backend fake",
            f"model.activation={requested} ",
            f"computes {available}",
            f"model.activation={available}",
        ):
            assert part in text

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    def test_a_device_with_neither_is_an_error(self, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.give_device_only(monkeypatch, lambda x: x * torch.sigmoid(1.702 * x))
        with pytest.raises(BackendUnavailable, match="neither GELU nor its tanh approximation"):
            probe(backend(precision=precision), config(precision))
