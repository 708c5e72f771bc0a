"""Initial weights from per-parameter seeds: the same bits whatever the device, the world size or the sharding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from harness.config import ModelConfig
from harness.workload.model import Transformer
from harness.workload.philox import approximately_normal, stream_key

RESIDUAL_OUTPUTS = ("attention.out.weight", "feed_forward.down.weight")


def build_model(
    config: ModelConfig,
    seed: int,
    device: torch.device,
    *,
    shard: Callable[[Transformer], None] | None = None,
    dtype: torch.dtype = torch.float32,
    heartbeat: Callable[[], None] = lambda: None,
) -> Transformer:
    """Return the model on `device` with its initial weights. At most one parameter is ever held on the host.

    Args:
        shard: makes shards of the parameters while they have no storage yet; of a sharded parameter only this
            rank's rows are ever made.
        dtype: type in which the weights are kept; they are made in float32.
        heartbeat: called for every parameter that is made.
    """
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    if shard is not None:
        shard(model)
    # Tied weights are one parameter; to_empty would give each of the two names storage of its own.
    model.to_empty(device=device)
    if config.tie_word_embeddings:
        model.head.weight = model.embedding.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local, rows = own_rows(parameter)
            local.copy_(initial_value(name, parameter.shape, config, seed, rows))
            heartbeat()
    return model


def own_rows(parameter: torch.Tensor) -> tuple[torch.Tensor, range]:
    """Return this rank's part of a parameter, which shares its storage, and which of its rows that is."""
    rows = range(parameter.shape[0])
    for dimension, placement in enumerate(getattr(parameter, "placements", ())):
        if placement.is_replicate():
            continue
        assert placement.is_shard(0), "parameters are sharded by rows"
        # As torch.chunk cuts: the last shards may be shorter, or empty.
        mesh: Any = parameter.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
        each = -(-len(rows) // mesh.size(dimension))
        first = mesh.get_local_rank(dimension) * each
        rows = rows[first : first + each]
    to_local = getattr(parameter, "to_local", None)
    local = parameter if to_local is None else to_local()
    assert local.shape[0] == len(rows), "the shard is not the one that torch.chunk gives"
    return local, rows


def initial_value(
    name: str, shape: torch.Size, config: ModelConfig, seed: int, rows: range | None = None
) -> torch.Tensor:
    """Return one parameter's initial value, or some rows of it: float32, on the CPU.

    Matrices and embeddings are drawn with `initializer_range` (the two projections that end on the residual stream with
    initializer_range / sqrt(2 x layers) if `scaled_residual_init`), biases are zero, norm weights one. Rows are the
    same whether they are made alone or with all the others.
    """
    rows = range(shape[0]) if rows is None else rows
    part = (len(rows), *shape[1:])
    if len(shape) < 2:
        return torch.zeros(part) if name.endswith("bias") else torch.ones(part)
    std = config.initializer_range
    if config.scaled_residual_init and name.endswith(RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * config.num_hidden_layers)
    values = np.empty(math.prod(part), dtype=np.float32)
    filled = 0
    first = rows.start * math.prod(shape[1:])
    for chunk in approximately_normal(stream_key(seed, "weights", name), values.size, std, first):
        values[filled : filled + chunk.size] = chunk
        filled += chunk.size
    return torch.from_numpy(values).view(part)
