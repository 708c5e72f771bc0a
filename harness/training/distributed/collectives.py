"""Collectives on host data between the ranks of a run. Device tensors are exchanged by PyTorch's own engines.

Every function and method here that says Collective must be called by all ranks in the same order.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist

from harness import environment
from harness.errors import RunFailed
from harness.layout import Layout
from harness.signals import StopRequest
from harness.training.distributed.communication import CommunicationMeter, metered_group, metered_mesh
from harness.workload.digest import BatchDigest
from harness.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
STOP_CHECK_SECONDS = 1.0


class Ranks:
    """All processes of a run and their layout; methods with a collective just return in a run of one process."""

    def __init__(self, world: World | None = None, layout: Layout | None = None) -> None:
        self.world = world or World()
        self.layout = layout or Layout(data=self.world.size)
        self._meshes: dict[tuple[str, ...], DeviceMesh] = {}
        self._ends: tuple[Any] | None = None
        self._everyone: Any = None
        self.meter = CommunicationMeter(events=None, asynchronous=True)
        """Of the collectives on device tensors; set before the first of them."""
        self.timeout: timedelta | None = None
        """Of collectives; None: PyTorch's own."""
        self.host_group: Any = None
        """Of collectives on host data; None: of all processes' own."""

    @property
    def size(self) -> int:
        return self.world.size

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def is_main(self) -> bool:
        return self.world.is_main

    def apart(self) -> Ranks:
        """Return these ranks with a group of their own for host data, which another thread may use. Collective."""
        other = Ranks(self.world, self.layout)
        other.timeout = self.timeout
        if self.size > 1:
            other.host_group = dist.new_group(backend="gloo", timeout=self.timeout)
        return other

    @property
    def share(self) -> int:
        """Number of the part of the batch that this rank trains on, of `layout.shares`."""
        return self.layout.share_of(self.rank)

    def weight_mesh(self, device_type: str) -> DeviceMesh:
        """Return the mesh over which parameters are spread: `shard` is over the parts of a sequence too, which have the
        same weights. The first call is collective.
        """
        layout = self.layout
        return self._mesh(device_type, pipeline=layout.pipeline, data=layout.data,
                          shard=layout.shard * layout.context, tensor=layout.tensor)  # fmt: skip

    def activation_mesh(self, device_type: str) -> DeviceMesh:
        """Return the mesh over which the activations of one sequence are spread. The first call is collective."""
        layout = self.layout
        mesh = self._mesh(device_type, share=layout.size // (layout.context * layout.tensor),
                          context=layout.context, tensor=layout.tensor)  # fmt: skip
        return mesh[tuple(name for name in ("context", "tensor") if name in (mesh.mesh_dim_names or ()))]

    def everyone(self, device_type: str) -> Any:
        """Return the group of all ranks, metered as of an axis `all`. The first call is collective."""
        if self._everyone is None:
            self._everyone = metered_group(cast(Any, dist.group.WORLD), "all", self.meter, device_type)
        return self._everyone

    def first_and_last_stage(self, device_type: str) -> Any:
        """Return the group of this rank and the one in its place on the first or last stage of a pipeline.

        The first call is collective. None on every other stage.
        """
        if self._ends is None:
            each = self.size // self.layout.pipeline
            pairs = [[first, first + self.size - each] for first in range(each)]
            made: list[tuple[list[int], Any]] = [(pair, dist.new_group(pair, timeout=self.timeout)) for pair in pairs]
            groups = {rank: group for pair, group in made for rank in pair}
            own = groups.get(self.rank)
            self._ends = (None if own is None else metered_group(own, "pipeline", self.meter, device_type),)
        return self._ends[0]

    def _mesh(self, device_type: str, **sizes: int) -> DeviceMesh:
        """Return a mesh of the axes that have several parts, and of `shard`; each kind is made once."""
        from torch.distributed.device_mesh import init_device_mesh

        names = tuple(name for name, size in sizes.items() if size > 1 or name == "shard")
        if names not in self._meshes:
            mesh = init_device_mesh(device_type, tuple(sizes[name] for name in names), mesh_dim_names=names)
            for group in mesh.get_all_groups():
                self._set_timeout(group)
            self._meshes[names] = metered_mesh(mesh, self.meter)
        return self._meshes[names]

    def _set_timeout(self, group: Any) -> None:
        """Give a group the timeout of the whole: its own may be shorter than the watchdog's, which names the cause."""
        if self.timeout is not None:
            with warnings.catch_warnings():
                # Of collectives whose groups have a timeout of their own.
                warnings.simplefilter("ignore")
                dist.distributed_c10d._set_pg_timeout(self.timeout, group)

    def counts(self, tensor: torch.Tensor) -> bool:
        """Return whether this rank's part of a tensor enters a sum over all ranks.

        Where several ranks hold the same part, only one of them counts it. Stages of a pipeline have tensors of their
        own.
        """
        mesh: Any = getattr(tensor, "device_mesh", None)
        axes = () if mesh is None else mesh.mesh_dim_names
        placements: Any = getattr(tensor, "placements", ())
        cut: set[str] = {axis for axis, placement in zip(axes, placements, strict=True) if not placement.is_replicate()}
        if "shard" in cut:
            cut.add("context")
        at = self.layout.coordinate(self.rank)
        return not any(index for axis, index in at.items() if axis not in cut and axis != "pipeline")

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.host_group)
        return values

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """Return on every rank what `make` returns on rank 0, the only one to call it."""
        values: list[Any] = [make() if self.is_main else None]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, group=self.host_group)
        return values[0]

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the means over the ranks, element by element; the same bits on every rank."""
        if self.size == 1:
            return list(values)
        by_rank = [torch.zeros(len(values), dtype=torch.float64) for _ in range(self.size)]
        dist.all_gather(by_rank, torch.tensor(values, dtype=torch.float64), group=self.host_group)
        return [math.fsum(column) / self.size for column in zip(*(row.tolist() for row in by_rank), strict=True)]

    def all_max(self, *values: int) -> list[int]:
        """Return the largest of each value over the ranks."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.host_group)
        return tensor.tolist()

    def combined_digest(self, digest: BatchDigest) -> str:
        """Return the digest of the batches of all ranks.

        Raises:
            RunFailed: ranks that have the same part of the batch trained on different tokens.
        """
        total = BatchDigest()
        parts = self.gather(digest.hexdigest())
        for rank, part in enumerate(parts):
            first = next(
                other for other in range(rank + 1) if self.layout.share_of(other) == self.layout.share_of(rank)
            )
            if part != parts[first]:
                raise RunFailed(
                    f"rank {rank} trained on other tokens than rank {first}, which has the same part of the batch; "
                    "this is a bug in the harness: report it",
                    shared=True,
                )
            if first == rank:
                total.merge(part)
        return total.hexdigest()


