"""Tensor parallelism seen from one rank of two: the other is a fake, which exchanges nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import RowwiseParallel, SequenceParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from harness.training.distributed.tensor import norm_of_part
from harness.workload.model import RMSNorm, rms_norm


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_a_norm_kernel_is_called_with_the_part_of_its_rank(mesh: DeviceMesh) -> None:
    seen: list[torch.Tensor] = []

    def kernel(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        seen.extend((x, weight))
        return rms_norm(x, weight, eps)

    part = torch.randn(2, 3, 8)
    plain, cut = RMSNorm(8, 1e-5), RMSNorm(8, 1e-5)
    parallelize_module(cut, mesh, SequenceParallel(use_local_output=True))
    cut.rms_norm = norm_of_part(kernel)
    expected, found = (norm(part) for norm in (plain, cut))
    for output in (expected, found):
        output.square().sum().backward()
    assert [(type(tensor).__name__, tensor.shape) for tensor in seen] == [("Tensor", (2, 3, 8)), ("Tensor", (8,))]
    assert torch.equal(found, expected)
    # The gradient of the other rank's part is added later.
    gradient, alone = cut.weight.grad, plain.weight.grad
    assert isinstance(gradient, DTensor)
    assert alone is not None
    assert gradient.placements == (Partial(),)
    assert torch.equal(gradient.to_local(), alone)


def test_a_norm_kernel_passes_on_the_gradient_of_a_sum_that_is_under_way(mesh: DeviceMesh) -> None:
    """The first norm gets the output of the embedding, for whose exchange nothing has waited yet."""
    embedding, norm = torch.nn.Embedding(16, 8), RMSNorm(8, 1e-5)
    style = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
    parallelize_module(embedding, mesh, style)
    parallelize_module(norm, mesh, SequenceParallel(use_local_output=True))
    norm.rms_norm = norm_of_part(rms_norm)
    x = embedding(torch.zeros(2, 4, dtype=torch.int64))
    assert isinstance(x, AsyncCollectiveTensor)
    norm(x).sum().backward()
    assert embedding.weight.grad is not None
