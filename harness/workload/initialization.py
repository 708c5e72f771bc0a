"""Initial weights from per-parameter seeds: the same bits for every device, world size and sharding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from harness.config import ModelConfig
from harness.workload.model import Transformer
from harness.workload.philox import approximately_normal, stream_key
from harness.workload.weights import WeightFiles

RESIDUAL_OUTPUTS = ("attention.out.weight", "feed_forward.down.weight")


def build_model(
    config: ModelConfig,
    seed: int,
    device: torch.device,
    *,
    shard: Callable[[Transformer], None] | None = None,
    dtype: torch.dtype = torch.float32,
    heartbeat: Callable[[], None] = lambda: None,
    weights: WeightFiles | None = None,
) -> Transformer:
    """Return the model on `device` with its initial weights. The host holds at most one parameter at a time.

    Args:
        shard: shards the parameters, on the meta device; only this rank's rows of them are then generated.
        dtype: type in which the weights are stored; they are generated in float32.
        heartbeat: called after each parameter.
        weights: files that hold the initial weights; None generates random ones.

    Raises:
        DataError: the files do not hold this model.
    """
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    if weights is not None:
        weights.check({name: parameter.shape for name, parameter in model.named_parameters()})
    if shard is not None:
        shard(model)
    # to_empty gives each of the two names of a tied parameter its own storage.
    model.to_empty(device=device)
    if config.tie_word_embeddings:
        model.head.weight = model.embedding.weight
    initialize(model, config, seed, heartbeat, weights)
    return model


def initialize(
    model: Transformer,
    config: ModelConfig,
    seed: int,
    heartbeat: Callable[[], None] = lambda: None,
    weights: WeightFiles | None = None,
) -> None:
    """Set all parameters to their initial values, in place; of a sharded model, this rank's rows of them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local, rows = own_rows(parameter)
            if weights is None:
                local.copy_(initial_value(name, parameter.shape, config, seed, rows))
            else:
                local.copy_(weights.value(name, parameter.shape, rows))
            heartbeat()


def own_rows(parameter: torch.Tensor) -> tuple[torch.Tensor, range]:
    """Return this rank's shard of a parameter, which shares its storage, and the range of its rows."""
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

    Matrices and embeddings have the standard deviation `initializer_range`; with `scaled_residual_init` the two
    projections onto the residual stream have initializer_range / sqrt(2 x layers) (Radford et al. 2019). Biases are
    zero, norm weights one. A row has the same bits whether it is generated alone or with all others.
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
