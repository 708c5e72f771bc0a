"""Copies of a parameter on several ranks: nothing exchanges them after the start, so that their equality is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from harness.errors import RunFailed
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.gradients import copied_weight
from harness.workload.model import Transformer
from harness.workload.sketch import own_sums

# Relative, of the 2-norm. Copies have the same bits on equal devices; where hosts differ, their updates differ by
# rounding, 6e-8 a step in either direction, which a million steps bring to 6e-5.
MAX_DISTANCE = 1e-4


def check_copies(model: Transformer, ranks: Ranks) -> None:
    """Check that ranks with the same part of a parameter have the same values of it. Collective.

    Raises:
        RunFailed: on every rank, naming the parameter whose copies lie the farthest apart, and the axis.
    """
    if ranks.size == 1:
        return
    named = dict(model.named_parameters())
    by_axes: dict[str, list[str]] = {}
    for name, parameter in named.items():
        by_axes.setdefault(" and ".join(_copied_axes(parameter, ranks)), []).append(name)
    found = []
    for axes, names in by_axes.items():
        groups = [_group(named[names[0]], axis) for axis in axes.split(" and ")] if axes else []
        found.append((*_farthest({name: named[name] for name in names}, groups), axes))
    copied = copied_weight(model, ranks) if ranks.layout.pipeline > 1 else None
    if copied is not None:
        weight, group = copied
        found.append((*_farthest({"embedding.weight": weight}, [group]), "pipeline"))
    distance, name, axes = max(worst for rank in ranks.gather(found) for worst in rank)
    if not distance <= MAX_DISTANCE:
        raise RunFailed(
            f"copies of {name} on ranks of {axes} differ by {distance:.1e} of its norm after the training, expected at "
            f"most {MAX_DISTANCE:.0e}: their updates were not the same; check the devices, or report it as a bug",
            status="rank_mismatch",
            shared=True,
        )


def _copied_axes(parameter: nn.Parameter, ranks: Ranks) -> list[str]:
    """Return the axes of which every rank has the same part of a parameter."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return ["data"] if ranks.layout.is_replicated else []
    placements: Any = getattr(parameter, "placements", ())
    return [axis for axis, placement in zip(mesh.mesh_dim_names, placements, strict=True) if placement.is_replicate()]


def _group(parameter: nn.Parameter, axis: str) -> Any:
    mesh: Any = getattr(parameter, "device_mesh", None)
    # Without a mesh DDP has replicas on all ranks.
    return dist.group.WORLD if mesh is None else mesh.get_group(axis)


@torch.no_grad()
def _farthest(parameters: dict[str, nn.Parameter], groups: Sequence[Any]) -> tuple[float, str]:
    """Return the largest distance of copies over the ranks of some groups, relative to the norm, and the parameter.

    It is estimated from random projections, as `Sketch.distance` does: exact if two ranks differ.
    """
    low = torch.stack([own_sums(name, parameter) for name, parameter in parameters.items()])
    high = low.clone()
    for group in groups:
        dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
        dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    apart = (high - low)[:, 1:].square().mean(dim=1).sqrt()
    distances = (apart / high[:, 0].sqrt().clamp(min=torch.finfo(torch.float32).tiny)).tolist()
    return max(zip(distances, parameters, strict=True))
