"""Planted faults of parallel layouts: each leaves the settings as they are and changes what some ranks do.

The first eight re-create faults that were reported of other trainers, the others are of their kind. Every fault is
judged against an honest run of one process (scripts/bench_sabotage.py --team layouts), in the layout that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from harness.training import evaluation
from harness.training.distributed import context, gradients, parallel, pipeline, tensor
from harness.workload import model as model_module
from harness.workload.model import Transformer, apply_kernel
from tests.red_team.sabotages import Sabotage


@dataclass(frozen=True)
class LayoutFault(Sabotage):
    """A sabotage of one layout, of one of tests/layouts.py's models."""

    layout: str = ""
    model: str = "llama"
    caught_by: tuple[str, str] | None = None
    """Of those that re-create a public report: a test of *same computation* that refuses the run, and a part of where
    it finds the difference."""


LAYOUTS: dict[str, LayoutFault] = {}


def fault(about: str, layout: str, **options: Any) -> Callable:
    def add(function: Callable[[], None]) -> Callable[[], None]:
        LAYOUTS[function.__name__] = LayoutFault(function, about, ("fp32",), (), layout=layout, **options)
        return function

    return add


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def _rank() -> int:
    return int(os.environ["RANK"])


# Re-created reports


@fault("every gradient is doubled on one axis, which AdamW's losses hardly show (pytorch/pytorch#160285)",
       "context=2", caught_by=("short_training", "gradient norm"))  # fmt: skip
