"""Plans of PyTorch's checkpoints, with this rank's part of each tensor as it is.

PyTorch derives the part from the placements: first the shards of FSDP, then those of tensor parallelism. They are cut
in the opposite order, which gives another part where rows do not divide: of 50,257 rows over tensor 2 x shard 4 the
last shards have 6,280 and 6,282, and not 6,281 twice (torch 2.13, compute_local_shape_and_global_offset).
"""

from __future__ import annotations

import io
from dataclasses import replace

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, WriteItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from harness.training.checkpoint_files import Beat
from harness.workload.initialization import own_part


class OwnSavePlanner(DefaultSavePlanner):
    """Plan of what this rank writes."""

    def __init__(self, heartbeat: Beat) -> None:
        super().__init__()
        self._heartbeat = heartbeat

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        self._heartbeat()
        return super().resolve_data(write_item)

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        items = [self._in_place(item) for item in plan.items]
        # An empty part begins where another rank's begins, which would be taken for a copy of it.
        self.plan = replace(plan, items=[item for item in items if not _is_empty(item)])
        return self.plan

    def _in_place(self, item: WriteItem) -> WriteItem:
        chunk = _own_chunk(self.state_dict[item.index.fqn])
        if chunk is None or item.tensor_data is None:
            return item
        index = replace(item.index, offset=chunk.offsets)
        return replace(item, index=index, tensor_data=replace(item.tensor_data, chunk=chunk))


def _is_empty(item: WriteItem) -> bool:
    return item.tensor_data is not None and 0 in item.tensor_data.chunk.sizes


class OwnLoadPlanner(DefaultLoadPlanner):
    """Plan of what this rank reads."""

    def __init__(self, heartbeat: Beat) -> None:
        super().__init__()
        self._heartbeat = heartbeat

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        self._heartbeat()
        return super().resolve_tensor(read_item)

    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        assert self.metadata is not None
        chunks = {name: chunk for name, value in self.state_dict.items() if (chunk := _own_chunk(value)) is not None}
        items = [item for item in plan.items if item.dest_index.fqn not in chunks]
        for name, chunk in chunks.items():
            saved = self.metadata.state_dict_metadata[name]
            assert isinstance(saved, TensorStorageMetadata)
            if 0 in chunk.sizes:
                continue
            items += create_read_items_for_chunk_list(name, saved, [chunk])
        return replace(plan, items=items)


def _own_chunk(value: object) -> ChunkStorageMetadata | None:
    """Return the place of this rank's part in a distributed tensor; None for anything else."""
    if not isinstance(value, torch.Tensor) or not hasattr(value, "placements"):
        return None
    local, rows, columns = own_part(value)
    offsets = (rows.start, columns.start)[: value.dim()]
    return ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=local.size())
