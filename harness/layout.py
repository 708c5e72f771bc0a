"""Layout: over which axes of parallelism a run's processes are spread, and the place of each process. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from harness.config import ParallelConfig
from harness.errors import ConfigError

AXES = ("pipeline", "data", "shard", "context", "tensor")
"""Outermost first: ranks of the last axis lie side by side, on one host, since they exchange most."""
LAYOUT_AXES = {"single": (), "ddp": ("data",), "fsdp": ("data", "shard"), "mesh": AXES}
"""The axes that each option of `parallel` has."""


@dataclass(frozen=True)
class Layout:
    """Number of parts on each axis; their product is the number of processes."""

    pipeline: int = 1
    """Ranks that have the blocks in stages, one or more each."""
    data: int = 1
    """Replicas of the model, each with a share of the batch."""
    shard: int = 1
    """Shards of weights, gradients and optimizer state; each rank has a share of the batch too."""
    context: int = 1
    """Parts of each sequence."""
    tensor: int = 1
    """Parts of each matrix, of each block's activations and of the vocabulary."""

    @property
    def size(self) -> int:
        return math.prod(asdict(self).values())

    @property
    def shares(self) -> int:
        """Number of parts into which the batch is divided: other axes divide the work on the same sequences."""
        return self.data * self.shard

    @property
    def is_replicated(self) -> bool:
        """Return whether every rank holds the whole model."""
        return self.size == self.data

    def coordinate(self, rank: int) -> dict[str, int]:
        """Return the position of a rank on every axis."""
        found = {}
        for axis in reversed(AXES):
            rank, found[axis] = divmod(rank, getattr(self, axis))
        return found

    def share_of(self, rank: int) -> int:
        """Return the number of the part of the batch that a rank trains on."""
        at = self.coordinate(rank)
        return at["data"] * self.shard + at["shard"]

    def place(self, rank: int) -> str:
        """Return where a rank is, as `pipeline 1, tensor 0`; empty if every rank does all of the model's work."""
        if self.shares == self.size:
            return ""
        at = self.coordinate(rank)
        return ", ".join(f"{axis} {at[axis]}" for axis in AXES if getattr(self, axis) > 1)

    def __str__(self) -> str:
        parts = [f"{axis} {getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return " x ".join(parts) or "one process"


def layout_of(parallel: ParallelConfig, processes: int) -> Layout:
    """Return the layout of a run: what is left open follows from the number of processes.

    If both `shard` and `data` are open, the model is sharded over all processes that are left.

    Raises:
        ConfigError: the product is not the number of processes; naming the nearest that would be.
    """
    given = {axis: getattr(parallel, axis) for axis in AXES}
    known = math.prod(size for size in given.values() if size is not None)
    open_axes = [axis for axis in ("shard", "data") if given[axis] is None]
    if processes % known or (not open_axes and processes != known):
        stated = " x ".join(f"parallel.{axis}={size}" for axis, size in given.items() if size not in (None, 1))
        below, above = processes // known * known, -(-processes // known) * known
        fitting = str(known) if not open_axes else " or ".join(str(size) for size in (below, above) if size)
        raise ConfigError(
            f"{stated or f'parallel={parallel.name}'}: needs {known} processes{' or a multiple' if open_axes else ''}, "
            f"found {processes}; start {fitting} processes, or change the layout"
        )
    rest = processes // known
    for axis in open_axes:
        given[axis], rest = rest, 1
    return Layout(**given)


def uneven_rounds(schedule: str, size: int, interleaved: bool, micro_batches: int) -> bool:
    """Return whether PyTorch's schedule does not take this number of micro-batches.

    They are fewer than the pipeline's ranks; or of interleaved stages or zero bubble, rounds of at least one a rank do
    not divide them.
    """
    if schedule == "gpipe":
        return False
    if micro_batches < size:
        return True
    in_rounds = interleaved or schedule == "zero_bubble"
    return in_rounds and micro_batches % (micro_batches // size) > 0
