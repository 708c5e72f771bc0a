"""Models from a Hugging Face config.json and safetensors, against the implementations of them in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from harness.composition import load
from harness.config import Config, ModelConfig
from harness.workload.initialization import build_model
from harness.workload.model import Transformer
from harness.workload.weights import WeightFiles, sources_of

CPU = torch.device("cpu")
LENGTH = 40
SHAPE = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
# Shorter than the sequences.
ORIGINAL = {"original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
# With this base the ramp goes over several pairs.
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50.0, **ORIGINAL}
WITHOUT_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id"))
FAMILIES: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, SHAPE),
    "llama 3": (LlamaConfig, LlamaForCausalLM, SHAPE | {"rope_scaling": LLAMA3 | {"rope_theta": 500.0}}),
    "llama 3, tied": (LlamaConfig, LlamaForCausalLM, SHAPE | {"rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "llama, linear": (LlamaConfig, LlamaForCausalLM, SHAPE | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama, biases": (LlamaConfig, LlamaForCausalLM, SHAPE | {"attention_bias": True, "mlp_bias": True}),
    "llama, head size": (LlamaConfig, LlamaForCausalLM, SHAPE | {"head_dim": 20}),
    "mistral": (MistralConfig, MistralForCausalLM, SHAPE | {"sliding_window": 64, "head_dim": 20}),
    "mistral, no window": (MistralConfig, MistralForCausalLM, SHAPE | {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, SHAPE | {"rms_norm_eps": 1e-2}),
    "qwen2, yarn": (Qwen2Config, Qwen2ForCausalLM, SHAPE | {"rope_scaling": YARN}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, SHAPE | {"head_dim": 20}),
    "qwen3, yarn": (
        Qwen3Config,
        Qwen3ForCausalLM,
        SHAPE | {"head_dim": 20, "rope_scaling": YARN | {"attention_factor": 1.3, "beta_fast": 2.0, "beta_slow": 0.5}},
    ),
    "gpt2": (
        GPT2Config,
        GPT2LMHeadModel,
        {"vocab_size": 101, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4, "attn_implementation": "eager",
         **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)},
    ),
}  # fmt: skip
ALL = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def saved(name: str, folder: Path, **options: Any) -> Any:
    """Return transformers' model of this family with random weights, saved in the folder."""
    config, kind, settings = FAMILIES[name]
    torch.manual_seed(5)
    model = kind(config(**settings, **WITHOUT_TOKENS))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.3 * noise)
    model.save_pretrained(folder, **options)
    return model.train()


def settings_of(folder: Path, *words: str) -> Config:
    return load(["model=hf", f"model.path='{folder}'", f"workload.seq_len={LENGTH}", *words])


def imported(folder: Path) -> tuple[ModelConfig, Transformer]:
    config = settings_of(folder).model
    return config, build_model(config, 1, CPU, weights=WeightFiles(str(folder), config))


def as_theirs(config: ModelConfig, ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return our tensors, of parameters or gradients, by their names."""
    named = {}
    for name, tensor in ours.items():
        sources = sources_of(name, config, tensor.shape)
        for source, part in zip(sources, tensor.split([source.rows for source in sources]), strict=True):
            named[source.name] = part.t() if source.transposed else part
    return named


class TestAgainstTransformers:
    @ALL
    def test_logits_loss_and_gradients_are_equal(self, name: str, tmp_path: Path) -> None:
        theirs = saved(name, tmp_path)
        config, ours = imported(tmp_path)
        tokens = torch.randint(101, (3, LENGTH + 1), generator=torch.Generator().manual_seed(6))
        with torch.no_grad():
            expected, found = theirs(input_ids=tokens).logits, ours.logits(tokens)
        assert expected.abs().max() > 1
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        loss = ours(tokens)
        loss.backward()
        wanted = theirs(input_ids=tokens, labels=tokens).loss
        wanted.backward()
        torch.testing.assert_close(loss, wanted, rtol=2e-6, atol=0)
        gradients = as_theirs(config, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
        named = {name: p.grad for name, p in theirs.named_parameters()}
        assert gradients.keys() == named.keys()
        for key, gradient in named.items():
            largest = gradient.abs().max().item()
            assert largest > 0, key
            torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-5 * largest, msg=key)

    @ALL
    def test_a_sharded_checkpoint_is_the_same(self, name: str, tmp_path: Path) -> None:
        saved(name, tmp_path / "one")
        saved(name, tmp_path / "many", max_shard_size="30KB")
        assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
        (_, one), (_, many) = imported(tmp_path / "one"), imported(tmp_path / "many")
        for (key, value), (_, other) in zip(one.named_parameters(), many.named_parameters(), strict=True):
            assert torch.equal(value, other), key
