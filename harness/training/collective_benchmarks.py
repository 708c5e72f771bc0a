"""Collectives between all ranks by size of message: seconds, algorithm and bus bandwidth as nccl-tests define them."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from harness.backends.base import Backend
from harness.records.peak import COLLECTIVES, bus_factor
from harness.training.distributed.collectives import Ranks

MIN_BYTES, MAX_BYTES, FACTOR = 1 << 10, 256 << 20, 4
SAMPLE_SECONDS = 0.02
SAMPLES = 5
# Of a device's memory for the buffers of one message.
MEMORY_SHARE = 1 / 8
ITEM_BYTES = torch.float32.itemsize
# Messages of PyTorch and of libraries about an operation that a library has not.
MISSING = re.compile(r"not (yet |currently )?(supported|implemented)|(does|do) not support|unsupported", re.IGNORECASE)

# torch 2.13 renamed both.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

Act = Callable[[], object]


class CollectiveBenchmarks:
    """Benchmarks of the collectives of one device's library. Every method is collective.

    Seconds are the host's between two synchronizations, of the slowest rank: the median over samples that begin at a
    barrier and are long enough for the clock.

    Args:
        limit_seconds: of all measurements together; messages that would take longer are left out.
        memory_bytes: of the device; None if unknown.
        clock: seconds.
    """

    def __init__(self, backend: Backend, ranks: Ranks, limit_seconds: float, memory_bytes: int | None,
                 heartbeat: Callable[[], object] = lambda: None,
                 clock: Callable[[], float] = time.perf_counter) -> None:  # fmt: skip
        self._backend, self._ranks, self._device = backend, ranks, backend.device()
        self._limit_seconds, self._heartbeat, self._clock = limit_seconds, heartbeat, clock
        self._began, self._spent_seconds = clock(), 0.0
        most = MAX_BYTES
        if memory_bytes is not None:
            # Input and output; processes of one host may share its memory.
            most = int(MEMORY_SHARE * memory_bytes / (2 * ranks.world.local_size))
        [self._max_bytes] = (-value for value in ranks.all_max(-min(most, MAX_BYTES)))

    def measure(self) -> dict[str, Any] | None:
        """Return the section `collectives` of a peak record; None for one rank."""
        if self._ranks.size == 1:
            return None
        found: dict[str, Any] = {
            "asynchronous": self._backend.asynchronous,
            "ranks_per_host": self._ranks.world.local_size,
        }
        reasons = {name: self._missing_reason(name) for name in COLLECTIVES}
        sweeps = self._sweeps([name for name, reason in reasons.items() if reason is None])
        for name in COLLECTIVES:
            sweep = sweeps.get(name)
            found[name] = None if sweep is None else {"latency_seconds": sweep[0]["seconds"], "sweep": sweep}
        return {**found, "missing_reasons": {name: reason for name, reason in reasons.items() if reason is not None}}

    def _missing_reason(self, name: str) -> str | None:
        """Return why the library cannot do a collective, the same on every rank; None if it can."""
        reason = None
        try:
            self._call(name, MIN_BYTES)[0]()
            self._backend.synchronize()
        except RuntimeError as error:
            # On every rank alike: one that failed alone would have another message.
            if self._backend.classify_error(error) is not None or not MISSING.search(str(error)):
                raise
            reason = " ".join(str(error).split("\n")[0].split())
        return next((each for each in self._ranks.gather(reason) if each is not None), None)

    def _sweeps(self, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Return size, seconds and bandwidths of growing messages, by collective: at least of the smallest.

        Size by size, so that a short limit leaves out large messages of all and not all of some.
        """
        sweeps: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        expected = dict.fromkeys(names, 0.0)
        size = MIN_BYTES
        while names and (size == MIN_BYTES or size <= self._max_bytes):
            for name in names:
                if size > MIN_BYTES and self._spent_seconds + expected[name] > self._limit_seconds:
                    continue
                entry = self._measured(name, size)
                sweeps[name].append(entry)
                seconds = FACTOR * entry["seconds"]
                expected[name] = max(SAMPLE_SECONDS, seconds) * (SAMPLES + 1) + 2 * seconds
            names = [name for name in names if sweeps[name][-1]["bytes"] > size / FACTOR]
            size *= FACTOR
        return sweeps

    def _measured(self, name: str, size: int) -> dict[str, Any]:
        act, message_bytes = self._call(name, size)
        seconds = self._seconds(act)
        algorithm = message_bytes / seconds
        return {
            "bytes": message_bytes,
            "seconds": seconds,
            "algorithm_bytes_per_second": algorithm,
            "bus_bytes_per_second": bus_factor(name, self._ranks.size) * algorithm,
        }

    def _call(self, name: str, size: int) -> tuple[Act, int]:
        """Return a call of a collective, and the bytes of its message: of what a rank has of the whole, at the end or
        at the beginning, whichever is more.
        """
        ranks, rank = self._ranks.size, self._ranks.rank
        each = max(1, size // (ITEM_BYTES * ranks))
        whole = torch.ones(each * ranks, device=self._device)
        if name == "all_reduce":
            # Sums of sums become infinite, which takes no longer.
            return lambda: dist.all_reduce(whole), whole.nbytes
        if name in ("all_gather", "reduce_scatter"):
            part = torch.ones(each, device=self._device)
            if name == "all_gather":
                return lambda: all_gather(whole, part), whole.nbytes
            return lambda: reduce_scatter(part, whole), whole.nbytes
        other = torch.empty_like(whole)
        if name == "all_to_all":
            return lambda: dist.all_to_all_single(other, whole), whole.nbytes
        there, back = (rank + 1) % ranks, (rank - 1) % ranks

        def send_receive() -> None:
            pair = [dist.P2POp(dist.isend, whole, there), dist.P2POp(dist.irecv, other, back)]
            for work in dist.batch_isend_irecv(pair):
                work.wait()

        return send_receive, whole.nbytes

    def _seconds(self, act: Act) -> float:
        """Return the seconds of one call on the slowest rank, the same number on every rank."""
        # The first one opens connections.
        self._samples(act, 1, 1)
        [one] = self._samples(act, 1, 1)
        calls = max(1, int(SAMPLE_SECONDS / one)) if one > 0 else 1
        samples = self._samples(act, calls, SAMPLES + 1)
        [self._spent_seconds] = self._slowest([self._clock() - self._began])
        return statistics.median(samples[1:]) / calls

    def _samples(self, act: Act, calls: int, count: int) -> list[float]:
        own = []
        for _ in range(count):
            self._heartbeat()
            # All begin together.
            self._ranks.all_max(0)
            self._backend.synchronize()
            began = self._clock()
            for _ in range(calls):
                act()
            self._backend.synchronize()
            own.append(self._clock() - began)
        return self._slowest(own)

    def _slowest(self, own: Sequence[float]) -> list[float]:
        return [max(by_rank) for by_rank in zip(*self._ranks.gather(own), strict=True)]
