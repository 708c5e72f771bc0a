"""Initial weights: a function of (seed, name, shape) and the model's settings alone, with the documented distribution.

Torch's seed, other parameters and the order of building have no effect. The golden digest is a literal, so that the
test fails if any initial bit changes on any machine.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from harness.config import ModelConfig
from harness.workload.digest import init_digest
from harness.workload.initialization import build_model, initial_value

CPU = torch.device("cpu")
GPT2_LIKE = ModelConfig(
    name="gpt2-like",
    vocab_size=512,
    max_position_embeddings=128,
    num_hidden_layers=2,
    hidden_size=64,
    num_attention_heads=4,
    activation="gelu_tanh",
    position_embedding="learned",
    bias=True,
)
LLAMA_LIKE = ModelConfig(
    name="llama-like",
    vocab_size=512,
    max_position_embeddings=128,
    num_hidden_layers=2,
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    norm="rmsnorm",
    activation="swiglu",
    tie_word_embeddings=False,
    scaled_residual_init=False,
)
GOLDEN = {
    "gpt2-like": "80c0df28b70743de54f084dbb382f15e2b48e9a697f6f34b83faa0649a404e03",
    "llama-like": "891ca0fa54147f2433e5df3a13c06ac99bba0fa5fbe7e4f6d7c58c964d2b9f78",
}
BOTH = pytest.mark.parametrize("config", [GPT2_LIKE, LLAMA_LIKE], ids=lambda config: config.name)


def weights(config: ModelConfig, seed: int = 1) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in build_model(config, seed, CPU).named_parameters()}


def assert_spread(values: torch.Tensor, std: float) -> None:
    """Check mean 0 and the standard deviation, within five standard errors."""
    count = values.numel()
    assert abs(values.double().mean().item()) < 5 * std / math.sqrt(count)
    assert values.double().std().item() == pytest.approx(std, rel=5 * math.sqrt(1.7 / (4 * count)))
    assert values.abs().max().item() <= 2 * math.sqrt(3) * std * (1 + 1e-6)


class TestSameness:
    @BOTH
    def test_golden(self, config: ModelConfig) -> None:
        assert init_digest(build_model(config, 1, CPU)) == GOLDEN[config.name]

    @BOTH
    def test_building_twice_gives_the_same_bits(self, config: ModelConfig) -> None:
        one, two = weights(config), weights(config)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)

    @BOTH
    def test_any_parameter_can_be_generated_alone(self, config: ModelConfig) -> None:
        # In any order and without the others, as a rank that holds a shard does.
        for name, value in reversed(weights(config, seed=7).items()):
            assert torch.equal(initial_value(name, value.shape, config, 7), value), name

    def test_other_parameters_change_nothing(self) -> None:
        config = replace(GPT2_LIKE, scaled_residual_init=False)
        larger = replace(config, num_hidden_layers=5, vocab_size=999, intermediate_size=128, tie_word_embeddings=False)
        one, two = weights(config), weights(larger)
        shared = [name for name in one if two[name].shape == one[name].shape]
        assert len(shared) == len(one) - 1 - 3 * config.num_hidden_layers  # all but the embedding and the feed-forward
        assert all(torch.equal(one[name], two[name]) for name in shared)

    def test_torch_seeds_have_no_influence(self) -> None:
        torch.manual_seed(1)
        one = init_digest(build_model(GPT2_LIKE, 1, CPU))
        torch.manual_seed(2)
        assert init_digest(build_model(GPT2_LIKE, 1, CPU)) == one

    def test_settings_that_do_not_change_the_work_do_not_change_the_weights(self) -> None:
        other = replace(GPT2_LIKE, name="other", activation_checkpointing=True)
        assert init_digest(build_model(other, 1, CPU)) == GOLDEN["gpt2-like"]

    @BOTH
    def test_another_seed_changes_every_matrix(self, config: ModelConfig) -> None:
        assert init_digest(build_model(config, 2, CPU)) != GOLDEN[config.name]
        one, two = weights(config, seed=1), weights(config, seed=2)
        for name in one:
            assert torch.equal(one[name], two[name]) == (one[name].dim() == 1), name

    def test_no_two_parameters_share_their_values(self) -> None:
        values = weights(replace(GPT2_LIKE, num_hidden_layers=3, scaled_residual_init=False, tie_word_embeddings=False))
        first_values = {tuple(value.flatten()[:8].tolist()) for value in values.values() if value.dim() == 2}
        assert len(first_values) == sum(value.dim() == 2 for value in values.values())


class TestTying:
    def test_tied_embeddings_share_their_storage(self) -> None:
        model = build_model(GPT2_LIKE, 1, CPU)
        assert model.head.weight is model.embedding.weight
        assert model.head.weight.data_ptr() == model.embedding.weight.data_ptr()
        names = [name for name, _ in model.named_parameters()]
        assert "embedding.weight" in names
        assert "head.weight" not in names
        with torch.no_grad():
            model.embedding.weight[3, 4] = 5.0
        assert model.head.weight[3, 4] == 5.0

    def test_untied_embeddings_do_not(self) -> None:
        model = build_model(LLAMA_LIKE, 1, CPU)
        assert model.head.weight.data_ptr() != model.embedding.weight.data_ptr()
        assert not torch.equal(model.head.weight, model.embedding.weight)
        assert_spread(model.head.weight.detach(), 0.02)


class TestValues:
    @BOTH
    def test_everything_is_a_trained_float32_parameter_on_the_device(self, config: ModelConfig) -> None:
        model = build_model(config, 1, CPU)
        assert list(model.buffers()) == []
        for name, parameter in model.named_parameters():
            assert parameter.device == CPU, name
            assert parameter.dtype == torch.float32, name
            assert parameter.requires_grad, name
            assert parameter.is_leaf, name

    @BOTH
    def test_biases_are_zero_and_norm_weights_one(self, config: ModelConfig) -> None:
        vectors = {name: value for name, value in weights(config).items() if value.dim() == 1}
        assert len(vectors) == (2 * (2 * 2 + 6) + 2 if config.bias else 2 * 2 + 1)
        for name, value in vectors.items():
            assert name.endswith(".bias") or "norm" in name, name
            assert (value == (0 if name.endswith("bias") else 1)).all(), name

    def test_residual_projections_are_drawn_smaller(self) -> None:
        # Large, so that the estimates are good to about 1 %.
        config = replace(GPT2_LIKE, num_hidden_layers=8, hidden_size=128, initializer_range=0.05)
        for name, value in weights(config).items():
            if value.dim() == 2:
                is_residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                assert_spread(value, 0.05 / 4 if is_residual else 0.05)  # sqrt(2 x 8) = 4

    def test_scaling_can_be_left_out(self) -> None:
        for value in weights(replace(GPT2_LIKE, num_hidden_layers=8, scaled_residual_init=False)).values():
            if value.dim() == 2:
                assert_spread(value, 0.02)


class TestRows:
    @BOTH
    @pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
    def test_rows_made_alone_are_those_of_the_whole(self, config: ModelConfig, ranks: int) -> None:
        for name, whole in weights(config).items():
            each = math.ceil(whole.shape[0] / ranks)
            parts = [
                initial_value(name, whole.shape, config, 1, range(whole.shape[0])[rank * each : (rank + 1) * each])
                for rank in range(ranks)
            ]
            assert torch.equal(torch.cat(parts), whole)

    def test_rows_of_an_odd_width_begin_inside_a_counter(self) -> None:
        shape = torch.Size((10, 3))
        whole = initial_value("embedding.weight", shape, GPT2_LIKE, 1)
        for row in range(10):
            alone = initial_value("embedding.weight", shape, GPT2_LIKE, 1, range(row, row + 1))
            assert torch.equal(alone[0], whole[row])