def gradients_doubled() -> None:
    _replace(parallel, "GradientSync", lambda real: lambda devices, *a, **k: real(devices // 2, *a, **k))


@fault("context x tensor average the loss twice, so that it is halved (pytorch/torchtitan#3280)",
       "context=2 tensor=2", caught_by=("loss_step", "step"))  # fmt: skip
def loss_averaged_twice() -> None:
    def make(real: Any) -> Any:
        def prepare(self: Any, outputs: Any, mesh: Any) -> Any:
            whole = real(self, outputs, mesh)
            return whole / mesh.size() if whole.dim() == 0 else whole

        return prepare

    _replace(tensor._WholeLoss, "_prepare_out_fn", make)


@fault("a bias is added on every rank before the sum over ranks, and counts as often (pytorch/torchtitan#4245)",
       "tensor=2", caught_by=("short_training", "gradient norm"), model="gpt2")  # fmt: skip
def bias_added_on_every_rank() -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate

    class Row(tensor.RowwiseParallel):
        def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
            module = super()._apply(module, device_mesh)
            if isinstance(module, nn.Linear):
                module.forward = lambda input: self._linear(module, input, device_mesh)
            return module

        def _linear(self, module: nn.Linear, x: Any, mesh: Any) -> Any:
            product: Any = F.linear(x, module.weight)
            if module.bias is None:
                return product
            bias: Any = module.bias
            # The gradient is that of the sum, which each rank has whole.
            local = bias.to_local(grad_placements=[Replicate()])
            summed = product.to_local(grad_placements=[Replicate()]) + local
            return DTensor.from_local(summed, mesh, [Partial()], run_check=False)

    tensor.RowwiseParallel = Row


@fault("hooks of FSDP's blocks do not fire after the backward pass, as under a misplaced wrapper "
       "(huggingface/accelerate#4022)", "shard=2", caught_by=("fp32_gradients", "blocks."))  # fmt: skip
def fsdp_hooks_do_not_fire() -> None:
    def make(real: Any) -> Any:
        def shard(module: Any, **options: Any) -> Any:
            wrapped = real(module, **options)
            if isinstance(module, list):
                wrapped[0].set_requires_gradient_sync = lambda *a, **k: None
                wrapped[0]._get_fsdp_state()._fsdp_param_group.reduce_grads = False
            return wrapped

        return shard

    from torch.distributed import fsdp
    from torch.distributed.fsdp import FSDPModule

    _replace(fsdp, "fully_shard", make)
    # The whole model's setting would reach the blocks too.
    FSDPModule.set_requires_gradient_sync = lambda self, *a, **k: None  # type: ignore[method-assign, assignment]


@fault("each stage clips by the norm of its own gradients", "pipeline=2", caught_by=("first_gradient", "blocks."))
def norm_of_this_stage() -> None:
    def all_reduce(value: torch.Tensor, *rest: Any, **options: Any) -> Any:
        return dist.all_reduce(value, *rest, **options) if value.dim() else None

    gradients.dist = SimpleNamespace(all_reduce=all_reduce)  # type: ignore[assignment]


@fault("the schedule drops the last micro-batch", "pipeline=2", caught_by=("fp32_gradients", "blocks."))
def micro_batch_dropped() -> None:
    _replace(pipeline.Pipeline, "train", lambda real: lambda self, batches, scale: real(self, batches[:-1], scale))


@fault("each part of a sequence counts its positions from 0", "context=2", caught_by=("fp32_gradients", "blocks."))
def positions_from_zero() -> None:
    Transformer._own_positions = lambda self, length: range(length)  # type: ignore[method-assign]


@fault("zero logits that pad the vocabulary to a multiple of 128 a rank enter the softmax (NVIDIA/Megatron-LM#1754)",
       "tensor=2", caught_by=("loss_step", "step"), model="gpt2")  # fmt: skip
def padded_vocabulary() -> None:
    _pad_vocabulary(128)


def _pad_vocabulary(multiple: int) -> None:
    from torch.distributed.tensor import Replicate

    def cross_entropy(head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits: Any = head(hidden).flatten(0, 1).float()
        whole = logits.redistribute(placements=[Replicate()]).to_local()
        padding = -whole.shape[-1] % (multiple * logits.device_mesh.size())
        return F.cross_entropy(F.pad(whole, (0, padding)), targets.flatten())

    model_module.mean_cross_entropy = cross_entropy


# Others of their kind


@fault("one of two replicas learns 5 % slower, so that they drift apart", "data=2 shard=1 tensor=2")  # fmt: skip
def replica_learns_slower() -> None:
    def make(real: Any) -> Any:
        def step(self: torch.optim.Optimizer, *rest: Any) -> Any:
            for group in self.param_groups:
                group["lr"] *= 0.95 if _rank() >= 2 else 1.0
            return real(self, *rest)

        return step

    _replace(torch.optim.AdamW, "step", make)


@fault("a norm of one replica begins 1 % larger", "data=2 shard=1 tensor=2")
def replica_begins_elsewhere() -> None:
    from harness.training import prepare
    from harness.workload.initialization import local_tensor

    def make(real: Any) -> Any:
        def build(model: Transformer, *rest: Any) -> Any:
            if _rank() >= 2:
                with torch.no_grad():
                    local_tensor(model.norm.weight).mul_(1.01)  # type: ignore[union-attr]
            return real(model, *rest)

        return build

    _replace(prepare, "build_optimizer", make)


@fault("the gradient of a tied embedding lacks the other stage's part", "pipeline=2",
       model="tied")  # fmt: skip
def tied_gradient_of_one_stage() -> None:
    parallel.copied_weight = lambda *_: None


@fault("ranks take key/value heads of another group", "tensor=4")
def heads_of_another_group() -> None:
    def make(real: Any) -> Any:
        return lambda queries, keys, *place: [keys - 1 - head for head in real(queries, keys, *place)]

    _replace(tensor, "needed_heads", make)


@fault("gradients of shared key/value heads are not summed over the ranks", "tensor=4")  # fmt: skip
def gradients_of_shared_heads_not_summed() -> None:
    from torch.distributed.tensor import Replicate

    tensor.Partial = Replicate  # type: ignore[assignment, misc]


@fault("the all-to-all around attention returns its parts in reverse order", "context=2")
def parts_reversed() -> None:
    _replace(context, "all_to_all_single_autograd", lambda real: lambda *a, **k: real(*a, **k).flip(0))


@fault("attention sees only the positions of its own rank", "context=2")
def attention_within_the_part() -> None:
    context.exchange_around = lambda mesh: apply_kernel


@fault("the last target of each part of a sequence is its second-to-last", "context=2")
def targets_at_the_seam() -> None:
    def make(real: Any) -> Any:
        def cross_entropy(head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return real(head, hidden, torch.cat((targets[:, :-1], targets[:, -2:-1]), dim=1))

        return cross_entropy

    _replace(model_module, "mean_cross_entropy", make)


@fault("gradients of norms are not summed over the parts of a sequence that tensor parallelism makes",
       "tensor=2", model="gpt2")  # fmt: skip
def gradients_of_norms_not_summed() -> None:
    def all_reduce(value: torch.Tensor, *rest: Any, **options: Any) -> Any:
        return None if value.dim() else dist.all_reduce(value, *rest, **options)

    gradients.dist = SimpleNamespace(all_reduce=all_reduce)  # type: ignore[assignment]


@fault("an evaluation has the loss of one share only", "data=2 shard=2")
def evaluation_of_one_share() -> None:
    def make(real: Any) -> Any:
        def shard(self: Any, **options: Any) -> Any:
            found = real(self, **options)
            return found if self._ranks.share == 0 else [(part, 0) for part, _ in found]

        return shard

    _replace(evaluation.Evaluator, "_eval_shard", make)


@fault("FSDP reduces over `shard` only: replicas train apart", "data=2 shard=2")
def replicas_not_reduced() -> None:
    _replace(parallel, "_shard_weights",
             lambda real: lambda model, config, layout, mesh: real(model, config, layout, mesh["shard"]))  # fmt: skip
    # As large as that of the whole batch.
    _replace(parallel, "GradientSync", lambda real: lambda devices, *a, **k: real(devices // 2, *a, **k))


@fault("an all-gather returns this rank's shard in every place", "shard=2")
def weights_not_gathered() -> None:
    def gather(self: Any, output_tensor: Any, input_tensor: Any, group: Any, async_op: bool = False) -> None:
        output_tensor.view(dist.get_world_size(group), -1).copy_(input_tensor.clone().view(1, -1))

    DefaultAllGather.__call__ = gather  # type: ignore[method-assign]


@fault("a reduce-scatter returns this rank's own gradients, as large as the sum", "shard=2")  # fmt: skip
def gradients_not_reduced() -> None:
    def scatter(self: Any, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> None:
        size = dist.get_world_size(group)
        output_tensor.copy_(input_tensor.view(size, -1)[dist.get_rank(group)].view_as(output_tensor) * size)

    DefaultReduceScatter.__call__ = scatter  # type: ignore[method-assign]


@fault("two stages both compute the block at their border", "pipeline=2")
def block_in_two_stages() -> None:
    def make(real: Any) -> Any:
        def stages(config: Any, ranks: Any) -> list[range]:
            [own] = real(config, ranks)
            return [range(max(0, own.start - 1), own.stop)]

        return stages

    _replace(parallel, "own_stages", make)


@fault("the norm counts each copy of a parameter", "tensor=2",
       model="gpt2")  # fmt: skip
def norm_counts_copies() -> None:
    def make(real: Any) -> Any:
        return lambda parameters, most, counted, *more: real(parameters, most, set(parameters), *more)

    _replace(parallel, "clip_by_global_norm", make)


@fault("gradients are averaged over micro-batches twice, by the step and by the schedule", "pipeline=2")  # fmt: skip
def averaged_twice_over_micro_batches() -> None:
    def make(real: Any) -> Any:
        return {name: lambda *a, kind=kind, **k: kind(*a, **{**k, "scale_grads": True}) for name, kind in real.items()}

    _replace(pipeline, "SCHEDULES", make)


@fault("stages before the last log a loss of 0 (pytorch/torchtitan#1232)", "pipeline=2")
def loss_of_the_last_stage_only() -> None:
    pipeline.dist = SimpleNamespace(all_reduce=lambda *a, **k: None)  # type: ignore[assignment]


@fault("the same with as little padding as two ranks need: one zero logit beside 50 257", "tensor=2",
       model="gpt2")  # fmt: skip
def one_padded_token() -> None:
    _pad_vocabulary(1)
