"""Mixtures of experts: every token against a loop over its experts, for both routings.

tests/test_huggingface.py compares learned routing with transformers' Mixtral and Qwen3-MoE.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from harness.analysis.flops import (
    active_weights,
    linear_layers,
    matrix_weights,
    product_intensity,
    training_flops_per_token,
)
from harness.composition import load
from harness.config import ModelConfig, workload_id
from harness.errors import ConfigError
from harness.text import layered_settings
from harness.workload.experts import Experts, LearnedExperts, RoundRobinExperts
from harness.workload.initialization import build_model
from harness.workload.model import activate, parameter_count, swiglu

WIDTH, SIZE, EXPERTS = 8, 12, 6
MIXTURE = ["model=llama-30m", "model.num_experts=6", "model.num_experts_per_tok=2", "model.intermediate_size=96"]


def made(routing: str, per_token: int = 2, *, activation: str = "swiglu", normalizes: bool = True) -> Experts:
    """Return a mixture with random weights."""
    config = ModelConfig(
        name="mixture", vocab_size=11, max_position_embeddings=64, num_hidden_layers=1, hidden_size=WIDTH,
        num_attention_heads=2, intermediate_size=SIZE, num_experts=EXPERTS, num_experts_per_tok=per_token,
        norm_topk_prob=normalizes, routing=routing, activation=activation,
    )  # fmt: skip
    mixture = (RoundRobinExperts if routing == "round_robin" else LearnedExperts)(config, swiglu, activate)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_()
    return mixture


def one_by_one(mixture: Experts, x: torch.Tensor) -> torch.Tensor:
    """Return the mixture's output, token by token and expert by expert: [B, S, W] -> [B, S, W]."""
    outputs = torch.zeros_like(x)
    for sequence in range(x.shape[0]):
        for position in range(x.shape[1]):
            token = x[sequence, position]
            shares = (mixture.router.weight @ token).softmax(0)
            if isinstance(mixture, RoundRobinExperts):
                turn = position * mixture.per_token
                chosen = [(turn + choice) % EXPERTS for choice in range(mixture.per_token)]
            else:
                chosen = sorted(range(EXPERTS), key=lambda expert: -shares[expert].item())[: mixture.per_token]
            total = sum(shares[expert] for expert in chosen) if mixture.normalizes else 1.0
            for expert in chosen:
                up = mixture.up.weight[expert * SIZE : (expert + 1) * SIZE] @ token
                if mixture.gate is None:
                    hidden = F.gelu(up, approximate="tanh")
                else:
                    hidden = F.silu(mixture.gate.weight[expert * SIZE : (expert + 1) * SIZE] @ token) * up
                down = mixture.down.weight[expert * WIDTH : (expert + 1) * WIDTH] @ hidden
                outputs[sequence, position] += shares[expert] / total * down
    return outputs


