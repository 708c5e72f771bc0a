"""Initial weights from per-parameter seeds: the same bits whatever the device, the world size or the sharding."""

from __future__ import annotations

import math

import numpy as np
import torch

from harness.config import ModelConfig
from harness.workload.model import Transformer
from harness.workload.random import approximately_normal, stream_key

RESIDUAL_OUTPUTS = ("attention.out.weight", "feed_forward.down.weight")


def build_model(config: ModelConfig, seed: int, device: torch.device) -> Transformer:
    """Return the model on `device` with its initial weights. At most one parameter is ever held on the host."""
    with torch.device("meta"):
        model = Transformer(config)
    # Tied weights are one parameter; to_empty would give each of the two names storage of its own.
    model.to_empty(device=device)
    if config.tied_embeddings:
        model.head.weight = model.embedding.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, config, seed))
    return model


def initial_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> torch.Tensor:
    """Return one parameter's initial value: float32, on the CPU.

    Matrices and embeddings are drawn with `init_std` (the two projections that end on the residual stream with
    init_std / sqrt(2 x layers) if `scaled_residual_init`), biases are zero, norm weights one.
    """
    if len(shape) < 2:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    std = config.init_std
    if config.scaled_residual_init and name.endswith(RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * config.layers)
    values = np.empty(math.prod(shape), dtype=np.float32)
    filled = 0
    for chunk in approximately_normal(stream_key(seed, "weights", name), values.size, std):
        values[filled : filled + chunk.size] = chunk
        filled += chunk.size
    return torch.from_numpy(values).view(shape)
