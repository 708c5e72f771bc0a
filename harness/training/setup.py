"""Set-up of a run: settings applied, the track resolved, effective settings probed, and the run described."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import environment
from harness.analysis.flops import STATE_BYTES_PER_PARAMETER
from harness.analysis.scaling import ScalingBaseline, scaling_baseline
from harness.backends.base import Backend
from harness.config import Config
from harness.environment import Clocks
from harness.errors import BackendUnavailable, ConfigError, UserError
from harness.layout import Layout
from harness.records.peak import find_peak
from harness.records.search import apply_search
from harness.text import utc_now
from harness.training.distributed.parallel import uses_mesh
from harness.training.distributed.process_group import RunProcesses
from harness.training.probe import probe
from harness.training.tuning import resolve_track
from harness.workload.data import Dataset
from harness.workload.model import parameter_count


@dataclass(frozen=True)
class RunStart:
    """Start of a run, by every clock that its record needs."""

    started_at: str = field(default_factory=utc_now)
    began_seconds: float = field(default_factory=time.perf_counter)
    clocks: Clocks = field(default_factory=Clocks)


@dataclass(frozen=True)
class RunDescription:
    """Everything in a run's record that is known before training."""

    start: RunStart
    config: Config
    """As given by the user, with the settings of a search (autotuned); the training uses the config with the resolved
    track."""
    backend_name: str
    world_size: int
    layout: Layout
    parameters: int
    device: dict[str, Any]
    peak_lookup_key: str | None
    versions: dict[str, str | None]
    effective_settings: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    search: dict[str, Any] | None
    """The search whose answers are part of the config (autotuned)."""
    measured_peak: dict[str, Any] | None
    scaling_baseline: ScalingBaseline | None


def describe_run(
    config: Config, backend: Backend, dataset: Dataset, processes: RunProcesses, start: RunStart
) -> tuple[Config, RunDescription]:
    """Apply the settings, probe those in effect, and return the config with its track resolved, and the description.

    Collective, since rank 0 reads the run that scaling is measured against.

    Raises:
        UserError: the device does not support the settings, or the model is too large for it.
    """
    try:
        return _describe(config, backend, dataset, processes, start)
    except UserError:
        raise
    except Exception as error:
        # The probes are the device's first operations: a missing kernel package, for instance, fails here.
        classified = backend.classify_error(error)
        if classified is None:
            raise
        raise BackendUnavailable(
            f"backend {backend.name} failed at its first operations: {classified.cause}; {classified.remedy}"
        ) from error


def _describe(
    config: Config, backend: Backend, dataset: Dataset, processes: RunProcesses, start: RunStart
) -> tuple[Config, RunDescription]:
    backend.apply(config.precision)
    ranks = processes.ranks
    # Read once, while the device works: after a fault it may not answer.
    device, versions, threads = backend.describe(), backend.versions(), backend.device_threads()
    identity = {
        "backend": {"name": backend.name, "versions": versions},
        "device": device,
        "effective_settings": {"threads": threads},
    }
    search = None
    if config.autotuned:
        config, search = apply_search(config, identity)
    track = resolve_track(config, backend, ranks.layout,
                          sharded=uses_mesh(config, ranks), alone=not ranks.world.is_distributed)  # fmt: skip
    resolved = replace(config, track=track)
    backend.check_work(resolved)
    if config.profile and device.get("emulated"):
        raise BackendUnavailable(
            f"profile: backend {backend.name} runs on an emulated device, whose times are not those of any device; "
            "set profile=false, or profile a real device"
        )
    parameters = parameter_count(config.model)
    _check_memory(config, backend, device, parameters, processes.ranks.layout)
    return resolved, RunDescription(
        start=start,
        config=config,
        backend_name=backend.name,
        world_size=processes.world.size,
        layout=processes.ranks.layout,
        parameters=parameters,
        device=device,
        peak_lookup_key=backend.peak_lookup_key(),
        versions=versions,
        effective_settings=probe(backend, resolved),
        environment=environment.collect(backend.environment_prefixes, backend.distributions),
        data=dataset.describe(),
        search=search,
        measured_peak=find_peak(Path(config.peak_dir).expanduser(), identity),
        scaling_baseline=processes.broadcast_from_main(
            lambda: scaling_baseline(config, processes.world.size, device, threads)
        ),
    )


def _check_memory(config: Config, backend: Backend, device: dict[str, Any], parameters: int, layout: Layout) -> None:
    """Raise ConfigError if weights, gradients and AdamW's moments alone exceed the device's memory."""
    world, holder, available = backend.world, device["name"], device.get("memory_bytes")
    needed = parameters * STATE_BYTES_PER_PARAMETER / (layout.size / layout.data)
    if config.parallel.cpu_offload:
        holder, available = "the host", environment.memory_limit_bytes()
    if backend.devices_share_memory or config.parallel.cpu_offload:
        needed *= world.local_size
    if available is not None and needed > available:
        raise ConfigError(
            f"model={config.model.name}: {parameters:,} parameters need {needed / 2**30:,.1f} GiB for weights, "
            f"gradients and AdamW's moments alone, but {holder} has {available / 2**30:,.1f} GiB; "
            "choose a smaller model or a larger device"
        )
