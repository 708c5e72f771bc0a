"""Model FLOPs, against hand calculation, the usual rule of thumb, and torch's own counter."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.analysis.flops import parameters_of, training_flops_per_token
from harness.analysis.named_models import model_names, model_preset
from harness.composition import load
from harness.config import head_dim
from harness.workload import model as model_module
from harness.workload.model import Transformer, parameter_count


def of(*overrides: str) -> dict[str, object]:
    return asdict(load(list(overrides)).model)


def test_by_hand() -> None:
    model = of(
        "model=tiny",
        "model.num_hidden_layers=1",
        "model.hidden_size=2",
        "model.num_attention_heads=1",
        "model.vocab_size=5",
    )
    # Matrix weights: qkv 2 x 6, out 2 x 2, up 2 x 8, down 8 x 2, head 2 x 5. A token attends to 2 of 3 on average.
    weights, attention = 12 + 4 + 16 + 16 + 10, 2 * 2 * 2 * 2
    assert training_flops_per_token(model, 3) == 3 * (2 * weights + attention)


@pytest.mark.parametrize("name", model_names())
def test_a_size_by_shape_is_the_model_s_to_a_percent(name: str) -> None:
    """The input embedding is left out where it is the output's, and counts where it is not: 6 % of llama-1b."""
    shape = model_preset(name)
    assert shape is not None
    assert parameters_of(shape) == pytest.approx(parameter_count(load([f"model={name}"]).model), rel=0.01)


@pytest.mark.parametrize("name", ["gpt2-124m", "llama2-7b", "llama2-70b"])
def test_is_near_six_times_the_parameters_and_a_little_more(name: str) -> None:
    config = load([f"model={name}", "workload.seq_len=1024"]).model
    ratio = training_flops_per_token(asdict(config), 1024) / (6 * parameter_count(config))
    assert 0.99 < ratio < 1.12


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.bias=true",),
        ("model.num_key_value_heads=2", "model.activation=swiglu", "model.norm=rmsnorm"),
        ("model.tie_word_embeddings=false",),
        ("model.head_dim=24", "model.qk_norm=true", "model.attention_bias=qkv"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_forward_and_backward_as_torch_counts_them(overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter sees full attention, so the causal half is taken from its sum: S x S scores against S (S + 1) / 2."""

    def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v

    monkeypatch.setattr(model_module, "causal_attention", written_out)
    config = load(
        ["model=tiny", "model.num_hidden_layers=2", "model.hidden_size=64", "model.num_attention_heads=4", *overrides]
    ).model
    length, batch = 32, 2
    with torch.device("meta"):
        model = Transformer(config)
        tokens = torch.zeros(batch, length + 1, dtype=torch.int64)
    monkeypatch.setattr(
        model_module, "rotary_tables", lambda length, size, *_: (torch.empty(length, size, device="meta"),) * 2
    )
    with FlopCounterMode(display=False) as counter:
        model(tokens).backward()
    full_attention = 3 * config.num_hidden_layers * 2 * 2 * config.num_attention_heads * head_dim(config) * length
    ours = training_flops_per_token(asdict(config), length)
    causal_attention = full_attention * (length + 1) / 2 / length
    assert counter.get_total_flops() == batch * length * (ours - causal_attention + full_attention)
