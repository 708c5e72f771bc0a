"""Collectives on host data between the ranks of a run. Device tensors are exchanged by PyTorch's own engines.

Every function and method here that says Collective must be called by all ranks in the same order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from harness import environment
from harness.errors import RunFailed
from harness.signals import StopRequest
from harness.workload.digest import BatchDigest
from harness.world import World

T = TypeVar("T")
STOP_CHECK_SECONDS = 1.0


class Ranks:
    """All processes of a run; every method is collective. In a run of one process, methods just return."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()

    @property
    def size(self) -> int:
        return self.world.size

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def is_main(self) -> bool:
        return self.world.is_main

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """Return on every rank what `make` returns on rank 0, the only one to call it."""
        values: list[Any] = [make() if self.is_main else None]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the means over the ranks, element by element; the same bits on every rank."""
        if self.size == 1:
            return list(values)
        by_rank = [torch.zeros(len(values), dtype=torch.float64) for _ in range(self.size)]
        dist.all_gather(by_rank, torch.tensor(values, dtype=torch.float64))
        return [math.fsum(column) / self.size for column in zip(*(row.tolist() for row in by_rank), strict=True)]

    def all_max(self, *values: int) -> list[int]:
        """Return the largest of each value over the ranks."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def combined_digest(self, digest: BatchDigest) -> str:
        """Return the digest of the batches of all ranks."""
        total = BatchDigest()
        for part in self.gather(digest.hexdigest()):
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
