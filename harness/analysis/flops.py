"""Model FLOPs and model sizes, from the shape of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.config import ModelConfig

# The backward pass has two matrix products (for input and weight) for each one of the forward pass.
PASSES = 3
# Weights of a layer in units of width²: usual, and with grouped queries and a narrow feed-forward block.
USUAL_WEIGHTS, MIN_WEIGHTS = 12, 6
# Width over layers of the deepest and narrowest published models (SmolLM 135M: 576 over 30).
MIN_WIDTH_PER_LAYER = 16
# Bytes of weights, gradients and AdamW's moments: 4 + 4 + 4 + 4 in fp32; with 16-bit weights and gradients, and fp32
# master weights, 2 + 2 + 4 + 4 + 4 (Rajbhandari et al. 2020).
STATE_BYTES_PER_PARAMETER = 16


class LinearLayers(NamedTuple):
    """Linear layers of one kind and shape."""

    number: int
    inputs: int
    outputs: int
    share: float = 1.0
    """Fraction of the tokens that pass through each layer: below one for experts, whose loads are taken as equal."""

    @property
    def weights(self) -> int:
        return self.number * self.inputs * self.outputs


def matrix_weights(model: Mapping[str, Any]) -> int:
    """Return the number of weights of the linear layers and of the output projection, tied or not."""
    return sum(layers.weights for layers in linear_layers(model))


def active_weights(model: Mapping[str, Any]) -> float:
    """Return the number of those weights that a token is multiplied with: without the experts that it does not use."""
    return sum(layers.share * layers.weights for layers in linear_layers(model))


def linear_layers(model: Mapping[str, Any]) -> list[LinearLayers]:
    """Return all kinds of linear layers, the output projection included."""
    width, layers, heads = model["hidden_size"], model["num_hidden_layers"], model["num_attention_heads"]
    kv_heads = model["num_key_value_heads"] if model["num_key_value_heads"] is not None else heads
    intermediate = model["intermediate_size"] if model["intermediate_size"] is not None else 4 * width
    head_size, gates = _head_dim(model), 2 if model["activation"] == "swiglu" else 1
    # Records from before experts have none.
    experts = model.get("num_experts")
    copies, share = 1, 1.0
    if experts is not None:
        copies, share = experts, model.get("num_experts_per_tok", ModelConfig.num_experts_per_tok) / experts
    return [
        LinearLayers(layers, width, heads * head_size),
        LinearLayers(2 * layers, width, kv_heads * head_size),
        LinearLayers(layers, heads * head_size, width),
        *([] if experts is None else [LinearLayers(layers, width, experts)]),
        LinearLayers(copies * gates * layers, width, intermediate, share),
        LinearLayers(copies * layers, intermediate, width, share),
        LinearLayers(1, width, model["vocab_size"]),
    ]


def product_intensity(model: Mapping[str, Any], seq_len: int, micro_batch_size: int, number_bytes: int) -> float:
    """Return the FLOP per byte of a micro-batch's products and attention, of which each operand moves once a pass.

    It is a property of the work, and an upper bound of the arithmetic intensity that a device has with it: other
    operations, the optimizer and caches that do not suffice add bytes. Attention is taken to read queries, keys and
    values and to write its output, as fused kernels do (Dao et al. 2022).

    Args:
        number_bytes: of an operand and of a result.
    """
    tokens, heads = micro_batch_size * seq_len, model["num_attention_heads"]
    moved = sum(
        layers.number * layers.share * tokens * (layers.inputs + layers.outputs) + layers.weights
        for layers in linear_layers(model)
    )
    kv_heads = model["num_key_value_heads"] if model["num_key_value_heads"] is not None else heads
    moved += model["num_hidden_layers"] * tokens * 2 * (heads + kv_heads) * _head_dim(model)
    return tokens * training_flops_per_token(model, seq_len) / (PASSES * number_bytes * moved)


def heads_width(model: Mapping[str, Any]) -> int:
    """Return the size of all query heads of a layer, which need not be the hidden size."""
    return model["num_attention_heads"] * _head_dim(model)


def _head_dim(model: Mapping[str, Any]) -> int:
    """Return the size of one head; records from before the setting have none."""
    return model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"]


def parameters_of(model: Mapping[str, Any]) -> int:
    """Return the parameters of a model without norms, biases and position embeddings, which are below one per cent."""
    untied = not model.get("tie_word_embeddings", True)
    return matrix_weights(model) + untied * model["hidden_size"] * model["vocab_size"]


def parameters_of_layers(layers: float, width: float, weights: int = USUAL_WEIGHTS) -> float:
    """Return the approximate parameters of `layers` layers of `weights` x width² each."""
    return weights * layers * width**2


def causal_attention_flops(layers: float, width: float, seq_len: float) -> float:
    """Return the training FLOPs of attention per token, which attends to (seq_len + 1) / 2 positions on average."""
    return PASSES * layers * 2 * 2 * width * (seq_len + 1) / 2


def whole_attention_flops(layers: float, width: float, seq_len: float) -> float:
    """Return the training FLOPs of attention per token where all seq_len positions are counted: 12 x L x W x S.

    This is the formula of Chowdhery et al. 2022 (PaLM, appendix B), which ignores the causal mask.
    """
    return PASSES * layers * 2 * 2 * width * seq_len


def largest_attention_flops(parameters: float, seq_len: float) -> float:
    """Return `whole_attention_flops` of the deepest and narrowest model with this many parameters."""
    width = (MIN_WIDTH_PER_LAYER * parameters / USUAL_WEIGHTS) ** (1 / 3)
    return whole_attention_flops(width / MIN_WIDTH_PER_LAYER, width, seq_len)


def flops_per_token_of_size(parameters: float, layers: float | None, width: float | None, seq_len: float) -> float:
    """Return the training FLOPs per token of a model of known size: 6 x parameters (Kaplan et al. 2020).

    Causal attention is added where layers and width are known. 6 x parameters counts the embedding as a matrix
    product, which is a few per cent too much for a small model.
    """
    attention = 0.0 if layers is None or width is None else causal_attention_flops(layers, width, seq_len)
    return PASSES * 2 * parameters + attention


def training_flops_per_token(model: Mapping[str, Any], seq_len: int) -> float:
    """Return the model FLOPs of the forward and backward pass per token; a multiply-add counts as two.

    After Chowdhery et al. 2022 (PaLM, appendix B), with causal attention: a token attends to (seq_len + 1) / 2
    positions on average, not to seq_len.

        3 x (2 x active weights + layers x 2 products x 2 x heads x head size x (seq_len + 1) / 2)

    Active are the weights that a token is multiplied with: all, or those of its own experts. The embedding is a look-up
    and costs nothing. Norms, activations, softmax, the optimizer and what activation
    checkpointing recomputes do not count.

    Args:
        model: the `model` section of a config.
        seq_len: tokens in a training sequence.
    """
    attention = causal_attention_flops(model["num_hidden_layers"], heads_width(model), seq_len)
    return PASSES * 2 * active_weights(model) + attention
