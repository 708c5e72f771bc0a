"""GPT-2 and Llama-2 against the implementations of them in transformers.

Parameter counts of every preset, logits, loss and every gradient are compared, with random biases and norm weights, so
that a missing or swapped one fails. tests/integration/test_reference.py also uses `as_gpt2` and `as_llama`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from harness.composition import config_directory, load
from harness.config import ModelConfig, intermediate_size, num_key_value_heads
from harness.workload.initialization import build_model
from harness.workload.model import (
    Transformer,
    causal_attention,
    compared_weights,
    parameter_count,
    rotary_tables,
    rotate,
)

CPU = torch.device("cpu")
LENGTH = 24
GPT2 = ModelConfig(
    name="gpt2",
    vocab_size=101,
    max_position_embeddings=LENGTH + 8,
    num_hidden_layers=3,
    hidden_size=48,
    num_attention_heads=4,
    activation="gelu_tanh",
    position_embedding="learned",
    bias=True,
)
LLAMA = ModelConfig(
    name="llama-gqa",
    vocab_size=101,
    max_position_embeddings=LENGTH + 8,
    num_hidden_layers=3,
    hidden_size=48,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=80,
    norm="rmsnorm",
    activation="swiglu",
    tie_word_embeddings=False,
    scaled_residual_init=False,
)
MIXED = ModelConfig(
    name="mixed",
    vocab_size=101,
    max_position_embeddings=LENGTH,
    num_hidden_layers=2,
    hidden_size=48,
    num_attention_heads=4,
    num_key_value_heads=1,
)
ALL = pytest.mark.parametrize("config", [GPT2, LLAMA, MIXED], ids=lambda config: config.name)

PARAMETERS = {
    # Radford et al. 2019 in OpenAI's release; Touvron et al. 2023 in Meta's.
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama-1b": 1_100_048_384,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    # Computed from the keys of the published config.json, and equal to the published figure when rounded.
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "gpt3-175b": 174_604_259_328,
    "llama3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    # Ours, by hand: V W + L (12 W^2 + 2 W) + W.
    "tiny": 820_352,
    "small": 10_720_128,
    "llama-30m": 29_990_784,
}


def as_gpt2(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name our weights (or their gradients) as GPT2LMHeadModel does; its Conv1D holds a Linear's transpose."""
    weights = dict(weights)
    for layer in range(config.num_hidden_layers):
        for kind in ("weight", "bias") if config.bias else ("weight",):
            parts = [weights.pop(f"blocks.{layer}.attention.{part}.{kind}") for part in "qkv"]
            weights[f"blocks.{layer}.attention.qkv.{kind}"] = torch.cat(parts)
    blocks = {
        "attention_norm.weight": "ln_1.weight",
        "attention_norm.bias": "ln_1.bias",
        "attention.qkv.weight": "attn.c_attn.weight",
        "attention.qkv.bias": "attn.c_attn.bias",
        "attention.out.weight": "attn.c_proj.weight",
        "attention.out.bias": "attn.c_proj.bias",
        "feed_forward_norm.weight": "ln_2.weight",
        "feed_forward_norm.bias": "ln_2.bias",
        "feed_forward.up.weight": "mlp.c_fc.weight",
        "feed_forward.up.bias": "mlp.c_fc.bias",
        "feed_forward.down.weight": "mlp.c_proj.weight",
        "feed_forward.down.bias": "mlp.c_proj.bias",
    }
    named = {
        "transformer.wte.weight": weights["embedding.weight"],
        "transformer.wpe.weight": weights["position.weight"],
        "transformer.ln_f.weight": weights["norm.weight"],
        "transformer.ln_f.bias": weights["norm.bias"],
    }
    for layer in range(config.num_hidden_layers):
        for ours, theirs in blocks.items():
            value = weights[f"blocks.{layer}.{ours}"]
            named[f"transformer.h.{layer}.{theirs}"] = value.t() if value.dim() == 2 else value
    assert len(named) == len(weights)
    return named


