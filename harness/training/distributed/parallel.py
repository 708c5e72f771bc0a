"""The model as it is distributed over the processes of a run: whole on one device, or by PyTorch's DDP or FSDP2."""

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

# PyTorch's engines are imported where they are used: that takes a second, which a run on one device need not spend.
if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass
class ParallelModel:
    """A model as it is distributed over the ranks."""

    model: Transformer
    """The model itself, whose parameters are this rank's: whole, or its shards."""
    wrapped: nn.Module
    """What the training step calls."""
    grad_sync: GradientSync = NO_SYNC


def parallelize_model(
    config: Config, backend: Backend, ranks: Ranks, meter: CommunicationMeter, heartbeat: Callable[[], None]
) -> ParallelModel:
    """Return the configured model with its initial weights, distributed as `parallel` says.

    `heartbeat` is called for every parameter that is made: a large model takes minutes.

    Raises:
        ConfigError: the layout does not fit the device or the number of processes.
    """
    if config.parallel.name == "fsdp":
        model = build_sharded(config, backend.device(), ranks, heartbeat=heartbeat)
        return _fsdp(model, backend, ranks, meter)
    model = build_model(config.model, config.seed, backend.device(), heartbeat=heartbeat)
    if config.parallel.name == "ddp":
        return _ddp(model, backend, ranks, meter)
    return ParallelModel(model, model)


def _ddp(model: Transformer, backend: Backend, ranks: Ranks, meter: CommunicationMeter) -> ParallelModel:
    from torch.nn.parallel import DistributedDataParallel

    device = backend.device()
    wrapped = DistributedDataParallel(
        model,
        device_ids=None if device.index is None else [device.index],
        # Every rank makes the same weights itself, which their digests prove.
        init_sync=False,
        # Gradients are views of the buckets: one copy less, and less memory.
        gradient_as_bucket_view=True,
    )
    wrapped.register_comm_hook(None, allreduce_hook(meter))
    return ParallelModel(model, wrapped, GradientSync(ranks.size, wrapped.no_sync, meter.end_wait))


def _fsdp(model: Transformer, backend: Backend, ranks: Ranks, meter: CommunicationMeter) -> ParallelModel:
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A collective of a device that queues its work returns at once: there is nothing to time here.
            module.set_custom_all_gather(cast(Any, MeteredAllGather(meter, blocks=not backend.asynchronous)))
            module.set_custom_reduce_scatter(cast(Any, MeteredReduceScatter(meter, blocks=not backend.asynchronous)))

    @contextmanager
    def no_sync() -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    # After a forward pass the root's weights stay gathered until a backward pass lets go of them. Without one they
    # would hide what is read into the shards, so that an evaluation ends with a reshard.
    return ParallelModel(model, model, GradientSync(ranks.size, no_sync, after_eval=model.reshard))


def build_sharded(
    config: Config,
    device: torch.device,
    ranks: Ranks,
    dtype: torch.dtype = torch.float32,
    heartbeat: Callable[[], None] = lambda: None,
) -> Transformer:
    """Return the model sharded with FSDP2, made shard by shard: no rank ever holds more than its own part.

    The projections of each block are a unit of their own; what is left (embeddings, norms, head) is one more, whose
    weights are used in float32.

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
    # Autocast goes on deciding each operation's type, as on one device: it would cast the projections' weights to
    # this type anyway. What enters them stays as it is, and gradients are added up in float32.
    narrow = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    plain = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)

    def shard(model: Transformer) -> None:
        for block in model.blocks:
            assert isinstance(block, Block)
            fully_shard([block.attention, block.feed_forward], mesh=mesh, mp_policy=narrow, offload_policy=offload)
        fully_shard(model, mesh=mesh, mp_policy=plain, offload_policy=offload)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Not every collective library averages; all of them add.
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)

    home = torch.device("cpu") if parallel.cpu_offload else device
    return build_model(config.model, config.seed, home, shard=shard, dtype=dtype, heartbeat=heartbeat)


def _mesh(device: torch.device, ranks: Ranks, *, hybrid: bool) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    if not hybrid:
        return init_device_mesh(device.type, (ranks.size,), mesh_dim_names=("shard",))
    local = ranks.world.local_size
    if ranks.size % local or local == ranks.size:
        raise ConfigError(
            f"parallel.hybrid_shard: needs several hosts with as many processes each, found {ranks.size} "
            f"processes, {local} of them on this host; leave it false"
        )
    return init_device_mesh(device.type, (ranks.size // local, local), mesh_dim_names=("replicate", "shard"))
