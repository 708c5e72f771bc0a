"""Context parallelism: each rank has a part of every sequence, and attention has all of it for a part of the heads.

Before attention an all-to-all trades positions for heads, and after it back (Jacobs et al. 2023, DeepSpeed-Ulysses). So
any attention kernel does, and each rank has the same share of the causal scores.
"""

from __future__ import annotations

import torch
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh

from harness.workload.model import Attention, Kernel, Transformer


def parallelize_context(model: Transformer, mesh: DeviceMesh) -> None:
    """Let a model work on this rank's part of each sequence, in place.

    Args:
        mesh: of one dimension.
    """
    for stage in (model, *model.stages):
        stage.part_of_sequence = (mesh.get_local_rank(), mesh.size())
    for module in model.modules():
        if isinstance(module, Attention):
            module.exchange = exchange_around(mesh)


def exchange_around(mesh: DeviceMesh) -> Kernel:
    """Return a function that calls an attention kernel with all positions of a part of the heads.

    It takes the kernel, q [B, H, S / N, D], k and v [B, K, S / N, D] of N ranks, and returns [B, H, S / N, D].
    """
    group, ranks = mesh.get_group(), mesh.size()

    def trade(x: torch.Tensor) -> torch.Tensor:
        """[N, ...] -> [N, ...]: part i goes to rank i, and comes from it."""
        return all_to_all_single_autograd(x.contiguous(), None, None, group)

    def to_heads(x: torch.Tensor) -> torch.Tensor:
        """[B, H, S / N, D] -> [B, H / N, S, D]"""
        return torch.cat(trade(x.unflatten(1, (ranks, -1)).movedim(1, 0)).unbind(), dim=2)

    def to_positions(x: torch.Tensor) -> torch.Tensor:
        """[B, H / N, S, D] -> [B, H, S / N, D]"""
        return torch.cat(trade(x.unflatten(2, (ranks, -1)).movedim(2, 0)).unbind(), dim=1)

    def attend(kernel: Kernel, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if k.shape[1] % ranks:
            # Not repeat_interleave, which on NPU is a kernel of its own, with a gradient of its own.
            copies = q.shape[1] // k.shape[1]
            k, v = (x.unsqueeze(2).expand(-1, -1, copies, -1, -1).flatten(1, 2) for x in (k, v))
        return to_positions(kernel(to_heads(q), to_heads(k), to_heads(v)))

    return attend