def as_llama(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name our weights (or their gradients) as LlamaForCausalLM does."""
    named = {"model.embed_tokens.weight": weights["embedding.weight"], "model.norm.weight": weights["norm.weight"]}
    if not config.tie_word_embeddings:
        named["lm_head.weight"] = weights["head.weight"]
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        parts = {
            "self_attn.q_proj": weights[ours + "attention.q.weight"],
            "self_attn.k_proj": weights[ours + "attention.k.weight"],
            "self_attn.v_proj": weights[ours + "attention.v.weight"],
            "self_attn.o_proj": weights[ours + "attention.out.weight"],
            "mlp.gate_proj": weights[ours + "feed_forward.gate.weight"],
            "mlp.up_proj": weights[ours + "feed_forward.up.weight"],
            "mlp.down_proj": weights[ours + "feed_forward.down.weight"],
            "input_layernorm": weights[ours + "attention_norm.weight"],
            "post_attention_layernorm": weights[ours + "feed_forward_norm.weight"],
        }
        named.update({f"{theirs}{name}.weight": value for name, value in parts.items()})
    return named


def gpt2_reference(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Any:
    """Return transformers' GPT-2 of this shape with these weights."""
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_position_embeddings,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_inner": config.intermediate_size,
        "activation_function": {"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
        "attn_implementation": "eager",
    }
    return _filled(GPT2LMHeadModel(GPT2Config(**settings)), as_gpt2(config, weights))


def llama_reference(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Any:
    """Return transformers' Llama of this shape with these weights."""
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_size": config.hidden_size,
        "intermediate_size": intermediate_size(config),
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": num_key_value_heads(config),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attn_implementation": "eager",
    }
    return _filled(LlamaForCausalLM(LlamaConfig(**settings)), as_llama(config, weights))


def _filled(model: Any, named: dict[str, torch.Tensor]) -> Any:
    parameters = dict(model.named_parameters())
    assert parameters.keys() == named.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(named[name])
    return model.train()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """One thread is fastest for models of this size; conftest.py restores the number."""
    torch.set_num_threads(1)


def random_model(config: ModelConfig) -> Transformer:
    """Return a model with random parameters, large enough for attention to be far from uniform."""
    model = build_model(config, 1, CPU)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.3 * noise)
    return model


def random_sequences(config: ModelConfig, count: int = 3) -> torch.Tensor:
    return torch.randint(config.vocab_size, (count, LENGTH + 1), generator=torch.Generator().manual_seed(6))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


class TestParameterCount:
    @pytest.mark.parametrize("name", PARAMETERS)
    def test_is_the_published_one(self, name: str) -> None:
        assert parameter_count(load([f"model={name}"]).model) == PARAMETERS[name]

    def test_every_preset_is_checked(self) -> None:
        assert {path.stem for path in (config_directory() / "model").glob("*.yaml")} == PARAMETERS.keys() | {"hf"}

    @ALL
    def test_is_that_of_the_model_built(self, config: ModelConfig) -> None:
        built = sum(parameter.numel() for parameter in build_model(config, 1, CPU).parameters())
        assert parameter_count(config) == built


Reference = tuple[Callable[..., Any], Callable[..., dict[str, torch.Tensor]]]
BY_GPT2: Reference = (gpt2_reference, as_gpt2)
BY_LLAMA: Reference = (llama_reference, as_llama)
SHAPES: dict[str, tuple[ModelConfig, Reference]] = {
    "gpt2": (GPT2, BY_GPT2),
    "gpt2, exact gelu, intermediate_size": (
        replace(GPT2, activation="gelu", intermediate_size=60, norm_eps=1e-2),
        BY_GPT2,
    ),
    "llama, grouped": (LLAMA, BY_LLAMA),
    "llama, one kv head": (replace(LLAMA, num_key_value_heads=1, rope_theta=50.0, norm_eps=1e-2), BY_LLAMA),
    "llama, ungrouped, tied": (
        replace(LLAMA, num_key_value_heads=None, intermediate_size=None, tie_word_embeddings=True),
        BY_LLAMA,
    ),
}


class TestAgainstTransformers:
    """float32 on both sides. The same sums in another order, over at most 192 terms of 1e-7 relative error each and
    through three layers: differences near 1e-6 of the largest value are rounding. A wrong factor is 1e-3 or more.
    """

    @pytest.mark.parametrize("shape", SHAPES)
    def test_logits_are_equal(self, shape: str) -> None:
        config, (reference, _) = SHAPES[shape]
        model, tokens = random_model(config), random_sequences(config)
        theirs = reference(config, dict(model.named_parameters()))
        with torch.no_grad():
            expected, found = theirs(input_ids=tokens).logits, model.logits(tokens)
        assert expected.abs().max() > 1  # far from zero
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=5e-5)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_loss_and_every_gradient_are_equal(self, shape: str) -> None:
        config, (reference, names) = SHAPES[shape]
        model, sequences = random_model(config), random_sequences(config)
        theirs = reference(config, dict(model.named_parameters()))
        loss = model(sequences)
        loss.backward()
        # Given labels, it drops the last position and shifts by itself.
        expected = theirs(input_ids=sequences, labels=sequences).loss
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
        wanted, found = gradients(theirs), names(config, gradients(model))
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            largest = wanted[name].abs().max().item()
            assert largest > 0, name
            torch.testing.assert_close(
                gradient, wanted[name], rtol=1e-4, atol=1e-5 * largest, msg=lambda text, name=name: f"{name}: {text}"
            )


