"""Measures what a device can do at most, alone or with others, and makes the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from harness import environment, log
from harness.backends.base import Backend
from harness.config import PRECISIONS, Config
from harness.errors import BackendUnavailable, UserError
from harness.records.record import SCHEMA_VERSION
from harness.text import utc_now
from harness.training.distributed.process_group import RunProcesses
from harness.training.microbenchmarks import Microbenchmarks
from harness.world import World


def measure_peak(config: Config, backend: Backend, world: World) -> dict[str, Any]:
    """Return the peak record of a backend that passed its preflight.

    Of several processes each calls this; each measures its own device while the others do the same, and rank 0's
    figures are returned, with those of the all-reduce that all take part in.

    Raises:
        UserError: the device cannot be used, or is an emulation and has no speed.
    """
    group = RunProcesses(world, config.parallel.timeout_seconds)
    group.connect()
    try:
        backend.load()
        try:
            group.init_collectives(backend)
            return _measure(config, backend, group)
        finally:
            backend.close()
    except UserError as error:
        raise group.failure_for_all(error) from error
    except Exception as error:
        failure = backend.classify_error(error)
        if failure is None:
            raise
        raise group.failure_for_all(BackendUnavailable(f"{failure.cause}; {failure.remedy}")) from error
    finally:
        group.close()


def _measure(config: Config, backend: Backend, group: RunProcesses) -> dict[str, Any]:
    started_at = utc_now()
    backend.apply("fp32")
    device = backend.describe()
    if device.get("emulated"):
        raise BackendUnavailable(
            f"backend {backend.name}: the device is an emulation, whose speed says nothing of any device; measure a "
            "real one"
        )
    say = _progress_printer(group)
    before = backend.clock_state()
    contention = environment.CpuContention()
    benchmarks = Microbenchmarks(backend, device.get("memory_bytes"))
    products = {precision: _products(benchmarks, backend, precision, say, group) for precision in PRECISIONS}
    backend.apply("fp32")
    say("memory")
    memory = benchmarks.memory_bandwidth()
    say("launches and copies from the host")
    peak = {
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
        "world_size": group.world.size,
        "matrix_products": products,
        "memory": memory,
        "launch": benchmarks.launch_latency(),
        "host_copies": benchmarks.host_copies(),
    }
    if group.world.size > 1:
        say("all-reduce")
    return {
        **peak,
        "all_reduce": benchmarks.all_reduce(group.world.size),
        "contention": {
            "other_processes_cpu_fraction": contention.other_fraction(),
            "device_processes": backend.other_processes(),
            "device_condition": None if before is None else {"before": before, "after": backend.clock_state()},
        },
        "finished_at": utc_now(),
    }


def _products(
    benchmarks: Microbenchmarks, backend: Backend, precision: str, say: Callable[[str], None], group: RunProcesses
) -> dict[str, Any] | None:
    """Return the sweep of one precision, or None where the device does not have it."""
    say(f"matrix products in {precision}")
    try:
        backend.apply(precision)
        return benchmarks.matrix_products(precision, group.heartbeat)
    except BackendUnavailable as error:
        say(f"{precision} is left out: {error}")
        return None
    except RuntimeError as error:
        if backend.classify_error(error) is not None:
            raise
        # A precision without a kernel: PyTorch says so in its own words.
        say(f"{precision} is left out: {' '.join(str(error).split())}")
        return None


def _progress_printer(group: RunProcesses) -> Callable[[str], None]:
    began = time.monotonic()

    def say(what: str) -> None:
        group.heartbeat()
        if group.world.is_main:
            log.info(f"{time.monotonic() - began:5.1f} s  {what}")

    return say
