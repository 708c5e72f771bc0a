"""Tensor parallelism: how each module's weights and activations are cut over the ranks of one axis of the mesh.

Megatron-LM's cut (Shoeybi et al. 2019; Korthikanti et al. 2022 for sequences), by PyTorch's engine: projections to
heads and hidden features by rows, those back by columns, the residual stream by positions, embedding and head by
vocabulary, whose last part may be shorter. Of a mixture each rank has some experts whole.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.loss import loss_parallel
from torch.distributed.tensor.parallel.style import ParallelStyle

from harness.config import num_key_value_heads
from harness.workload.experts import Experts
from harness.workload.model import Block, Kernel, Transformer

# Dimensions of [B, S, W] and of [B, heads, S, D].
POSITIONS, HEADS = Shard(1), Shard(1)


def parallelize_tensor(model: Transformer, mesh: DeviceMesh) -> None:
    """Cut a model on the meta device, in place; what it returns is a plain tensor, the same on every rank.

    Args:
        mesh: of one dimension.
    """
    plan: dict[str, ParallelStyle] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=POSITIONS),
        "position": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(0)),
        "norm": SequenceParallel(use_local_output=True),
        "head": ColwiseParallel(input_layouts=POSITIONS, output_layouts=Shard(-1), use_local_output=False),
    }
    # Of a pipeline's stage, what it has.
    plan = {name: style for name, style in plan.items() if getattr(model, name) is not None}
    parallelize_module(model, mesh, plan)
    # Each of the two has got a parameter of its own, of which FSDP would make two shards.
    model.tie_weights()
    for block in model.blocks:
        assert isinstance(block, Block)
        parallelize_module(block, mesh, _block_plan(model, block, mesh))
    for stage in model.stages:
        parallelize_module(stage, mesh, _WholeLoss())
    _use_parallel_loss()


@cache
def _use_parallel_loss() -> ExitStack:
    """Compute losses, and their gradients, of logits that are cut by vocabulary as they lie, from now on.

    Nothing else has such tensors. The stack is kept, since the end of the context would be the end of that.
    """
    stack = ExitStack()
    stack.enter_context(loss_parallel())
    return stack


def _block_plan(model: Transformer, block: Block, mesh: DeviceMesh) -> dict[str, ParallelStyle]:
    config = model.config
    queries, keys = config.num_attention_heads, num_key_value_heads(config)
    own_keys = ColwiseParallel() if keys % mesh.size() == 0 else _NeededHeads(queries, keys)
    whole = Replicate()
    plan = {
        "attention_norm": SequenceParallel(use_local_output=True),
        # Gathered once for the three projections.
        "attention": PrepareModuleInput(input_layouts=(POSITIONS, None), desired_input_layouts=(whole, None)),
        "attention.q": ColwiseParallel(),
        "attention.k": own_keys,
        "attention.v": own_keys,
        "attention.out": RowwiseParallel(output_layouts=POSITIONS),
        "feed_forward_norm": SequenceParallel(use_local_output=True),
    }
    if isinstance(block.feed_forward, Experts):
        own = _Matrices(Shard(0), Shard(0))
        plan |= {
            "feed_forward": _OwnExperts(),
            # Each rank's gradient is that of its own experts' choices: their sum is the whole.
            "feed_forward.router": _Matrices(Replicate(), Partial()),
            "feed_forward.up": own,
            "feed_forward.down": own,
        }
        gate: ParallelStyle = own
    else:
        plan |= {
            "feed_forward": PrepareModuleInput(input_layouts=(POSITIONS,), desired_input_layouts=(whole,)),
            "feed_forward.up": ColwiseParallel(),
            "feed_forward.down": RowwiseParallel(output_layouts=POSITIONS),
        }
        gate = ColwiseParallel()
    if block.feed_forward.gate is not None:
        plan["feed_forward.gate"] = gate
    if block.attention.q_norm is not None:
        plan["attention.q_norm"] = plan["attention.k_norm"] = SequenceParallel(
            sequence_dim=HEADS.dim, use_local_output=True
        )
    return plan


def norm_of_part(kernel: Kernel) -> Kernel:
    """Return an RMSNorm kernel that is called with this rank's part of the activations, as a plain tensor."""

    def norm(x: DTensor, weight: DTensor, eps: float) -> DTensor:
        # Each rank's gradient of the weight is that of its own part: their sum is the whole.
        own_weight = weight.to_local(grad_placements=[Partial()])
        return DTensor.from_local(kernel(x.to_local(), own_weight, eps), x.device_mesh, x.placements, run_check=False)

    return norm