class TestLoss:
    @ALL
    def test_is_the_mean_cross_entropy_of_the_next_token(self, config: ModelConfig) -> None:
        model, sequences = random_model(config), random_sequences(config)
        with torch.no_grad():
            loss = model(sequences)
            logits = model.logits(sequences[:, :-1]).double().numpy()
        assert loss.dtype == torch.float32
        assert loss.shape == ()
        total = np.log(np.exp(logits).sum(axis=-1))
        chosen = np.take_along_axis(logits, sequences[:, 1:, None].numpy(), axis=-1)[..., 0]
        assert loss.item() == pytest.approx((total - chosen).mean(), rel=1e-6)

    def test_is_in_float32_whatever_the_logits_are_in(self) -> None:
        model, sequences = random_model(GPT2), random_sequences(GPT2)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            loss, logits = model(sequences), model.logits(sequences[:, :-1])
        assert logits.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        expected = F.cross_entropy(logits.float().flatten(0, 1), sequences[:, 1:].flatten())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        # Without autocast, which upcasts by itself.
        with torch.no_grad():
            assert model.bfloat16()(sequences).dtype == torch.float32


class TestCausality:
    @ALL
    @pytest.mark.parametrize("position", [1, LENGTH // 2, LENGTH - 1])
    def test_a_later_token_changes_no_earlier_logits(self, config: ModelConfig, position: int) -> None:
        model, tokens = random_model(config), random_sequences(config)[:, :-1]
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % config.vocab_size
        with torch.no_grad():
            one, two = model.logits(tokens), model.logits(changed)
        assert torch.equal(one[:, :position], two[:, :position])
        # All later positions depend on it.
        assert (one - two)[:, position:].abs().amax(dim=-1).min() > 1e-4

    @ALL
    def test_a_prefix_gives_the_prefix_of_the_logits(self, config: ModelConfig) -> None:
        model, tokens = random_model(config), random_sequences(config)[:, :-1]
        with torch.no_grad():
            whole = model.logits(tokens)
            # Shorter, then longer again: cached tables have to follow the length.
            for length in (5, 1, LENGTH):
                torch.testing.assert_close(model.logits(tokens[:, :length]), whole[:, :length], rtol=2e-5, atol=5e-5)

    @ALL
    def test_the_order_of_the_past_matters(self, config: ModelConfig) -> None:
        model, tokens = random_model(config), random_sequences(config)[:, :-1]
        tokens[:, 0], tokens[:, 1] = 3, 4
        exchanged = tokens.clone()
        exchanged[:, 0], exchanged[:, 1] = 4, 3
        with torch.no_grad():
            assert (model.logits(tokens) - model.logits(exchanged))[:, -1].abs().max() > 1e-3

    @ALL
    def test_sequences_of_a_batch_do_not_mix(self, config: ModelConfig) -> None:
        model, tokens = random_model(config), random_sequences(config)[:, :-1]
        with torch.no_grad():
            whole = model.logits(tokens)
            for row in range(len(tokens)):
                torch.testing.assert_close(model.logits(tokens[row : row + 1])[0], whole[row], rtol=2e-5, atol=5e-5)


class TestAttention:
    def test_grouped_heads_are_repeated_ones(self) -> None:
        generator = torch.Generator().manual_seed(1)
        q = torch.randn(2, 6, 9, 8, generator=generator)
        k, v = torch.randn(2, 2, 2, 9, 8, generator=generator)
        repeated = causal_attention(q, k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1))
        torch.testing.assert_close(causal_attention(q, k, v), repeated, rtol=1e-5, atol=1e-6)

    def test_a_grouped_model_is_one_with_repeated_kv_weights(self) -> None:
        grouped = random_model(LLAMA)
        whole = build_model(replace(LLAMA, num_key_value_heads=LLAMA.num_attention_heads), 1, CPU)
        head_dim = LLAMA.hidden_size // LLAMA.num_attention_heads
        group = LLAMA.num_attention_heads // num_key_value_heads(LLAMA)
        weights = {name: value.detach() for name, value in grouped.named_parameters()}
        for layer in range(LLAMA.num_hidden_layers):
            for part in "kv":
                name = f"blocks.{layer}.attention.{part}.weight"
                weights[name] = weights[name].unflatten(0, (-1, head_dim)).repeat_interleave(group, dim=0).flatten(0, 1)
        whole.load_state_dict(weights)
        tokens = random_sequences(LLAMA)
        with torch.no_grad():
            torch.testing.assert_close(grouped.logits(tokens), whole.logits(tokens), rtol=2e-5, atol=5e-5)

    def test_is_softmax_over_the_past(self) -> None:
        q, k, v = torch.randn(3, 1, 2, 7, 4, generator=torch.Generator().manual_seed(2)).double()
        scores = (q @ k.transpose(-1, -2)) / 4**0.5
        scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf"))
        torch.testing.assert_close(causal_attention(q, k, v), scores.softmax(dim=-1) @ v)


class TestRotary:
    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
        # The same vector at every position: [1, 1, S, D].
        return q.expand(1, 1, 40, 16), k.expand(1, 1, 40, 16)

    def test_products_depend_on_the_distance_alone(self) -> None:
        (q, k), tables = self.vectors(), rotary_tables(40, 16, 100.0)
        products = (rotate(q, *tables) @ rotate(k, *tables).transpose(-1, -2))[0, 0]
        by_distance = []
        for distance in range(-39, 40):
            diagonal = products.diagonal(distance)
            torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=2e-5)
            by_distance.append(diagonal[0].item())
        # They do depend on it, and on its sign.
        assert np.abs(np.subtract.outer(by_distance, by_distance) + np.eye(79)).min() > 1e-5

    def test_rotates_pairs_as_complex_numbers(self) -> None:
        (q, _), tables = self.vectors(), rotary_tables(40, 16, 10000.0)
        frequencies = 10000.0 ** (-np.arange(8) / 8)
        turned = np.exp(1j * np.outer(np.arange(40), frequencies))
        pairs = q[0, 0, :, :8].numpy() + 1j * q[0, 0, :, 8:].numpy()
        expected = pairs * turned
        found = rotate(q, *tables)[0, 0].numpy()
        np.testing.assert_allclose(found[:, :8], expected.real, atol=1e-6)
        np.testing.assert_allclose(found[:, 8:], expected.imag, atol=1e-6)

    def test_the_first_position_is_unchanged(self) -> None:
        q, _ = self.vectors()
        assert torch.equal(rotate(q, *rotary_tables(40, 16, 10000.0))[:, :, 0], q[:, :, 0])

    def test_keeps_the_dtype_of_its_input(self) -> None:
        q, _ = self.vectors()
        assert rotate(q.bfloat16(), *rotary_tables(40, 16, 10000.0)).dtype == torch.bfloat16

    def test_tables_are_float32_on_the_cpu(self) -> None:
        for table in rotary_tables(40, 16, 10000.0):
            assert table.dtype == torch.float32
            assert table.shape == (40, 16)
            assert table.device == CPU


