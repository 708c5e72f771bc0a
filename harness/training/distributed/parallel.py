"""Parallel layouts of a model: whole on one device, or distributed over a mesh by PyTorch's DDP, FSDP2 and DTensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.analysis.stages import blocks_of_stages
from harness.backends.base import Backend
from harness.backends.step import NO_SYNC, GradientSync, autocast_dtype, residual_dtype
from harness.config import Config
from harness.errors import ConfigError
from harness.layout import Layout
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.communication import allreduce_hook
from harness.training.distributed.gradients import COPIED, clip_by_global_norm, copied_weight, share_overflow
from harness.workload.initialization import build_model
from harness.workload.model import Block, Transformer
from harness.workload.weights import open_weights

# DDP, FSDP and DTensor are imported where they are used: that takes a second, which a run on one device saves.
if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Before, schedules refuse fewer micro-batches than stages, and merge the outputs of all, which losses cannot be.
PIPELINE_TORCH = (2, 13)


@dataclass
class ParallelModel:
    """A model distributed over the ranks."""

    model: Transformer
    """The model itself, with this rank's parameters: whole, or its parts."""
    wrapped: nn.Module
    """The module that the training step calls."""
    counted: dict[str, nn.Parameter]
    """Parameters that this rank counts, by name: of copies on several ranks, one does."""
    grad_sync: GradientSync = NO_SYNC
    as_part: Callable[[torch.Tensor], torch.Tensor] = lambda positions: positions
    """Turns what this rank has of one sequence's activations, [positions, W], into a DTensor of all."""


def parallelize_model(config: Config, backend: Backend, ranks: Ranks, heartbeat: Callable[[], None]) -> ParallelModel:
    """Return the configured model with its initial weights, in the layout of `ranks`.

    `heartbeat` is called for every parameter: initializing a large model takes minutes.

    Raises:
        ConfigError: the layout does not fit the device.
    """
    if uses_mesh(config, ranks):
        model = build_sharded(config, backend.device(), ranks, heartbeat=heartbeat)
        return meshed(config, model, backend, ranks)
    model = build_model(config.model, config.seed, backend.device(), heartbeat=heartbeat, weights=open_weights(config),
                        residual_dtype=residual_dtype(config.precision))  # fmt: skip
    if ranks.world.is_distributed:
        return _ddp(model, backend, ranks)
    return ParallelModel(model, model, dict(model.named_parameters()))


def uses_ddp(config: Config, layout: Layout) -> bool:
    """Return whether DDP replicates the model: `parallel=fsdp` is FSDP even where nothing is left to shard."""
    return layout.is_replicated and config.parallel.name not in ("single", "fsdp")


def uses_mesh(config: Config, ranks: Ranks) -> bool:
    """Return whether parameters are parts of tensors over the mesh."""
    return ranks.world.is_distributed and not uses_ddp(config, ranks.layout)


def _ddp(model: Transformer, backend: Backend, ranks: Ranks) -> ParallelModel:
    from torch.nn.parallel import DistributedDataParallel

    device = backend.device()
    wrapped = DistributedDataParallel(
        model,
        device_ids=None if device.index is None else [device.index],
        # Every rank initializes the same weights itself, as the digests prove.
        init_sync=False,
        # Gradients are views of the buckets, which saves a copy and its memory.
        gradient_as_bucket_view=True,
    )
    wrapped.register_comm_hook(None, allreduce_hook(ranks.meter))
    counted = dict(model.named_parameters()) if ranks.is_main else {}
    sync = GradientSync(ranks.size, no_sync=wrapped.no_sync, after_backward=ranks.meter.end_wait)
    return ParallelModel(model, wrapped, counted, sync)


def meshed(config: Config, model: Transformer, backend: Backend, ranks: Ranks) -> ParallelModel:
    """Return a model that `build_sharded` has built, with what a training step over the mesh needs."""
    from torch.distributed.tensor import DTensor, Shard

    layout, device_type = ranks.layout, backend.device().type

    is_cut = layout.context * layout.tensor > 1
    activations = ranks.activation_mesh(device_type) if is_cut else None

    def as_part(positions: torch.Tensor) -> torch.Tensor:
        assert activations is not None
        return DTensor.from_local(positions, activations, [Shard(0)] * activations.ndim, run_check=False)

    counted = {name: parameter for name, parameter in model.named_parameters() if ranks.counts(parameter)}
    pipeline = copy = None
    if layout.pipeline > 1:
        from harness.training.distributed.pipeline import Pipeline

        stages = ranks.weight_mesh(device_type)["pipeline"]
        pipeline = Pipeline(model.stages, stages, backend.device(), config.parallel.pipeline_schedule,
                            layout.context * layout.tensor, autocast_dtype(config.precision))  # fmt: skip
        copy = copied_weight(model, ranks, device_type)
        if model.is_last and not model.is_first:
            counted.pop(COPIED, None)
    once, everyone = frozenset(counted.values()), ranks.everyone(device_type)
    no_sync, after_eval = _fsdp_hooks(model)
    sync = GradientSync(
        layout.shares * layout.context,
        no_sync,
        after_eval=after_eval,
        pipeline=pipeline,
        share_overflow=lambda parameters: share_overflow(parameters, everyone),
        clip=lambda parameters, most: clip_by_global_norm(parameters, most, once, everyone, copy),
    )
    return ParallelModel(model, model, counted, sync, as_part if is_cut else lambda positions: positions)


