"""Model FLOPs and model sizes, from the shape of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The backward pass has two matrix products (for input and weight) for each one of the forward pass.
PASSES = 3
# Weights of a layer in units of width²: usual, and with grouped queries and a narrow feed-forward block.
USUAL_WEIGHTS, MIN_WEIGHTS = 12, 6
# Bytes of weights, gradients and AdamW's moments: 4 + 4 + 4 + 4 in fp32; with 16-bit weights and gradients, and fp32
# master weights, 2 + 2 + 4 + 4 + 4 (Rajbhandari et al. 2020).
STATE_BYTES_PER_PARAMETER = 16


def matrix_weights(model: Mapping[str, Any]) -> int:
    """Return the number of weights of the linear layers and of the output projection, tied or not."""
    width, layers, heads = model["hidden_size"], model["num_hidden_layers"], model["num_attention_heads"]
    kv_heads = model["num_key_value_heads"] if model["num_key_value_heads"] is not None else heads
    intermediate = model["intermediate_size"] if model["intermediate_size"] is not None else 4 * width
    head_size = width // heads
    attention = width * (heads + 2 * kv_heads) * head_size + width * width
    feed_forward = width * intermediate * (3 if model["activation"] == "swiglu" else 2)
    return layers * (attention + feed_forward) + width * model["vocab_size"]


def parameters_of(model: Mapping[str, Any]) -> int:
    """Return the parameters of a model without norms, biases and position embeddings, which are below one per cent."""
    untied = not model.get("tie_word_embeddings", True)
    return matrix_weights(model) + untied * model["hidden_size"] * model["vocab_size"]


def parameters_of_layers(layers: float, width: float, weights: int = USUAL_WEIGHTS) -> float:
    """Return the approximate parameters of `layers` layers of `weights` x width² each."""
    return weights * layers * width**2


def flops_per_token_of_size(parameters: float, layers: float | None, width: float | None, seq_len: float) -> float:
    """Return the training FLOPs per token of a model of known size: 6 x parameters (Kaplan et al. 2020).

    Causal attention is added where layers and width are known. 6 x parameters counts the embedding as a matrix
    product, which is a few per cent too much for a small model.
    """
    attended = 0.0 if layers is None or width is None else layers * 2 * 2 * width * (seq_len + 1) / 2
    return PASSES * (2 * parameters + attended)


def training_flops_per_token(model: Mapping[str, Any], seq_len: int) -> float:
    """Return the model FLOPs of the forward and backward pass per token; a multiply-add counts as two.

    After Chowdhery et al. 2022 (PaLM, appendix B), with causal attention: a token attends to (seq_len + 1) / 2
    positions on average, not to seq_len.

        3 x (2 x matrix weights + layers x 2 products x 2 x width x (seq_len + 1) / 2)

    The embedding is a look-up and costs nothing. Norms, activations, softmax, the optimizer and what activation
    checkpointing recomputes do not count.

    Args:
        model: the `model` section of a config.
        seq_len: tokens in a training sequence.
    """
    attended = model["num_hidden_layers"] * 2 * 2 * model["hidden_size"] * (seq_len + 1) / 2
    return PASSES * (2 * matrix_weights(model) + attended)