class _NeededHeads(ParallelStyle):
    """A projection to keys or values that every rank has whole: it keeps the heads that its own queries need.

    For a number of key/value heads that the ranks do not divide.
    """

    def __init__(self, queries: int, keys: int) -> None:
        super().__init__()
        self._queries, self._keys = queries, keys

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        heads = needed_heads(self._queries, self._keys, device_mesh.size(), device_mesh.get_local_rank())

        def keep(_module: nn.Module, outputs: Any, mesh: DeviceMesh) -> torch.Tensor:
            # Each rank's gradient is that of its own heads: their sum is the whole.
            local = outputs.to_local(grad_placements=[Partial()])
            by_head = local.unflatten(-1, (self._keys, -1))
            return by_head[..., heads, :].flatten(-2)

        return distribute_module(module, device_mesh, output_fn=keep)  # pyright: ignore[reportArgumentType]


def needed_heads(queries: int, keys: int, ranks: int, rank: int) -> list[int]:
    """Return the key/value heads of one rank's query heads: each once if all serve equally many, else one a query."""
    each, group = queries // ranks, queries // keys
    by_query = [query // group for query in range(rank * each, (rank + 1) * each)]
    distinct = sorted(set(by_query))
    served = {by_query.count(head) for head in distinct}
    return distinct if len(served) == 1 else by_query


class _OwnExperts(ParallelStyle):
    """A mixture of which each rank computes some experts, for the choices of all tokens.

    Each rank's output, and gradient of the input, is what its own experts add: their sum is the whole.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, Experts)
        each = module.num_experts // device_mesh.size()
        first = device_mesh.get_local_rank() * each
        module.own = range(first, first + each)

        def gather(_module: nn.Module, inputs: Any) -> torch.Tensor:
            part = DTensor.from_local(inputs[0], device_mesh, [POSITIONS], run_check=False)
            return part.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])

        def scatter(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            total = DTensor.from_local(output, device_mesh, [Partial()], run_check=False)
            return total.redistribute(placements=[POSITIONS]).to_local()

        module.register_forward_pre_hook(gather)
        module.register_forward_hook(scatter)
        return module


class _Matrices(ParallelStyle):
    """The matrices of all experts, of which each rank has those of its own, or all."""

    def __init__(self, placement: Placement, gradient: Placement) -> None:
        super().__init__()
        self._placement, self._gradient = placement, gradient

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def cut(_name: str, part: nn.Module, mesh: DeviceMesh) -> None:
            for name, parameter in part.named_parameters(recurse=False):
                part.register_parameter(name, nn.Parameter(distribute_tensor(parameter, mesh, [self._placement])))

        def local(_module: nn.Module, outputs: Any, _mesh: DeviceMesh) -> torch.Tensor:
            return outputs.to_local(grad_placements=[self._gradient])

        return distribute_module(module, device_mesh, cut, None, local)  # pyright: ignore[reportArgumentType]


class _WholeLoss(PrepareModuleOutput):
    """The model's output, the loss, as a plain tensor."""

    def __init__(self) -> None:
        whole: tuple[Placement, ...] = (Replicate(),)
        super().__init__(output_layouts=whole, desired_output_layouts=whole)

    def _prepare_out_fn(self, outputs: Any, device_mesh: DeviceMesh) -> Any:
        # The logits alone are left as they are. FSDP warns of a module that returns a view.
        return outputs.to_local().clone() if isinstance(outputs, DTensor) and outputs.dim() == 0 else outputs