class CoordinatedStop:
    """Stops all ranks after the same step, whichever of them received the request.

    Every rank calls `requested` after every step. The all-reduce behind it takes a fraction of a millisecond, so it
    runs about once a second, and a stop is delayed by at most that.
    """

    def __init__(self, ranks: Ranks, request: StopRequest, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._ranks, self._request, self._clock = ranks, request, clock
        self._calls = 0
        self._next = 1
        self._asked_at = clock()
        self._agreed = False

    def deferred(self) -> AbstractContextManager[None]:
        """Return a context in which the first signal is held back for `requested` to report."""
        return self._request.deferred()

    def requested(self) -> bool:
        """Return whether to stop now: the same answer on every rank."""
        if self._ranks.size == 1:
            return self._request.requested()
        if self._agreed:
            return True
        self._calls += 1
        if self._calls < self._next:
            return False
        now = self._clock()
        pace = (now - self._asked_at) / self._calls
        # Rank 0's pace decides after how many calls all ranks check again.
        ahead = max(1, int(STOP_CHECK_SECONDS / pace)) if pace > 0 else 1
        number, ahead = self._ranks.all_max(self._request.signal_number or 0, ahead if self._ranks.is_main else 0)
        self._calls, self._next, self._asked_at = 0, ahead, self._clock()
        if number:
            self._agreed = True
            self._request.request(number)
        return self._agreed


def same_on_all(ranks: Ranks, what: str, value: Any, remedy: str = "install the same software on every host") -> None:
    """Check that every rank has the same value. Collective.

    Raises:
        RunFailed: on every rank, naming the first rank that differs.
    """
    values = ranks.gather(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise RunFailed(
                f"rank {rank} differs from rank 0 in {what}: found {other}, expected {values[0]}; {remedy}",
                status="rank_mismatch",
                shared=True,
            )


def all_of_this_host(ranks: Ranks) -> Callable[[float], float]:
    """Return a collective function that sums a value over the ranks on the same host."""

    def total(own: float) -> float:
        host = environment.host_name()
        return math.fsum(value for name, value in ranks.gather((host, own)) if name == host)

    return total