def _fsdp_hooks(model: Transformer) -> tuple[Callable[[], AbstractContextManager[None]], Callable[[], None]]:
    """Return `no_sync` and `after_eval` of a GradientSync; for a model without FSDP they do nothing."""
    from torch.distributed.fsdp import FSDPModule

    @contextmanager
    def no_sync() -> Iterator[None]:
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(True)

    def after_eval() -> None:
        # After a forward pass the root's weights, and in a pipeline all, stay gathered until the backward pass. An
        # evaluation has none, and gathered weights would hide a checkpoint loaded into the shards.
        for module in (*model.modules(), *model.stages):
            if isinstance(module, FSDPModule):
                module.reshard()

    return no_sync, after_eval


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def own_stages(config: Config, ranks: Ranks) -> list[range]:
    """Return the numbers of the blocks of each stage that this rank has."""
    return stages_by_rank(config, ranks.layout.pipeline)[ranks.layout.coordinate(ranks.rank)["pipeline"]]


def stages_by_rank(config: Config, size: int) -> list[list[range]]:
    """Return the numbers of the blocks of each stage of each rank of a pipeline."""
    parallel = config.parallel
    stages = blocks_of_stages(asdict(config.model), config.workload.seq_len, size, parallel.pipeline_virtual_stages,
                              parallel.pipeline_blocks)  # fmt: skip
    return [stages[rank::size] for rank in range(size)]


def build_sharded(
    config: Config,
    device: torch.device,
    ranks: Ranks,
    dtype: torch.dtype = torch.float32,
    heartbeat: Callable[[], None] = lambda: None,
) -> Transformer:
    """Return the model cut over the mesh, initialized part by part: no rank ever holds more than its own.

    Tensor parallelism first, then FSDP2. The projections of each block are one FSDP unit; the rest (embeddings, norms,
    head) is another, whose weights are used in float32.

    Raises:
        ConfigError: the layout does not fit the device.
    """
    parallel, layout, mesh = config.parallel, ranks.layout, ranks.weight_mesh(device.type)
    if parallel.cpu_offload and device.type == "cpu":
        raise ConfigError("parallel.cpu_offload: the device is the host itself; leave it false")

    def shard(model: Transformer) -> None:
        if layout.tensor > 1:
            from harness.training.distributed.tensor import parallelize_tensor

            parallelize_tensor(model, mesh["tensor"])
        if layout.context > 1:
            from harness.training.distributed.context import parallelize_context

            parallelize_context(model, ranks.activation_mesh(device.type)["context"])
        if layout.shares * layout.context > 1 or parallel.name == "fsdp":
            _shard_weights(model, config, layout, mesh["data", "shard"] if layout.data > 1 else mesh["shard"])

    if layout.pipeline > 1 and _torch_version() < PIPELINE_TORCH:
        raise ConfigError(
            f"parallel.pipeline: needs torch {'.'.join(map(str, PIPELINE_TORCH))} or newer, found {torch.__version__}; "
            "install that, or leave parallel.pipeline out"
        )
    home = torch.device("cpu") if parallel.cpu_offload else device
    stages = own_stages(config, ranks) if layout.pipeline > 1 else None
    return build_model(config.model, config.seed, home, shard=shard, dtype=dtype, heartbeat=heartbeat,
                       weights=open_weights(config), stages=stages,
                       residual_dtype=residual_dtype(config.precision))  # fmt: skip


def _shard_weights(model: Transformer, config: Config, layout: Layout, mesh: DeviceMesh) -> None:
    """Shard the weights with FSDP2, in place, over the last dimension of the mesh."""
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    parallel = config.parallel
    gathered = autocast_dtype(config.precision) if parallel.low_precision_all_gather else None
    offload = CPUOffloadPolicy() if parallel.cpu_offload else OffloadPolicy()
    # Autocast still decides each operation's type, as on one device: it would cast the projections' weights to this
    # type anyway. Inputs are not cast, and gradients are reduced in float32.
    narrow = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    plain = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        assert isinstance(block, Block)
        fully_shard(
            [block.attention, block.feed_forward],
            mesh=mesh,
            # A pipeline's micro-batches pass in turn, so that weights would be gathered again for each.
            reshard_after_forward=layout.pipeline == 1,
            mp_policy=narrow,
            offload_policy=offload,
        )
    for stage in model.stages:
        fully_shard(stage, mesh=mesh, mp_policy=plain, offload_policy=offload)
    for module in (*model.modules(), *model.stages):
        if isinstance(module, FSDPModule):
            # Every collective library sums; not every one averages.
            module.set_force_sum_reduction_for_comms(True)
            if mesh.size() > 1:
                # One process has nothing to divide by, and would copy its gradients to divide them by one.
                module.set_gradient_divide_factor(1.0)