def test_a_model_is_freed_with_its_last_reference() -> None:
    """Its memory, gigabytes, must not wait for the collector of cycles."""
    model = Transformer(LLAMA)
    assert model.stages == (model,)
    reference = weakref.ref(model)
    del model
    assert reference() is None


class TestActivationCheckpointing:
    @ALL
    def test_changes_no_bit_of_loss_or_gradients(self, config: ModelConfig) -> None:
        sequences, results, forwards = random_sequences(config), [], []
        for checkpointing in (False, True):
            model = random_model(replace(config, activation_checkpointing=checkpointing))
            calls: list[int] = []
            model.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            loss = model(sequences)
            loss.backward()
            results.append((loss.detach(), gradients(model)))
            forwards.append(len(calls))
        # The forward pass was recomputed.
        assert forwards == [1, 2]
        (one, one_gradients), (two, two_gradients) = results
        assert torch.equal(one, two)
        for name, gradient in one_gradients.items():
            assert torch.equal(gradient, two_gradients[name]), name

    @pytest.mark.parametrize(
        ("blocks", "chosen", "expected"), [(4, None, [0, 1, 2, 3]), (4, 2, [1, 3]), (4, 3, [1, 2, 3]), (6, 1, [5])]
    )
    def test_chosen_blocks_recompute(self, blocks: int, chosen: int | None, expected: list[int]) -> None:
        config = replace(GPT2, num_hidden_layers=blocks, activation_checkpointing=True,
                         activation_checkpointing_blocks=chosen)  # fmt: skip
        model, calls = random_model(config), list[int]()
        for number, block in enumerate(model.blocks):
            block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
        model(random_sequences(config)).backward()
        assert sorted(calls) == sorted([*range(blocks), *expected])


@pytest.mark.parametrize("position_embedding", ["learned", "rotary"])
def test_the_output_needs_the_weights_that_are_compared_and_no_others(position_embedding: str) -> None:
    config = replace(GPT2, position_embedding=position_embedding)
    model, sequences = random_model(config), random_sequences(config)
    parameters = dict(model.named_parameters())
    compared = compared_weights(parameters, config)
    biases = [name for name in parameters if name.endswith("attention.k.bias")]
    assert len(biases) == config.num_hidden_layers
    assert parameters.keys() - compared.keys() == set(biases if position_embedding == "learned" else [])
    before = model(sequences).item()
    with torch.no_grad():
        parameters[biases[0]].normal_()
    changed = abs(model(sequences).item() - before) > 1e-5
    assert changed == (biases[0] in compared)
