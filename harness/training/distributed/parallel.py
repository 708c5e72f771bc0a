"""Parallel layouts of a model: whole on one device, or distributed by PyTorch's DDP or FSDP2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from harness.backends.base import Backend
from harness.backends.step import NO_SYNC, GradientSync, autocast_dtype
from harness.config import Config
from harness.errors import ConfigError
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.communication import (
    CommunicationMeter,
    MeteredAllGather,
    MeteredReduceScatter,
    allreduce_hook,
)
from harness.workload.initialization import build_model
from harness.workload.model import Block, Transformer
from harness.workload.weights import open_weights

# DDP and FSDP are imported where they are used: the import takes a second that a run on one device saves.
if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass
class ParallelModel:
    """A model distributed over the ranks."""

    model: Transformer
    """The model itself, with this rank's parameters: whole, or its shards."""
    wrapped: nn.Module
    """The module that the training step calls."""
    grad_sync: GradientSync = NO_SYNC


def parallelize_model(
    config: Config, backend: Backend, ranks: Ranks, meter: CommunicationMeter, heartbeat: Callable[[], None]
) -> ParallelModel:
    """Return the configured model with its initial weights, in the layout of `config.parallel`.

    `heartbeat` is called for every parameter: initializing a large model takes minutes.

    Raises:
        ConfigError: the layout does not fit the device or the number of processes.
    """
    if config.parallel.name == "fsdp":
        model = build_sharded(config, backend.device(), ranks, heartbeat=heartbeat)
        return _fsdp(model, backend, ranks, meter)
    model = build_model(config.model, config.seed, backend.device(), heartbeat=heartbeat, weights=open_weights(config))
    if config.parallel.name == "ddp":
        return _ddp(model, backend, ranks, meter)
    return ParallelModel(model, model)


def _ddp(model: Transformer, backend: Backend, ranks: Ranks, meter: CommunicationMeter) -> ParallelModel:
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
    wrapped.register_comm_hook(None, allreduce_hook(meter))
    return ParallelModel(model, wrapped, GradientSync(ranks.size, wrapped.no_sync, meter.end_wait))


def _fsdp(model: Transformer, backend: Backend, ranks: Ranks, meter: CommunicationMeter) -> ParallelModel:
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # On a device that queues its work a collective returns at once, so that there is nothing to time.
            module.set_custom_all_gather(cast(Any, MeteredAllGather(meter, blocks=not backend.asynchronous)))
            module.set_custom_reduce_scatter(cast(Any, MeteredReduceScatter(meter, blocks=not backend.asynchronous)))

    @contextmanager
    def no_sync() -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    # After a forward pass the root's weights stay gathered until the backward pass frees them. An evaluation has no
    # backward pass, and gathered weights would hide a checkpoint loaded into the shards: so it ends with a reshard.
    return ParallelModel(model, model, GradientSync(ranks.size, no_sync, after_eval=model.reshard))


def build_sharded(
    config: Config,
    device: torch.device,
    ranks: Ranks,
    dtype: torch.dtype = torch.float32,
    heartbeat: Callable[[], None] = lambda: None,
) -> Transformer:
    """Return the model sharded with FSDP2, initialized shard by shard: no rank ever holds more than its own part.

    The projections of each block are one FSDP unit; the rest (embeddings, norms, head) is another, whose weights are
    used in float32.

    Raises:
        ConfigError: the layout does not fit the device or the number of processes.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    parallel = config.parallel
    if parallel.cpu_offload and device.type == "cpu":
        raise ConfigError("parallel.cpu_offload: the device is the host itself; leave it false")
    mesh = _mesh(device, ranks, hybrid=parallel.hybrid_shard)
    gathered = autocast_dtype(config.precision) if parallel.low_precision_all_gather else None
    offload = CPUOffloadPolicy() if parallel.cpu_offload else OffloadPolicy()
    # Autocast still decides each operation's type, as on one device: it would cast the projections' weights to this
    # type anyway. Inputs are not cast, and gradients are reduced in float32.
    narrow = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    plain = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)

    def shard(model: Transformer) -> None:
        for block in model.blocks:
            assert isinstance(block, Block)
            fully_shard([block.attention, block.feed_forward], mesh=mesh, mp_policy=narrow, offload_policy=offload)
        fully_shard(model, mesh=mesh, mp_policy=plain, offload_policy=offload)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Every collective library sums; not every one averages.
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)

    home = torch.device("cpu") if parallel.cpu_offload else device
    return build_model(
        config.model, config.seed, home, shard=shard, dtype=dtype, heartbeat=heartbeat, weights=open_weights(config)
    )


def _mesh(device: torch.device, ranks: Ranks, *, hybrid: bool) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    if not hybrid:
        return init_device_mesh(device.type, (ranks.size,), mesh_dim_names=("shard",))
    local = ranks.world.local_size
    if ranks.size % local or local == ranks.size:
        raise ConfigError(
            f"parallel.hybrid_shard: needs several hosts with the same number of processes each, found {ranks.size} "
            f"processes, {local} of them on this host; leave it false"
        )
    return init_device_mesh(device.type, (ranks.size // local, local), mesh_dim_names=("replicate", "shard"))
