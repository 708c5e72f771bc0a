"""Fused accumulation of gradients: the sums that autograd makes, and a model that keeps its own weights."""

from __future__ import annotations

import pytest
import torch

from harness.backends.accumulation import FusedAccumulation
from harness.backends.kernels import ChunkedCrossEntropy
from harness.composition import load
from harness.text import layered_settings
from harness.workload.initialization import build_model
from harness.workload.model import Transformer
from tests.layouts import MODELS
from tests.tiny import TINY

MICRO_BATCHES = 3


def model_of(name: str, *settings: str) -> Transformer:
    config = load(layered_settings(TINY, ["model.num_hidden_layers=2", "model.num_attention_heads=4"],
                                   MODELS[name], ["model.vocab_size=257", *settings]))  # fmt: skip
    return build_model(config.model, 1, torch.device("cpu"))


def batches(seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(257, (MICRO_BATCHES, 2, 17), generator=generator))


def gradients(model: Transformer, micro_batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the gradients of a step, and remove them from the model."""
    with model.gradient_accumulation(model, torch.bfloat16):
        for sequences in micro_batches:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(sequences) / len(micro_batches)
            loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return {name: grad for name, grad in found.items() if grad is not None}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert found[name].dtype == torch.float32
        # Rows of embeddings are added up in another order.
        tolerance = 1e-6 if name.startswith("embedding") else 0.0
        assert torch.dist(found[name], grad) <= tolerance * grad.norm(), name


# PyTorch says that its fused norm of queries and keys does not take weights in float32.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_sums_are_those_of_autograd(name: str, compiled: bool) -> None:
    model = model_of(name)
    expected = gradients(model, batches())
    fused = FusedAccumulation()
    if compiled:
        fused.compile()
    model.use_kernels({"gradient_accumulation": fused})
    assert_equal(gradients(model, batches()), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_sums_of_the_chunked_cross_entropy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for chunk in (1 << 20, 8):
        monkeypatch.setattr("harness.backends.kernels.CHUNK_MULTIPLE", chunk)
        monkeypatch.setattr("harness.backends.kernels.CHUNK_BYTES", 1)
        model = model_of(name)
        model.use_kernels({"cross_entropy": ChunkedCrossEntropy()})
        expected = gradients(model, batches())
        model.use_kernels({"gradient_accumulation": FusedAccumulation()})
        found = gradients(model, batches())
        # Its gradient is scaled, and of several chunks added up, before it is rounded to bf16.
        head = next(key for key in ("head.weight", "embedding.weight") if key in expected)
        error = torch.dist(found[head], expected[head]) / expected[head].norm()
        assert error < 3e-3
        assert_equal({**found, head: expected[head]}, expected)


def test_recomputed_activations_have_the_same_gradients() -> None:
    expected = gradients(model_of("llama"), batches())
    model = model_of("llama", "model.activation_checkpointing=true")
    model.use_kernels({"gradient_accumulation": FusedAccumulation()})
    assert_equal(gradients(model, batches()), expected)


def test_copies_are_of_the_weights_as_they_are() -> None:
    """A step, a load of a checkpoint or a new start changes the weights."""
    plain, fused = model_of("llama"), model_of("llama")
    fused.use_kernels({"gradient_accumulation": FusedAccumulation()})
    first = gradients(fused, batches())
    for model in (plain, fused):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.25)
    second = gradients(fused, batches())
    assert_equal(second, gradients(plain, batches()))
    assert any(not torch.equal(second[name], grad) for name, grad in first.items())


def test_the_model_has_its_own_weights_again() -> None:
    model = model_of("tied")
    before = {name: (parameter, parameter.dtype) for name, parameter in model.named_parameters()}
    model.use_kernels({"gradient_accumulation": FusedAccumulation()})
    with model.gradient_accumulation(model, torch.bfloat16):
        assert model.head.weight.dtype == torch.bfloat16
        assert model.head.weight is not model.embedding.weight
    with pytest.raises(IndexError), model.gradient_accumulation(model, torch.bfloat16):
        # A token that the vocabulary lacks.
        model(torch.full((1, 17), 999))
    assert {name: (parameter, parameter.dtype) for name, parameter in model.named_parameters()} == before
    assert model.head.weight is model.embedding.weight
    assert not model.embedding.sparse
