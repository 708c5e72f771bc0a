"""The arithmetic that a training step of the model consists of, whatever the device did to perform it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The backward pass computes two products (for the input and for the weight) where the forward pass computes one.
PASSES = 3
# Of a layer, in units of width²; fewest with grouped queries and a narrow feed-forward block.
USUAL_WEIGHTS, MIN_WEIGHTS = 12, 6
# Of weights, gradients and AdamW's moments: 4 + 4 + 4 + 4 bytes in fp32; with 16-bit weights and gradients, and fp32
# master weights, 2 + 2 + 4 + 4 + 4 (Rajbhandari et al. 2020).
STATE_BYTES_PER_PARAMETER = 16


def matrix_weights(model: Mapping[str, Any]) -> int:
    """Return the weights of the linear layers and of the output projection, tied or not."""
    width, layers, heads = model["hidden_size"], model["num_hidden_layers"], model["num_attention_heads"]
    kv_heads = model["num_key_value_heads"] if model["num_key_value_heads"] is not None else heads
    hidden = model["intermediate_size"] if model["intermediate_size"] is not None else 4 * width
    head_size = width // heads
    attention = width * (heads + 2 * kv_heads) * head_size + width * width
    feed_forward = width * hidden * (3 if model["activation"] == "swiglu" else 2)
    return layers * (attention + feed_forward) + width * model["vocab_size"]


def parameters_of(model: Mapping[str, Any]) -> int:
    """Return a model's size by its shape, without norms, biases and position embeddings: below a percent."""
    untied = not model.get("tie_word_embeddings", True)
    return matrix_weights(model) + untied * model["hidden_size"] * model["vocab_size"]


def parameters_of_layers(layers: float, width: float, weights: int = USUAL_WEIGHTS) -> float:
    """Return roughly the size of so many layers, at `weights` x width² each."""
    return weights * layers * width**2


def flops_per_token_of_size(parameters: float, layers: float | None, width: float | None, seq_len: float) -> float:
    """Return model FLOPs per token where no more than a model's size is known: 6 x parameters (Kaplan et al. 2020).

    Causal attention is counted where layers and width are known. Six times all parameters counts an embedding as if
    it were a product, which for a small model is some percent too much.
    """
    attended = 0.0 if layers is None or width is None else layers * 2 * 2 * width * (seq_len + 1) / 2
    return PASSES * (2 * parameters + attended)


def training_flops_per_token(model: Mapping[str, Any], seq_len: int) -> float:
    """Return the model FLOPs of forward and backward per token, a multiply-add counted as two.

    After Chowdhery et al. 2022 (PaLM, appendix B), with causal attention counted once: a token attends to
    (seq_len + 1) / 2 positions on average, not to seq_len.

        3 x (2 x matrix weights + layers x 2 products x 2 x width x (seq_len + 1) / 2)

    Matrix weights are `matrix_weights`; the embedding is a look-up. Norms, activations, softmax, the optimizer and
    whatever activation checkpointing recomputes are left out: they are not what peak figures are about.

    Args:
        model: the `model` part of a record's config.
        seq_len: tokens in a training sequence.
    """
    attended = model["num_hidden_layers"] * 2 * 2 * model["hidden_size"] * (seq_len + 1) / 2
    return PASSES * (2 * matrix_weights(model) + attended)
