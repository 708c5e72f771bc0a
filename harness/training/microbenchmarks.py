"""Peak rates of a device: matrix products, memory bandwidth, launch latency, host copies.

Every rate is measured over samples of the host's clock between two synchronizations, as training is timed. A sample is
long enough for the overhead of clock and synchronization to be negligible; samples are repeated until the device is
warm, and the best and the median of the following ones are kept. Operands are random: zeros draw less power, on which
clocks depend.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from harness.backends.base import Backend
from harness.backends.step import autocast_dtype

SAMPLE_SECONDS = 0.05
SAMPLES = 9
# The device is warm once two samples in a row differ by no more than this fraction.
WARM_TOLERANCE = 0.03
MAX_WARMUP_SAMPLES = 12
# Of square matrices: powers of two, and sizes between them that tile unevenly.
SIZES = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
# A size whose product takes longer than this is the last one: larger ones are not faster.
MAX_PRODUCT_SECONDS = 0.5
# Larger than caches.
COPY_BYTES = 512 << 20
FLUSH_BYTES = 128 << 20
LAUNCHES = 1000


@dataclass
class Rate:
    """Best and median rate of the samples, in units per second."""

    best: float
    median: float


class Microbenchmarks:
    """Benchmarks of one device, the same code for every backend.

    Args:
        memory_bytes: of the device, which limits the size of operands; None if unknown.
        clock: seconds.
    """

    def __init__(
        self, backend: Backend, memory_bytes: int | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._backend, self._memory_bytes, self._clock = backend, memory_bytes, clock
        self._device = backend.device()
        self._scratch = torch.zeros(self._buffer_bytes(FLUSH_BYTES, copies=1) // 4, device=self._device)

    def matrix_products(self, precision: str, heartbeat: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """Return FLOP/s of x @ w.T, the product of a linear layer, over a sweep of square shapes.

        Keys: `best_flops`, `median_flops` and `size` of the best size, and the `sweep` over all sizes. A multiply-add
        counts as two operations.
        """
        dtype = autocast_dtype(precision) or torch.float32
        sweep = []
        for size in self._sizes(dtype.itemsize):
            left, right = (torch.randn(size, size, device=self._device).to(dtype) for _ in range(2))
            rate, seconds = self._rate(lambda x=left, w=right: x @ w.T, 2.0 * size**3)
            sweep.append({"size": size, "best_flops": rate.best, "median_flops": rate.median})
            heartbeat()
            if seconds > MAX_PRODUCT_SECONDS:
                break
        best = max(sweep, key=lambda entry: entry["best_flops"])
        return {**{key: best[key] for key in ("best_flops", "median_flops", "size")}, "sweep": sweep}

    def memory_bandwidth(self) -> dict[str, Any]:
        """Return bytes/s of a copy within the device's memory; bytes read and bytes written both count."""
        size = self._buffer_bytes(COPY_BYTES, copies=2)
        source = torch.randn(size // 4, device=self._device)
        target = torch.empty_like(source)
        rate, _ = self._rate(lambda: target.copy_(source), 2.0 * size)
        return {**_bytes_per_second(rate), "buffer_bytes": size}

    def launch_latency(self) -> dict[str, Any]:
        """Return seconds of the smallest operation: per operation of a queue, and of one with a synchronization."""
        one = torch.randn(1, device=self._device)

        def queued() -> None:
            for _ in range(LAUNCHES):
                one.add_(0.0)

        def awaited() -> None:
            one.add_(0.0)
            self._backend.synchronize()

        return {
            "queued_seconds": 1 / (self._rate(queued, LAUNCHES)[0].median),
            "round_trip_seconds": 1 / (self._rate(awaited, 1)[0].median),
        }

    def host_copies(self) -> dict[str, Any] | None:
        """Return bytes/s from the host's memory to the device and back; None if they are the same memory."""
        if self._device.type == "cpu":
            return None
        size = self._buffer_bytes(COPY_BYTES // 2, copies=1)
        there = torch.randn(size // 4, device=self._device)
        found: dict[str, Any] = {"buffer_bytes": size}
        for name, pinned in (("pinned", True), ("pageable", False)):
            if pinned and not self._backend.pins_host_memory:
                continue
            here = torch.randn(size // 4)
            here = here.pin_memory() if pinned else here
            to, _ = self._rate(lambda x=here: there.copy_(x, non_blocking=True), float(size))
            back, _ = self._rate(lambda x=here: x.copy_(there, non_blocking=True), float(size))
            found[name] = {"to_device": _bytes_per_second(to), "to_host": _bytes_per_second(back)}
        return found

    def _sizes(self, item_bytes: int) -> Iterator[int]:
        for size in SIZES:
            if self._memory_bytes is not None and 3 * size * size * max(4, item_bytes) > self._memory_bytes // 4:
                return
            yield size

    def _buffer_bytes(self, wanted: int, copies: int) -> int:
        if self._memory_bytes is None:
            return wanted
        return min(wanted, self._memory_bytes // (8 * copies) // 4 * 4)

    def _rate(self, act: Callable[[], object], amount: float) -> tuple[Rate, float]:
        """Return the rate of `act`, which does `amount` units of work, and the median seconds of one call."""
        act()
        one = self._sample(act, 1)
        calls = max(1, int(SAMPLE_SECONDS / one)) if one > 0 else 1
        before = self._sample(act, calls)
        for _ in range(MAX_WARMUP_SAMPLES):
            now = self._sample(act, calls)
            if abs(now - before) <= WARM_TOLERANCE * before:
                break
            before = now
        seconds = [self._sample(act, calls) / calls for _ in range(SAMPLES)]
        return Rate(amount / min(seconds), amount / statistics.median(seconds)), statistics.median(seconds)

    def _sample(self, act: Callable[[], object], calls: int) -> float:
        # Flush the caches.
        self._scratch.add_(1.0)
        self._backend.synchronize()
        began = self._clock()
        for _ in range(calls):
            act()
        self._backend.synchronize()
        return self._clock() - began


def _bytes_per_second(rate: Rate) -> dict[str, float]:
    return {f"{key}_bytes_per_second": value for key, value in asdict(rate).items()}
