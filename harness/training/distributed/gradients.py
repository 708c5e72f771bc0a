"""Gradients that are spread over ranks: summed, checked for overflow, and clipped by their one global norm."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from harness.backends.step import pieces_for_norm
from harness.training.distributed.collectives import Ranks
from harness.workload.initialization import local_tensor, own_part
from harness.workload.model import Transformer

# The parameter that first and last stage of a pipeline both have, with tied embeddings.
COPIED = "embedding.weight"


@torch.no_grad()
def share_overflow(parameters: Sequence[nn.Parameter], group: Any) -> None:
    """Give every rank of a group a gradient that is not finite, if one has one: all have to skip the same updates."""
    local = [local_tensor(parameter.grad) for parameter in parameters if parameter.grad is not None]
    overflowed = (~torch.isfinite(torch.nn.utils.get_total_norm(local))).float().to(local[0].device)
    dist.all_reduce(overflowed, group=group)
    first = next(part for part in local if part.numel())
    first.view(-1)[:1].add_(torch.where(overflowed > 0, torch.inf, 0.0))


@torch.no_grad()
def clip_by_global_norm(
    parameters: Sequence[nn.Parameter],
    most: float,
    counted: Container[nn.Parameter],
    everyone: Any,
    copy: tuple[nn.Parameter, Any] | None = None,
) -> torch.Tensor:
    """Scale gradients that are spread over ranks so that their 2-norm is at most `most`, as clip_grad_norm_ does.

    Args:
        counted: the parameters that this rank counts: of copies on several ranks, one does.
        everyone: the group of all ranks.
        copy: a parameter that two stages have, and their group: its gradient is the sum of both.

    Returns:
        The norm before, the same on every rank: one collective, after the sums that some gradients need.
    """
    _sum_partial_gradients(parameters)
    if copy is not None:
        parameter, group = copy
        assert parameter.grad is not None
        dist.all_reduce(local_tensor(parameter.grad), group=group)
    own = [parameter for parameter in parameters if parameter.grad is not None]
    local = [own_part(parameter.grad).local for parameter in own if parameter.grad is not None]
    parts = [part for part, parameter in zip(local, own, strict=True) if parameter in counted]
    square = torch.nn.utils.get_total_norm(pieces_for_norm(parts)).to(local[0].device).square()
    dist.all_reduce(square, group=everyone)
    norm = square.sqrt()
    factor = torch.clamp(most / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(local, factor)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def copied_weight(model: Transformer, ranks: Ranks, device_type: str) -> tuple[nn.Parameter, Any] | None:
    """Return the weight that first and last stage both have, with tied embeddings, and the group of the two ranks.

    Collective. None on every other rank.
    """
    if not model.config.tie_word_embeddings:
        return None
    group = ranks.first_and_last_stage(device_type)
    weight = None if model.embedding is None else model.embedding.weight
    return (weight, group) if isinstance(weight, nn.Parameter) and group is not None else None


def _sum_partial_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients of which each rank of the tensor axis has a part. Where FSDP holds the weights, it has done so.

    Those of norms, and of biases that are added after a sum over ranks, are small: one collective for all. That of the
    embedding is summed into the parts of its weight.
    """
    from torch.distributed.tensor import DTensor

    partial = {parameter: parameter.grad for parameter in parameters if isinstance(parameter.grad, DTensor)
               and parameter.grad.placements != _placements(parameter)}  # fmt: skip
    small = [parameter for parameter in partial if own_part(parameter).local.shape == parameter.shape]
    # In the order of the parameters, the same on every rank.
    for parameter, gradient in partial.items():
        if parameter not in set(small):
            parameter.grad = gradient.redistribute(placements=_placements(parameter))
    if small:
        local = [partial[parameter].to_local() for parameter in small]
        flat = torch.cat([part.flatten() for part in local])
        mesh = partial[small[0]].device_mesh
        dist.all_reduce(flat, group=mesh.get_group("tensor"))
        for parameter, part in zip(small, flat.split([part.numel() for part in local]), strict=True):
            whole = part.view(parameter.shape)
            parameter.grad = DTensor.from_local(whole, mesh, _placements(parameter), run_check=False)


def _placements(parameter: nn.Parameter) -> Any:
    return getattr(parameter, "placements", ())
