"""Measurement of a device's peak rates, by one process or by several at once, as a record."""

from __future__ import annotations

import time
from typing import Any

from harness import environment, log
from harness.backends.base import Backend
from harness.config import PRODUCT_FORMATS, Config
from harness.errors import BackendUnavailable, ExitCode, RunFailed, UserError
from harness.layout import Layout
from harness.records.record import SCHEMA_VERSION
from harness.text import utc_now
from harness.training.collective_benchmarks import CollectiveBenchmarks
from harness.training.distributed.process_group import RunProcesses, join_processes
from harness.training.measurements import Contention
from harness.training.microbenchmarks import Microbenchmarks
from harness.training.monitoring.heartbeat import Heartbeat
from harness.world import World


def measure_peak(config: Config, backend: Backend, world: World) -> dict[str, Any]:
    """Return the peak record of a backend that passed its preflight.

    In a distributed run every process calls this and measures its own device at the same time as the others. The
    record holds rank 0's rates, and the collectives of all ranks.

    Raises:
        UserError: the device cannot be used, or is emulated.
    """
    with join_processes(
        world, Layout(data=world.size), Heartbeat(), timeout_seconds=config.parallel.timeout_seconds
    ) as processes:
        try:
            backend.load()
            try:
                processes.init_collectives(backend)
                return _measure(backend, processes, config.peak_collective_seconds)
            finally:
                backend.close()
        except UserError as error:
            raise processes.failure_for_all(error) from error
        except Exception as error:
            failure = backend.classify_error(error)
            if failure is None and not world.is_distributed:
                raise
            if failure is None:
                # A bug: the other ranks end with this line, this one with the traceback too.
                processes.resolve_failure(RunFailed(f"{type(error).__name__}: {error}"))
                raise
            own = RunFailed(f"{failure.cause}; {failure.remedy}")
            own.exit_code = ExitCode.BACKEND_UNAVAILABLE
            raise processes.failure_for_all(processes.resolve_failure(own, certain=not failure.secondary)) from error


def _measure(backend: Backend, processes: RunProcesses, limit_seconds: float) -> dict[str, Any]:
    started_at, world_size = utc_now(), processes.world.size
    backend.apply("fp32")
    device = backend.describe()
    if device.get("emulated"):
        raise BackendUnavailable(
            f"backend {backend.name}: the device is emulated, so that its speed is not that of any device; measure a "
            "real one"
        )
    progress = _ProgressPrinter(processes)
    contention = Contention(backend, processes.ranks)
    benchmarks = Microbenchmarks(backend, device.get("memory_bytes"))
    products = {precision: _products(benchmarks, backend, precision, progress) for precision in PRODUCT_FORMATS}
    backend.apply("fp32")
    progress.print("memory")
    memory = benchmarks.memory_bandwidth()
    progress.print("launches and copies from the host")
    launch, host_copies = benchmarks.launch_latency(), benchmarks.host_copies()
    if world_size > 1:
        progress.print("collectives")
    collectives = CollectiveBenchmarks(backend, processes.ranks, limit_seconds, device.get("memory_bytes"),
                                       progress.heartbeat.beat)  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "peak",
        "started_at": started_at,
        "backend": {
            "name": backend.name,
            "versions": backend.versions(),
            "peak_lookup_key": backend.peak_lookup_key(),
        },
        "device": device,
        "effective_settings": {**backend.effective_settings(), "threads": backend.device_threads()},
        "environment": environment.collect(backend.environment_prefixes, backend.distributions),
        "world_size": world_size,
        "matrix_products": products,
        "memory": memory,
        "launch": launch,
        "host_copies": host_copies,
        "collectives": collectives.measure(),
        "contention": contention.finish(),
        "finished_at": utc_now(),
    }


class _ProgressPrinter:
    """Logs the stages of the measurement on rank 0, with the seconds since the start."""

    def __init__(self, processes: RunProcesses) -> None:
        self._processes, self.heartbeat, self._began = processes, processes.heartbeat, time.monotonic()

    def print(self, stage: str) -> None:
        self.heartbeat.beat()
        if self._processes.world.is_main:
            log.info(f"{time.monotonic() - self._began:5.1f} s  {stage}")


def _products(
    benchmarks: Microbenchmarks, backend: Backend, precision: str, progress: _ProgressPrinter
) -> dict[str, Any] | None:
    """Return the sweep of one precision, or None where the device does not support it."""
    progress.print(f"matrix products in {precision}")
    try:
        backend.apply(precision)
        return benchmarks.matrix_products(precision, progress.heartbeat.beat)
    except BackendUnavailable as error:
        progress.print(f"{precision} is skipped: {error}")
        return None
    except RuntimeError as error:
        if backend.classify_error(error) is not None:
            raise
        # PyTorch's own message about a precision without a kernel.
        progress.print(f"{precision} is skipped: {' '.join(str(error).split())}")
        return None
