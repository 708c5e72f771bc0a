"""Copies of a parameter on several ranks: nothing exchanges them after the start, so that their equality is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from harness.errors import RunFailed
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.gradients import COPIED, copied_weight
from harness.workload.model import Transformer
from harness.workload.sketch import own_sums

# Relative, of the 2-norm. Copies have the same bits on equal devices; where hosts differ, their updates differ by
# rounding, 6e-8 a step in either direction, which a million steps bring to 6e-5.
MAX_DISTANCE = 1e-4


def check_copies(model: Transformer, ranks: Ranks, device: torch.device) -> None:
    """Check that ranks with the same part of a parameter have the same values of it. Collective.

    Args:
        device: of collectives; parameters may be kept on the host.

    Raises:
        RunFailed: on every rank, naming the parameter whose copies lie the farthest apart, and the axis.
    """
    if ranks.size == 1:
        return
    by_axes: dict[tuple[str, ...], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        by_axes.setdefault(tuple(_copied_axes(parameter, ranks)), {})[name] = parameter
    found = []
    for axes, parameters in by_axes.items():
        groups = [_group(axis, ranks, device) for axis in axes]
        found.append((*_farthest(parameters, groups, device), " and ".join(axes)))
    copied = copied_weight(model, ranks, device.type) if ranks.layout.pipeline > 1 else None
    if copied is not None:
        weight, group = copied
        found.append((*_farthest({COPIED: weight}, [group], device), "pipeline"))
    distance, name, axes = max(worst for rank in ranks.gather(found) for worst in rank)
    if not distance <= MAX_DISTANCE:
        raise RunFailed(
            f"copies of {name} on ranks of {axes} differ by {distance:.1e} of its norm after the training, expected at "
            f"most {MAX_DISTANCE:.0e}: their updates were not the same; check the devices, or report it as a bug",
            status="rank_mismatch",
            shared=True,
        )


def _copied_axes(parameter: nn.Parameter, ranks: Ranks) -> list[str]:
    """Return the axes, of several ranks, along which a parameter is not cut."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    axes = () if mesh is None else mesh.mesh_dim_names
    placements: Any = getattr(parameter, "placements", ())
    cut = {axis for axis, placement in zip(axes, placements, strict=True) if not placement.is_replicate()}
    layout = ranks.layout
    sizes = {"data": layout.data, "shard": layout.shard * layout.context, "tensor": layout.tensor}
    return [axis for axis, size in sizes.items() if size > 1 and axis not in cut]


def _group(axis: str, ranks: Ranks, device: torch.device) -> Any:
    # DDP needs no mesh.
    return dist.group.WORLD if ranks.layout.is_replicated else ranks.weight_mesh(device.type)[axis].get_group()


@torch.no_grad()
def _farthest(parameters: dict[str, nn.Parameter], groups: Sequence[Any], device: torch.device) -> tuple[float, str]:
    """Return the largest distance of copies over the ranks of some groups, relative to the norm, and the parameter.

    It is estimated from random projections, as `Sketch.distance` does: exact if two ranks differ.
    """
    low = torch.stack([own_sums(name, parameter) for name, parameter in parameters.items()]).to(device)
    high = low.clone()
    for group in groups:
        dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
        dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    apart = (high - low)[:, 1:].square().mean(dim=1).sqrt()
    distances = (apart / high[:, 0].sqrt().clamp(min=torch.finfo(torch.float32).tiny)).tolist()
    return max(zip(distances, parameters, strict=True))
