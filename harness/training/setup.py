"""What is found out while a run is set up: the record is made of it, however far the run came."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from harness import environment
from harness.analysis.scaling import ScalingBaseline
from harness.backends.base import Backend
from harness.config import Config, TrackConfig
from harness.environment import Clocks
from harness.errors import BackendUnavailable, ConfigError, UserError
from harness.records.peak import find_peak
from harness.training.probe import probe
from harness.training.tuning import resolve_track
from harness.workload.data import Dataset
from harness.workload.model import parameter_count

# float32 weight, gradient and two AdamW moments.
STATE_BYTES_PER_PARAMETER = 16


@dataclass
class Facts:
    """Everything that the record says beside what was measured."""

    started_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    began: float = field(default_factory=time.perf_counter)
    setup_seconds: float | None = None
    parameters: int = 0
    init_digest: str | None = None
    batch_digest: str | None = None
    device: dict[str, Any] = field(default_factory=dict)
    # Asked once, while the device is well: after a fault it answers nothing more.
    peak_lookup_key: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    effective_settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int | None] | None = None
    skipped_steps: int | None = None
    final_norms: dict[str, float] | None = None
    other_processes_cpu_fraction: float | None = None
    device_processes: list[str] | None = None
    device_condition: dict[str, Any] | None = None
    track: TrackConfig = field(default_factory=TrackConfig)
    """As the backend resolved it."""
    parallel: dict[str, Any] | None = None
    scaling_baseline: ScalingBaseline | None = None
    measured_peak: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None
    telemetry: dict[str, Any] | None = None
    clocks: Clocks = field(default_factory=Clocks)


def inspect_or_refuse(config: Config, backend: Backend, dataset: Dataset, facts: Facts) -> None:
    """Apply the settings, probe what took effect, and note the facts of device, software, host and data.

    Raises:
        UserError: the device does not do what was asked for, or the model is too large for it.
    """
    try:
        _inspect(config, backend, dataset, facts)
    except UserError:
        raise
    except Exception as error:
        # The probes are the device's first operations: a missing kernel package, say, shows itself here.
        classified = backend.classify_error(error)
        if classified is None:
            raise
        raise BackendUnavailable(
            f"backend {backend.name} failed at its first operations: {classified.cause}; {classified.remedy}"
        ) from error


def _inspect(config: Config, backend: Backend, dataset: Dataset, facts: Facts) -> None:
    backend.apply(config.precision)
    facts.track = resolve_track(config.track, backend, sharded=config.parallel.name == "fsdp")
    config = replace(config, track=facts.track)
    backend.check_work(config)
    facts.device = backend.describe()
    if config.profile and facts.device.get("emulated"):
        raise BackendUnavailable(
            f"profile: the device of backend {backend.name} is an emulation, whose times say nothing of any device; "
            "set profile=false, or profile a real one"
        )
    facts.peak_lookup_key = backend.peak_lookup_key()
    facts.versions = backend.versions()
    facts.parameters = parameter_count(config.model)
    _refuse_too_large(config, backend, facts)
    facts.effective_settings = probe(backend, config)
    facts.environment = environment.collect(backend.environment_prefixes, backend.distributions)
    facts.data = dataset.facts()
    facts.measured_peak = find_peak(
        Path(config.peak_dir).expanduser(),
        {
            "backend": {"name": backend.name, "versions": facts.versions},
            "device": facts.device,
            "effective_settings": {"threads": backend.device_threads()},
        },
    )


def _refuse_too_large(config: Config, backend: Backend, facts: Facts) -> None:
    world, available = backend.world, facts.device.get("memory_bytes")
    needed = facts.parameters * STATE_BYTES_PER_PARAMETER
    if config.parallel.name == "fsdp":
        needed /= world.local_size if config.parallel.hybrid_shard else world.size
    if backend.devices_share_memory:
        needed *= world.local_size
    if available is not None and needed > available:
        raise ConfigError(
            f"model={config.model.name}: {facts.parameters:,} parameters need {needed / 2**30:,.1f} GiB for weights, "
            f"gradients and AdamW's moments alone, but {facts.device['name']} has {available / 2**30:,.1f} GiB; "
            "choose a smaller model or a larger device"
        )
