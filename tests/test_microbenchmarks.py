"""Microbenchmarks: rates by a scripted clock, and the work that each benchmark counts."""

from __future__ import annotations

import pytest

from harness import backends
from harness.backends.base import Backend
from harness.config import BackendConfig
from harness.training import microbenchmarks as benchmarks
from harness.training.microbenchmarks import Microbenchmarks


@pytest.fixture
def backend() -> Backend:
    return backends.create(BackendConfig(name="cpu", threads=1))


class Scripted:
    """A device whose operations take a known time, by which each call advances the clock."""

    def __init__(self, seconds: float) -> None:
        self.now, self.calls, self.seconds = 0.0, 0, seconds

    def clock(self) -> float:
        return self.now

    def act(self) -> None:
        self.calls += 1
        self.now += self.seconds


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small operands and short samples, since speed is not tested."""
    for name, value in {
        "SIZES": (16, 32, 64),
        "SAMPLE_SECONDS": 0.001,
        "COPY_BYTES": 1 << 16,
        "FLUSH_BYTES": 1 << 12,
        "LAUNCHES": 10,
    }.items():
        monkeypatch.setattr(benchmarks, name, value)


def test_a_rate_is_amount_over_seconds(backend: Backend, small: None) -> None:
    scripted = Scripted(0.002)
    measure = Microbenchmarks(backend, None, scripted.clock)
    rate, seconds = measure._rate(scripted.act, 10.0)
    assert (rate.best, rate.median) == (pytest.approx(10.0 / 0.002), pytest.approx(10.0 / 0.002))
    assert seconds == pytest.approx(0.002)


def test_short_operations_are_called_often_enough_for_the_clock(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "FLUSH_BYTES", 1 << 12)
    scripted = Scripted(0.0005)
    calls_of_samples: list[int] = []
    measure = Microbenchmarks(backend, None, scripted.clock)
    sample = measure._sample
    monkeypatch.setattr(measure, "_sample", lambda act, calls: (calls_of_samples.append(calls), sample(act, calls))[1])
    measure._rate(scripted.act, 1.0)
    assert calls_of_samples[0] == 1
    assert all(calls * 0.0005 == pytest.approx(benchmarks.SAMPLE_SECONDS, rel=0.02) for calls in calls_of_samples[1:])
    assert len(calls_of_samples) >= benchmarks.SAMPLES


def test_samples_count_once_the_device_is_warm(backend: Backend, small: None) -> None:
    """An operation that speeds up by 10 % per call until it is three times as fast."""
    scripted = Scripted(0.003)

    def act() -> None:
        scripted.act()
        scripted.seconds = max(0.001, scripted.seconds * 0.9)

    rate, _ = Microbenchmarks(backend, None, scripted.clock)._rate(act, 1.0)
    assert rate.median == pytest.approx(1000.0)


def test_every_sample_includes_its_synchronization(
    backend: Backend, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that queues its work, most of the time passes there."""
    scripted = Scripted(0.0)
    monkeypatch.setattr(backend, "synchronize", lambda: setattr(scripted, "now", scripted.now + 0.004))
    rate, _ = Microbenchmarks(backend, None, scripted.clock)._rate(scripted.act, 8.0)
    assert rate.best == pytest.approx(8.0 / 0.004)


def test_matrix_products(backend: Backend, small: None) -> None:
    heartbeats: list[None] = []
    found = Microbenchmarks(backend, None).matrix_products("fp32", lambda: heartbeats.append(None))
    assert [entry["size"] for entry in found["sweep"]] == [16, 32, 64]
    assert len(heartbeats) == 3
    best = max(found["sweep"], key=lambda entry: entry["best_flops"])
    assert (found["size"], found["best_flops"]) == (best["size"], best["best_flops"])
    assert found["best_flops"] >= found["median_flops"] > 0


def test_a_multiply_add_is_two_flops(backend: Backend, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    amounts: list[float] = []
    measure = Microbenchmarks(backend, None)
    monkeypatch.setattr(
        measure, "_rate", lambda act, amount: (amounts.append(amount), (benchmarks.Rate(amount, amount), 0.0))[1]
    )
    measure.matrix_products("fp32")
    assert amounts == [2.0 * size**3 for size in (16, 32, 64)]


def test_operands_fit_into_memory(backend: Backend, small: None) -> None:
    found = Microbenchmarks(backend, 4 * 3 * 4 * 32 * 32).matrix_products("fp32")
    assert [entry["size"] for entry in found["sweep"]] == [16, 32]


def test_a_size_that_takes_long_is_the_last(backend: Backend, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "MAX_PRODUCT_SECONDS", 0.0)
    assert len(Microbenchmarks(backend, None).matrix_products("fp32")["sweep"]) == 1


def test_a_copy_reads_and_writes(backend: Backend, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Microbenchmarks(backend, None)
    monkeypatch.setattr(measure, "_rate", lambda act, amount: (benchmarks.Rate(amount, amount), 0.0))
    assert measure.memory_bandwidth()["best_bytes_per_second"] == 2 * (1 << 16)


def test_the_host_has_no_copies_to_itself(backend: Backend, small: None) -> None:
    assert Microbenchmarks(backend, None).host_copies() is None


def test_launches(backend: Backend, small: None) -> None:
    found = Microbenchmarks(backend, None).launch_latency()
    assert 0 < found["queued_seconds"] < 1e-3
    assert 0 < found["round_trip_seconds"] < 1e-3
