"""precision=bf16_weights computes what a model of bf16 weights does, and updates float32 masters."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from harness.backends.eager import EagerStep
from harness.backends.step import residual_dtype
from harness.composition import load
from harness.config import Config
from harness.workload.initialization import build_model
from harness.workload.model import Transformer
from harness.workload.optimizer import build_optimizer
from tests.tiny import TINY

GPT2 = ("model.position_embedding=learned", "model.bias=true", "model.tie_word_embeddings=true")
LLAMA = ("model.norm=rmsnorm", "model.activation=swiglu", "model.num_key_value_heads=1", "model.qk_norm=true",
         "model.position_embedding=rotary", "model.tie_word_embeddings=false")  # fmt: skip
every_shape = pytest.mark.parametrize("shape", [GPT2, LLAMA], ids=["gpt2", "llama"])
CPU = torch.device("cpu")


def config_of(*settings: str) -> Config:
    return load([*TINY, "precision=bf16_weights", *settings])


def model_of(config: Config) -> Transformer:
    return build_model(config.model, config.seed, CPU, residual_dtype=residual_dtype(config.precision))


def sequences(config: Config, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.model.vocab_size, (count, config.workload.seq_len + 1), generator=generator)


def loss_of(model: Transformer, tokens: torch.Tensor, *, autocast: bool) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return model(tokens)


@every_shape
@pytest.mark.parametrize("recompute", ["false", "true"])
def test_has_the_loss_and_the_gradients_of_a_model_of_bf16_weights(shape: Sequence[str], recompute: str) -> None:
    config = config_of(*shape, f"model.activation_checkpointing={recompute}")
    tokens, masters = sequences(config), model_of(config)
    loss = loss_of(masters, tokens, autocast=True)
    loss.backward()
    narrow = model_of(config).to(torch.bfloat16)
    expected = loss_of(narrow, tokens, autocast=False)
    expected.backward()
    assert loss.item() == expected.item()
    gradients = {
        name: parameter.grad.float() for name, parameter in narrow.named_parameters() if parameter.grad is not None
    }
    for name, parameter in masters.named_parameters():
        assert parameter.grad is not None
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        if name.startswith(("embedding", "position")):
            # Rows of equal tokens are added up in float32, and in bf16.
            assert torch.allclose(parameter.grad, gradients[name], rtol=0.02, atol=1e-4), name
        else:
            assert torch.equal(parameter.grad, gradients[name]), name


@every_shape
def test_all_activations_between_layers_are_bf16(shape: Sequence[str]) -> None:
    config, found = config_of(*shape), dict[str, torch.dtype]()
    model = model_of(config)
    for name, module in model.named_modules():
        if name and name != "embedding":
            module.register_forward_hook(lambda _module, _inputs, output, name=name: found.update({name: output.dtype}))
    loss_of(model, sequences(config), autocast=True)
    # An embedding looks up a float32 row, which is cast before it is used.
    wide = {name for name, dtype in found.items() if dtype != torch.bfloat16}
    assert wide <= {"position"}
    assert {"norm", "blocks.0", "blocks.0.attention_norm", "head"} <= found.keys()


def test_masters_add_up_updates_that_bf16_would_lose() -> None:
    config = config_of(*LLAMA, "workload.learning_rate=1e-6", "workload.weight_decay=0")
    model = model_of(config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step = EagerStep(model, build_optimizer(model, config.workload, config.track), CPU, config.precision, 1.0)
    for _ in range(10):
        step([sequences(config)], 1e-6)
    moved = (dict(model.named_parameters())["norm.weight"] - before["norm.weight"]).abs()
    assert moved.min() > 5e-6, "ten steps of about 1e-6 each; the next number after 1 in bf16 is 1.008"


def test_autocast_alone_leaves_the_stream_in_float32() -> None:
    config = load([*TINY, "precision=bf16", *GPT2])
    model = model_of(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.embed(sequences(config)[:, :-1]).dtype == torch.float32
        assert model.final_hidden_states(sequences(config)[:, :-1]).dtype == torch.float32
