"""Benchmarks of collectives by a scripted clock: bandwidths as nccl-tests define them, the slowest rank, the limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from harness import backends
from harness.backends.base import Backend
from harness.config import BackendConfig
from harness.records.peak import COLLECTIVES, bus_factor
from harness.training import collective_benchmarks as benchmarks
from harness.training.collective_benchmarks import CollectiveBenchmarks
from harness.training.distributed.collectives import Ranks
from harness.world import World

GIB = 1 << 30


class FakeRanks(Ranks):
    """Rank 0 of several; the others are slower by a factor, and agree with all else."""

    def __init__(self, size: int = 4, slowdown: float = 1.0, local_size: int = 4) -> None:
        super().__init__(World(size=size, local_size=local_size, is_distributed=True))
        self._slowdown = slowdown

    def gather(self, value: Any) -> list[Any]:
        slower = [self._slowdown * each for each in value] if isinstance(value, list) else value
        return [value] + [slower] * (self.size - 1)

    def all_max(self, *values: int) -> list[int]:
        return list(values)


class Scripted:
    """A library whose collectives take a latency and a second for each `bytes_per_second`; each advances the clock."""

    def __init__(self, latency: float = 1e-3, bytes_per_second: float = 1e9) -> None:
        self.now, self.latency, self.rate = 0.0, latency, bytes_per_second

    def clock(self) -> float:
        return self.now

    def spend(self, *tensors: Any) -> None:
        self.now += self.latency + max(tensor.nbytes for tensor in tensors) / self.rate


@pytest.fixture
def backend() -> Backend:
    return backends.create(BackendConfig(name="cpu", threads=1))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted()
    monkeypatch.setattr(benchmarks, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(dist, "all_reduce", scripted.spend)
    monkeypatch.setattr(dist, "all_to_all_single", scripted.spend)
    monkeypatch.setattr(benchmarks, "all_gather", scripted.spend)
    monkeypatch.setattr(benchmarks, "reduce_scatter", scripted.spend)

    class Work:
        def wait(self) -> None:
            pass

    class Operation:
        def __init__(self, operation: Any, tensor: Any, peer: int) -> None:
            self.tensor, self.peer = tensor, peer

    def batch(operations: list[Operation]) -> list[Work]:
        assert [each.peer for each in operations] == [1, 3], "to the next rank, and from the one before"
        scripted.spend(operations[0].tensor)
        return [Work(), Work()]

    monkeypatch.setattr(dist, "P2POp", Operation)
    monkeypatch.setattr(dist, "batch_isend_irecv", batch)
    return scripted


def measure(backend: Backend, library: Scripted, ranks: FakeRanks | None = None, limit: float = 1e9,
            memory_bytes: int | None = None) -> dict[str, Any]:  # fmt: skip
    found = CollectiveBenchmarks(backend, ranks or FakeRanks(), limit, memory_bytes, clock=library.clock).measure()
    assert found is not None
    return found


def test_bandwidths_are_those_of_nccl_tests(backend: Backend, library: Scripted) -> None:
    """By hand, of 1 MiB on four ranks in a millisecond and 1 MiB / 1e9 s."""
    found = measure(backend, library)
    seconds = 1e-3 + 2**20 / 1e9
    for name, factor in (("all_reduce", 1.5), ("all_gather", 0.75), ("reduce_scatter", 0.75), ("all_to_all", 0.75),
                         ("send_receive", 1.0)):  # fmt: skip
        last = found[name]["sweep"][-1]
        assert last["bytes"] == 2**20
        assert last["seconds"] == pytest.approx(seconds)
        assert last["algorithm_bytes_per_second"] == pytest.approx(2**20 / seconds)
        assert last["bus_bytes_per_second"] == pytest.approx(factor * 2**20 / seconds)
        assert found[name]["latency_seconds"] == pytest.approx(1e-3 + 2**10 / 1e9)


def test_sizes_grow_by_four(backend: Backend, library: Scripted) -> None:
    found = measure(backend, library)
    assert [entry["bytes"] for entry in found["all_gather"]["sweep"]] == [4**power for power in range(5, 11)]


def test_a_message_is_a_whole_number_of_elements_for_each_rank(backend: Backend, library: Scripted) -> None:
    ranks = FakeRanks(size=3)
    seen = CollectiveBenchmarks(backend, ranks, 1e9, None, clock=library.clock)._call("all_gather", 1 << 10)[1]
    assert seen == 1020


def test_the_slowest_rank_counts(backend: Backend, library: Scripted) -> None:
    found = measure(backend, library, FakeRanks(slowdown=3.0))
    assert found["all_reduce"]["latency_seconds"] == pytest.approx(3 * (1e-3 + 2**10 / 1e9))


def test_the_first_calls_do_not_count(backend: Backend, library: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]

    def slow_at_first(buffer: Any) -> None:
        calls[0] += 1
        # The trial, the call that opens connections, and the one by which calls of a sample are counted.
        library.now += 1.0 if calls[0] <= 3 else 0.0
        library.spend(buffer)

    monkeypatch.setattr(dist, "all_reduce", slow_at_first)
    assert measure(backend, library)["all_reduce"]["latency_seconds"] == pytest.approx(1e-3 + 2**10 / 1e9)


def test_messages_that_take_too_long_are_left_out(backend: Backend, library: Scripted) -> None:
    library.rate = 1e5
    found = measure(backend, library, limit=5.0)
    # All lose the same large messages, and none all but the smallest: 16 KiB take 0.16 s, eight times.
    assert {len(found[name]["sweep"]) for name in COLLECTIVES} == {2, 3}
    assert library.now < 5.0
    assert len(measure(backend, library)["all_reduce"]["sweep"]) == 6


def test_every_collective_has_its_smallest_message_whatever_the_limit(backend: Backend, library: Scripted) -> None:
    found = measure(backend, library, limit=1e-9)
    assert [len(found[name]["sweep"]) for name in COLLECTIVES] == [1] * 5


def test_messages_fit_into_memory_that_the_ranks_of_a_host_share(backend: Backend, library: Scripted) -> None:
    # An eighth of 4 MiB for input and output of four ranks: 64 KiB each.
    found = measure(backend, library, memory_bytes=4 << 20)
    assert found["all_to_all"]["sweep"][-1]["bytes"] == 1 << 16
    alone = measure(backend, library, FakeRanks(local_size=1), memory_bytes=4 << 20)
    assert alone["all_to_all"]["sweep"][-1]["bytes"] == 1 << 18


def test_a_missing_collective_is_null_with_its_reason(
    backend: Backend, library: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: Any) -> None:
        raise NotImplementedError("reduce_scatter is not supported by this library")

    monkeypatch.setattr(benchmarks, "reduce_scatter", lack)
    found = measure(backend, library)
    assert found["reduce_scatter"] is None
    assert found["missing_reasons"] == {"reduce_scatter": "reduce_scatter is not supported by this library"}
    assert found["all_to_all"] is not None


def test_any_other_error_is_one(backend: Backend, library: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(benchmarks, "reduce_scatter", fail)
    with pytest.raises(RuntimeError, match="Connection closed"):
        measure(backend, library)


def test_one_process_has_no_collectives(backend: Backend) -> None:
    assert CollectiveBenchmarks(backend, Ranks(), 60.0, None).measure() is None


@pytest.mark.parametrize(
    ("collective", "ranks", "expected"),
    [("all_reduce", 2, 1.0), ("all_reduce", 8, 1.75), ("all_gather", 2, 0.5), ("all_to_all", 8, 0.875),
     ("reduce_scatter", 8, 0.875), ("send_receive", 8, 1.0)],
)  # fmt: skip
def test_bus_factors(collective: str, ranks: int, expected: float) -> None:
    assert bus_factor(collective, ranks) == pytest.approx(expected)