@pytest.mark.parametrize("routing", ["learned", "round_robin"])
@pytest.mark.parametrize(
    ("per_token", "activation", "normalizes"),
    [(1, "swiglu", False), (2, "swiglu", True), (4, "swiglu", False), (6, "gelu_tanh", True)],
)
def test_each_token_is_the_weighted_sum_of_its_experts(
    routing: str, per_token: int, activation: str, normalizes: bool
) -> None:
    mixture = made(routing, per_token, activation=activation, normalizes=normalizes)
    x = torch.randn(3, 12, WIDTH, generator=torch.Generator().manual_seed(4), requires_grad=True)
    found, expected = mixture(x), one_by_one(mixture, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = [x, *mixture.parameters()]
    direction = torch.randn(3, 12, WIDTH, generator=torch.Generator().manual_seed(5))
    gradients = [torch.autograd.grad((output * direction).sum(), weights) for output in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item() + 1e-6)


def test_an_expert_that_no_token_uses_has_no_gradient() -> None:
    mixture = made("learned", 1)
    with torch.no_grad():
        mixture.router.weight.zero_()[2] = 1.0
    mixture(torch.ones(2, 4, WIDTH)).sum().backward()
    moved = mixture.up.weight.grad
    assert moved is not None
    by_expert = moved.unflatten(0, (EXPERTS, SIZE)).abs().sum((1, 2))
    assert by_expert[2] > 0
    assert by_expert.count_nonzero() == 1


def test_round_robin_gives_all_experts_equally_many_tokens_whatever_was_learned() -> None:
    mixture = made("round_robin")
    with torch.no_grad():
        mixture.router.weight.zero_()[2] = 9.0
    seen: list[int] = []
    mixture.swiglu = lambda gate, value: (seen.extend([gate.shape[0], gate.shape[1]]), swiglu(gate, value))[1]
    mixture(torch.ones(2, 12, WIDTH))
    assert seen == [EXPERTS, 2 * 12 * 2 // EXPERTS]


def test_turns_of_experts_without_probability_have_finite_weights() -> None:
    mixture = made("round_robin")
    with torch.no_grad():
        mixture.router.weight.zero_()[2] = 30.0
    assert mixture(torch.ones(1, 12, WIDTH)).isfinite().all()


@pytest.mark.parametrize("routing", ["learned", "round_robin"])
@pytest.mark.parametrize("normalizes", [True, False])
def test_weights_are_computed_in_float32(routing: str, normalizes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, seen = made(routing, normalizes=normalizes), []
    weighted_sum = mixture.weighted_sum
    monkeypatch.setattr(mixture, "weighted_sum", lambda *given: (seen.append(given), weighted_sum(*given))[1])
    with torch.autocast("cpu", torch.bfloat16):
        mixture(torch.randn(1, 12, WIDTH))
    [(outputs, weights)] = seen
    assert (outputs.dtype, weights.dtype) == (torch.bfloat16, torch.float32)
    if normalizes:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), rtol=1e-6, atol=0)


def test_the_parts_of_a_mixture_add_up() -> None:
    """As with tensor parallelism: each rank has two experts, and all tokens."""
    for routing in ("learned", "round_robin"):
        whole = made(routing)
        x = torch.randn(2, 12, WIDTH)
        total = torch.zeros_like(x)
        for first in (0, 2, 4):
            part = made(routing)
            part.own = range(first, first + 2)
            for matrices, outputs in ((part.gate, SIZE), (part.up, SIZE), (part.down, WIDTH)):
                assert matrices is not None
                matrices.weight = torch.nn.Parameter(matrices.weight[first * outputs : (first + 2) * outputs])
            total += part(x)
        torch.testing.assert_close(total, whole(x), rtol=1e-5, atol=1e-5)


def test_parameters_and_flops() -> None:
    """By hand, of a model with heads of 64 and no tied head."""
    config = load([*MIXTURE, "model.tie_word_embeddings=false"]).model
    shape = asdict(config)
    width, layers, vocab = config.hidden_size, config.num_hidden_layers, config.vocab_size
    kv_width = config.num_key_value_heads or config.num_attention_heads
    kv_width *= width // config.num_attention_heads
    attention = 2 * width * width + 2 * width * kv_width
    experts, router = 3 * width * 96, 6 * width
    total = layers * (attention + router + 6 * experts) + vocab * width
    active = layers * (attention + router + 2 * experts) + vocab * width
    assert matrix_weights(shape) == total
    assert active_weights(shape) == active
    assert parameter_count(config) == total + vocab * width + (2 * layers + 1) * width
    scores = layers * 2 * 2 * width * (32 + 1) / 2
    assert training_flops_per_token(shape, 32) == 3 * (2 * active + scores)
    assert sum(each.number for each in linear_layers(shape)) == layers * (4 + 1 + 3 * 6) + 1


def test_product_intensity() -> None:
    """By hand: each expert's matrices move once, and of its inputs and outputs those of its own tokens."""
    config = load([*MIXTURE, "model.tie_word_embeddings=false"]).model
    shape, tokens = asdict(config), 2 * 32
    width, layers, vocab = config.hidden_size, config.num_hidden_layers, config.vocab_size
    kv_width = (config.num_key_value_heads or config.num_attention_heads) * width // config.num_attention_heads
    moved = 0
    for count, inputs, outputs in ((2, width, width), (2, width, kv_width), (1, width, 6)):
        moved += layers * count * (inputs * outputs + tokens * (inputs + outputs))
    moved += layers * 6 * 3 * (width * 96 + tokens / 3 * (width + 96))
    moved += width * vocab + tokens * (width + vocab) + layers * tokens * 2 * (width + kv_width)
    expected = tokens * training_flops_per_token(shape, 32) / (3 * 2 * moved)
    assert product_intensity(shape, 32, 2, 2) == pytest.approx(expected, rel=1e-12)


def test_flops_are_those_that_megatron_bridge_prints() -> None:
    """23.08 GFLOP a token for Qwen3 30B-A3B at 4 096 positions, in its table of performance (2026)."""
    shape = asdict(load(["model=qwen3-30b-a3b"]).model)
    assert training_flops_per_token(shape, 4096) / 1e9 == pytest.approx(23.08, abs=0.005)


def test_active_parameters_are_the_published_ones() -> None:
    """With the embedding counted: 12.9 billion (Jiang et al. 2024), 3.3 billion (Qwen Team 2025)."""
    for name, published in (("mixtral-8x7b", 12_879_925_248), ("qwen3-30b-a3b", 3_353_032_704)):
        shape = asdict(load([f"model={name}"]).model)
        embedding = shape["vocab_size"] * shape["hidden_size"]
        # Without norms.
        assert active_weights(shape) + embedding == pytest.approx(published, rel=1e-4)


def test_weights_have_the_spread_of_any_other_matrix() -> None:
    config = load([*MIXTURE, "model.scaled_residual_init=true"]).model
    weights = dict(build_model(config, 1, torch.device("cpu")).named_parameters())
    for name in ("router", "gate", "up"):
        spread = weights[f"blocks.0.feed_forward.{name}.weight"].std().item()
        assert spread == pytest.approx(config.initializer_range, rel=0.05), name
    down = weights["blocks.0.feed_forward.down.weight"].std().item()
    assert down == pytest.approx(config.initializer_range / (2 * config.num_hidden_layers) ** 0.5, rel=0.05)


class TestSettings:
    def test_of_experts_are_part_of_the_work(self) -> None:
        ids = {workload_id(load(layered_settings(MIXTURE, more))) for more in (
            [], ["model.num_experts=8"], ["model.num_experts_per_tok=1"], ["model.norm_topk_prob=false"],
            ["model.routing=round_robin"], ["model.num_experts=null"])}  # fmt: skip
        assert len(ids) == 6

    def test_a_model_without_experts_has_the_identity_that_it_had_before_them(self) -> None:
        assert workload_id(load(["model=llama-30m", "workload=smoke"])) == "7f14b84a82c884c5"

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["model.num_experts_per_tok=7"], "model.num_experts_per_tok: found 7, but the model has 6 experts"),
            (["model.mlp_bias=true"], "model.mlp_bias: found true, but experts have no biases"),
            (["track=tuned", "track.compile=model"], "track.compile: found model, but learned routing"),
        ],
    )
    def test_that_contradict_each_other_are_refused(self, more: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load(layered_settings(MIXTURE, more))

    @pytest.mark.parametrize("word", ["num_experts_per_tok=4", "norm_topk_prob=false", "routing=round_robin"])
    def test_without_experts_are_refused(self, word: str) -> None:
        with pytest.raises(ConfigError, match=r"but the model has no experts; set model\.num_experts"):
            load(["model=llama-30m", f"model.{word}"])
