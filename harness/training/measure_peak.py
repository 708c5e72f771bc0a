"""Measures what a device can do at most, alone or with others, and makes the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from harness import environment, log
from harness.backends.base import Backend
from harness.config import PRECISIONS, Config
from harness.errors import BackendUnavailable, UserError
from harness.records.record import SCHEMA_VERSION
from harness.training.distributed.process_group import Group
from harness.training.microbenchmarks import Ceilings
from harness.world import World


def measure_peak(config: Config, backend: Backend, world: World) -> dict[str, Any]:
    """Return the peak record of a backend that passed its preflight.

    Of several processes each calls this; each measures its own device while the others do the same, and rank 0's
    figures are returned, with those of the all-reduce that all take part in.

    Raises:
        UserError: the device cannot be used, or is an emulation and has no speed.
    """
    group = Group(world, config.parallel.timeout_seconds)
    group.connect()
    try:
        backend.load()
        try:
            group.form(backend)
            return _measure(config, backend, group)
        finally:
            backend.close()
    except UserError as error:
        raise group.refuse(error) from error
    except Exception as error:
        failure = backend.classify(error)
        if failure is None:
            raise
        raise group.refuse(BackendUnavailable(f"{failure.cause}; {failure.remedy}")) from error
    finally:
        group.close()


def _measure(config: Config, backend: Backend, group: Group) -> dict[str, Any]:
    began_utc = _now()
    backend.apply("fp32")
    device = backend.describe()
    if device.get("emulated"):
        raise BackendUnavailable(
            f"backend {backend.name}: the device is an emulation, whose speed says nothing of any device; measure a "
            "real one"
        )
    say = _teller(group)
    before = backend.condition()
    contention = environment.CpuContention()
    ceilings = Ceilings(backend, device.get("memory_bytes"))
    products = {precision: _products(ceilings, backend, precision, say, group) for precision in PRECISIONS}
    backend.apply("fp32")
    say("memory")
    memory = ceilings.memory_bandwidth()
    say("launches and copies from the host")
    peak = {
        "schema_version": SCHEMA_VERSION,
        "kind": "peak",
        "began_utc": began_utc,
        "backend": {
            "name": backend.name,
            "versions": backend.versions(),
            "peak_lookup_key": backend.peak_lookup_key(),
        },
        "device": device,
        "effective": {**backend.effective(), "threads": backend.device_threads()},
        "environment": environment.collect(backend.environment_prefixes, backend.distributions),
        "world_size": group.world.size,
        "matrix_products": products,
        "memory": memory,
        "launch": ceilings.launch_latency(),
        "host_copies": ceilings.host_copies(),
    }
    if group.world.size > 1:
        say("all-reduce")
    return {
        **peak,
        "all_reduce": ceilings.all_reduce(group.world.size),
        "contention": {
            "host_other_fraction": contention.other_fraction(),
            "device_processes": backend.other_processes(),
            "device_condition": None if before is None else {"before": before, "after": backend.condition()},
        },
        "ended_utc": _now(),
    }


def _products(
    ceilings: Ceilings, backend: Backend, precision: str, say: Callable[[str], None], group: Group
) -> dict[str, Any] | None:
    """Return the sweep of one precision, or None where the device does not have it."""
    say(f"matrix products in {precision}")
    try:
        backend.apply(precision)
        return ceilings.matrix_products(precision, group.advanced)
    except BackendUnavailable as error:
        say(f"{precision} is left out: {error}")
        return None
    except RuntimeError as error:
        if backend.classify(error) is not None:
            raise
        # A precision without a kernel: PyTorch says so in its own words.
        say(f"{precision} is left out: {' '.join(str(error).split())}")
        return None


def _teller(group: Group) -> Callable[[str], None]:
    began = time.monotonic()

    def say(what: str) -> None:
        group.advanced()
        if group.world.leads:
            log.info(f"{time.monotonic() - began:5.1f} s  {what}")

    return say


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
