"""Initial weights from per-parameter seeds: the same bits for every device, world size and sharding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from harness.config import ModelConfig
from harness.workload.model import Transformer, parameter_shapes
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
    stages: Sequence[range] | None = None,
    residual_dtype: torch.dtype | None = None,
) -> Transformer:
    """Return the model on `device` with its initial weights. The host holds at most one parameter at a time.

    Args:
        device: of the meta device the model gets shapes alone.
        shard: shards the parameters, on the meta device; only this rank's rows of them are then generated.
        dtype: type in which the weights are stored; they are generated in float32.
        heartbeat: called after each parameter.
        weights: files that hold the initial weights; None generates random ones.
        stages: numbers of the blocks of each stage that this rank has of a pipeline; None builds all.
        residual_dtype: dtype of the residual stream; None: that of the weights.

    Raises:
        DataError: the files do not hold this model.
    """
    with torch.device("meta"):
        model = Transformer(config, stages).to(dtype)
    model.set_residual_dtype(residual_dtype)
    if weights is not None:
        weights.check(parameter_shapes(config))
    if shard is not None:
        shard(model)
    # to_empty gives each of the two names of a tied parameter its own storage.
    model.to_empty(device=device)
    model.tie_weights()
    if device.type != "meta":
        initialize(model, config, seed, heartbeat, weights)
    return model


def initialize(
    model: Transformer,
    config: ModelConfig,
    seed: int,
    heartbeat: Callable[[], None] = lambda: None,
    weights: WeightFiles | None = None,
) -> None:
    """Set all parameters to their initial values, in place; of a distributed model, this rank's part of them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local, rows, columns = own_part(parameter)
            if weights is None:
                values = initial_value(name, parameter.shape, config, seed, rows)
            else:
                values = weights.value(name, parameter.shape, rows)
            local.copy_(values[:, columns.start : columns.stop] if values.dim() > 1 else values)
            heartbeat()


class OwnPart(NamedTuple):
    """A rank's part of a tensor of one or two dimensions."""

    local: torch.Tensor
    """Shares the tensor's storage."""
    rows: range
    columns: range
    """`range(1)` of a vector."""


def own_part(tensor: torch.Tensor) -> OwnPart:
    """Return this rank's part of a tensor: of one that is not distributed, the whole."""
    cut = [range(tensor.shape[0]), range(tensor.shape[1]) if tensor.dim() > 1 else range(1)]
    placements = list(enumerate(getattr(tensor, "placements", ())))
    # FSDP's strided shards, on the mesh's first dimensions, are cut from what tensor parallelism has left.
    for dimension, placement in sorted(placements, key=lambda pair: hasattr(pair[1], "split_factor")):
        if placement.is_replicate():
            continue
        # As torch.chunk cuts: the last parts may be shorter, or empty.
        mesh: Any = tensor.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
        whole = cut[placement.dim]
        each = -(-len(whole) // mesh.size(dimension))
        first = mesh.get_local_rank(dimension) * each
        cut[placement.dim] = whole[first : first + each]
    local = local_tensor(tensor)
    rows, columns = cut
    assert local.shape == (len(rows), len(columns))[: tensor.dim()], "the part is not the one that torch.chunk gives"
    return OwnPart(local, rows, columns)


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this rank holds of a DTensor, which shares its storage, or the tensor itself."""
    # Not by its type: importing DTensor takes a second, which a run on one device saves.
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


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
