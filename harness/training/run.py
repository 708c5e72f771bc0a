"""One run from its settings to its record."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from harness import environment
from harness.backends.base import Backend, TrainStep
from harness.config import Config, to_yaml
from harness.errors import BackendUnavailable, ConfigError, Interrupted, RunFailed, UserError
from harness.record import StepsWriter, claim_folder, write_config, write_record
from harness.training.loop import Loop
from harness.training.prefetch import Prefetcher
from harness.training.probe import observe_step, probe
from harness.training.progress import Progress
from harness.training.results import assemble
from harness.training.signals import StopRequest, stop_on_signals
from harness.training.stderr_watch import StderrWatch
from harness.training.timing import StepClock
from harness.workload.data import Dataset, open_dataset
from harness.workload.digest import init_digest, parameter_norms
from harness.workload.initialisation import build_model
from harness.workload.model import parameter_count
from harness.workload.optimizer import build_optimizer

# float32 weight, gradient and two AdamW moments.
STATE_BYTES_PER_PARAMETER = 16


@dataclass
class Outcome:
    """How a run ended, and where its record lies."""

    folder: Path
    record: dict[str, Any]
    failure: RunFailed | None = None
    interrupted: Interrupted | None = None


@dataclass
class _Facts:
    """What is found out while a run is set up; the record is made of it, however far the run came."""

    began_utc: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    began: float = field(default_factory=time.perf_counter)
    setup_seconds: float | None = None
    parameters: int = 0
    init_digest: str | None = None
    device: dict[str, Any] = field(default_factory=dict)
    # Asked once, while the device is well: after a fault it answers nothing more.
    peak_lookup_key: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    effective: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int | None] | None = None
    skipped_steps: int | None = None
    final_norms: dict[str, float] | None = None
    host_other_fraction: float | None = None
    device_processes: list[str] | None = None
    device_condition: dict[str, Any] | None = None


def run(config: Config, backend: Backend) -> Outcome:
    """Train and time the configured workload on a backend that passed its preflight, and write the record.

    Whatever happens once the folder is claimed, a record is written that says so.

    Raises:
        UserError: nothing was run: the data, the device or the folder is not fit for it.
        Interrupted: a signal came before training began.
    """
    with stop_on_signals() as stop:
        facts = _Facts()
        dataset = _open_data(config)
        backend.load()
        try:
            _inspect_or_refuse(config, backend, dataset, facts)
            folder = claim_folder(config.out, f"{backend.name}-{config.model.name}")
            write_config(folder, to_yaml(config))
            return _run_in(folder, config, backend, dataset, facts, stop)
        finally:
            backend.close()


def _open_data(config: Config) -> Dataset:
    dataset = open_dataset(config)
    if config.workload.eval_every:
        dataset.require_held_out(config.workload.eval_sequences)
        dataset.held_out(0, config.workload.eval_sequences)
    # A token id beyond the vocabulary should be found now rather than in an hour, where the first batch shows it.
    dataset.train(0, config.workload.global_batch_size)
    return dataset


def _inspect_or_refuse(config: Config, backend: Backend, dataset: Dataset, facts: _Facts) -> None:
    try:
        _inspect(config, backend, dataset, facts)
    except UserError:
        raise
    except Exception as error:
        # The probes are the device's first operations: a missing kernel package, say, shows itself here.
        classified = backend.classify(error)
        if classified is None:
            raise
        raise BackendUnavailable(
            f"backend {backend.name} failed at its first operations: {classified.cause}; {classified.remedy}"
        ) from error


def _inspect(config: Config, backend: Backend, dataset: Dataset, facts: _Facts) -> None:
    backend.apply(config.precision)
    backend.check_work(config)
    facts.device = backend.describe()
    facts.peak_lookup_key = backend.peak_lookup_key()
    facts.versions = backend.versions()
    facts.parameters = parameter_count(config.model)
    available = facts.device.get("memory_bytes")
    needed = facts.parameters * STATE_BYTES_PER_PARAMETER
    if available is not None and needed > available:
        raise ConfigError(
            f"model={config.model.name}: {facts.parameters:,} parameters need {needed / 2**30:,.1f} GiB for weights, "
            f"gradients and AdamW's moments alone, but {facts.device['name']} has {available / 2**30:,.1f} GiB; "
            "choose a smaller model or a larger device"
        )
    facts.effective = probe(backend, config)
    facts.environment = environment.collect(backend.environment_prefixes, backend.distributions)
    facts.data = dataset.facts()


def _run_in(
    folder: Path, config: Config, backend: Backend, dataset: Dataset, facts: _Facts, stop: StopRequest
) -> Outcome:
    failure: RunFailed | None = None
    interrupted: Interrupted | None = None
    session = _Session(folder, config, backend, dataset, facts, stop)
    try:
        session.train_watched()
        if stop.signal_number is not None:
            interrupted = Interrupted(stop.signal_number)
    except RunFailed as error:
        failure = error
    except UserError as error:
        failure = RunFailed(str(error))
    except Interrupted as error:
        interrupted = error
    except Exception as error:
        classified = backend.classify(error)
        if classified is None:
            # Ours to mend: leave the record, then let the traceback be seen.
            _write(folder, config, backend, session, RunFailed(f"{type(error).__name__}: {error}"), None)
            raise
        failure = RunFailed(f"{classified.cause}; {classified.remedy}", classified.status)
    finally:
        session.close()
    record = _write(folder, config, backend, session, failure, interrupted)
    return Outcome(folder, record, failure, interrupted)


class _Session:
    """The model, the loop and the files of a run while it lasts."""

    def __init__(self, folder: Path, config: Config, backend: Backend, dataset: Dataset, facts: _Facts,
                 stop: StopRequest) -> None:  # fmt: skip
        self.config, self.backend, self.dataset, self.facts, self.stop = config, backend, dataset, facts, stop
        self.step_clock = StepClock(backend.synchronize, backend.event_timer(), asynchronous=backend.asynchronous)
        self.writer = StepsWriter(folder)
        work = config.workload
        self.prefetcher = Prefetcher(
            dataset,
            first_step=1,
            last_step=work.steps,
            global_batch_size=work.global_batch_size,
            micro_batch_size=work.micro_batch_size,
            pin_memory=backend.pins_host_memory,
        )
        self.loop: Loop | None = None

    def train_watched(self) -> None:
        """Train, and refuse the result if any of the work ran on the host instead of the device."""
        with StderrWatch(self.backend.fallback_pattern) as watch:
            shows_speed = not self.facts.device.get("emulated")
            progress = Progress(self.config.workload.steps, shows_speed=shows_speed, stream=watch.stream)
            try:
                self.train(progress)
            finally:
                progress.close()
        if self.backend.fallback_pattern is not None:
            self.facts.effective["cpu_fallback"] = watch.found is not None
        if watch.found is not None:
            raise RunFailed(
                f"part of the work ran on the host instead of the device, so this is no run of it: {watch.found}"
            )

    def train(self, progress: Progress) -> None:
        config, backend, facts = self.config, self.backend, self.facts
        model = build_model(config.model, config.seed, backend.device())
        facts.init_digest = init_digest(model)
        optimizer = build_optimizer(model, config.workload, config.track)
        step = backend.prepare(
            model,
            optimizer,
            precision=config.precision,
            gradient_clip_norm=config.workload.gradient_clip_norm,
        )
        first = torch.from_numpy(self.dataset.train(0, 1))
        facts.effective["linear_output_dtypes"] = observe_step(step, model, first, config.precision)
        backend.reset_peak_memory()
        self.loop = Loop(
            config,
            step,
            self.prefetcher,
            self.dataset,
            self.step_clock,
            self.writer,
            progress,
            stop_requested=self.stop.requested,
        )
        facts.setup_seconds = time.perf_counter() - facts.began
        contention = environment.CpuContention()
        facts.device_processes = backend.other_processes()
        before = backend.condition()
        try:
            with self.stop.deferred():
                self.loop.run()
        except RunFailed:
            # The device itself is well: what it knows of the run is kept.
            self._ask_device(model, step)
            raise
        finally:
            facts.host_other_fraction = contention.other_fraction()
        if before is not None:
            # At once: a device that was held down cools within seconds.
            facts.device_condition = {"before": before, "after": backend.condition()}
        self._ask_device(model, step)

    def _ask_device(self, model: torch.nn.Module, step: TrainStep) -> None:
        self.facts.final_norms = parameter_norms(model)
        self.facts.memory = self.backend.memory()
        self.facts.skipped_steps = step.skipped_steps()

    def close(self) -> None:
        self.prefetcher.close()
        self.writer.close()


def _write(folder: Path, config: Config, backend: Backend, session: _Session, failure: RunFailed | None,
           interrupted: Interrupted | None) -> dict[str, Any]:  # fmt: skip
    status = "ok"
    if failure is not None:
        status = failure.status
    elif interrupted is not None:
        status = "interrupted"
    record = assemble(
        config,
        status=status,
        error=str(failure) if failure is not None else None,
        facts=session.facts,
        progressed=session.loop.result if session.loop is not None else None,
        batch_digest=session.prefetcher.digest.hexdigest(),
        step_seconds_method=session.step_clock.step_seconds_method,
        backend_name=backend.name,
    )
    write_record(folder, record)
    return record
