"""Trainer: one process's part of a training, with its model, its loop, its files and its measurements."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness import log
from harness.backends.base import Backend
from harness.backends.step import TrainStep
from harness.config import Config, conditions, flatten, to_dict
from harness.errors import RunFailed
from harness.training.distributed.collectives import CoordinatedStop
from harness.training.distributed.communication import CommunicationMeter, ExchangeObserver
from harness.training.distributed.copies import check_copies
from harness.training.distributed.parallel import uses_ddp
from harness.training.distributed.process_group import RunProcesses
from harness.training.fingerprint import Fingerprint
from harness.training.history import TrainingHistory
from harness.training.loop import Loop
from harness.training.measurements import Contention, Measurements, collect_measurements
from harness.training.monitoring.loggers import build_loggers
from harness.training.monitoring.stderr_watch import StderrWatch
from harness.training.monitoring.telemetry import Telemetry, sensor_of
from harness.training.observer import LoopObserver, LoopObservers
from harness.training.prefetch import Prefetcher
from harness.training.prepare import PreparedTraining, observe_training_step, prepare_training
from harness.training.setup import RunDescription
from harness.training.timing import StepClock
from harness.workload.data import Dataset
from harness.workload.model import compared_weights

if TYPE_CHECKING:
    from harness.training.checkpoint_manager import CheckpointManager


class Trainer:
    """One process's part of a training, from its model to its last step.

    `history` and `measurements` are current at any time, also after an exception and from another thread.
    """

    def __init__(self, folder: Path, config: Config, description: RunDescription, backend: Backend, dataset: Dataset,
                 processes: RunProcesses, stop: CoordinatedStop, *, from_step: int = 0) -> None:  # fmt: skip
        """
        Args:
            config: with its track resolved.
            from_step: the step of the checkpoint to resume from; 0 for a new run.
        """
        self._folder, self._config, self._description = folder, config, description
        self._backend, self._dataset, self._processes = backend, dataset, processes
        self._stop, self._from_step = stop, from_step
        self.history = TrainingHistory()
        self._step_clock = StepClock(backend.synchronize, backend.event_timer(), asynchronous=backend.asynchronous)
        self._measurements = Measurements(step_seconds_method=self._step_clock.step_seconds_method)
        layout = processes.ranks.layout
        # FSDP's collectives run, and wait, on streams of their own: the stream that computes waits for those later.
        hidden = backend.asynchronous and not uses_ddp(config, layout)
        # Only PyTorch's own group makes one operation of queued sends and receives. Through the meter's group, two
        # stages that send to each other would wait for ever.
        queued = backend.asynchronous and layout.pipeline > 1
        self._meter = processes.ranks.meter = CommunicationMeter(
            events=backend.event_timer(),
            asynchronous=backend.asynchronous,
            unseen=frozenset({"data", "shard"}) if hidden else frozenset(),
            unmetered=frozenset({"pipeline"}) if queued else frozenset(),
            heartbeat=processes.heartbeat.beat,
        )
        self._telemetry = Telemetry(sensor_of(backend) if config.telemetry else "telemetry=false")
        self._prefetcher = Prefetcher(
            dataset,
            config.workload,
            first_step=from_step + 1,
            pin_memory=backend.pins_host_memory,
            rank=processes.ranks.share,
            ranks=processes.ranks.layout.shares,
        )

    @property
    def measurements(self) -> Measurements:
        """The measurements so far; the batch digest is this rank's own until the training has ended well."""
        own = self._prefetcher.digest.hexdigest()
        return replace(self._measurements, batch_digest=self._measurements.batch_digest or own)

    def train(self, observer: LoopObserver) -> TrainStep:
        """Train, and return the training step that was used. Collective.

        Args:
            observer: called in addition to the run's own observers.

        Raises:
            RunFailed: part of the work fell back to the CPU, or the training itself failed.
        """
        with StderrWatch(self._backend.fallback_pattern) as watch:
            prepared = self._train(watch.stream, observer)
        self._check_fallback(watch)
        return prepared.step

    def close(self) -> None:
        self._prefetcher.close()

    def profile(self, step: TrainStep) -> dict[str, Any] | None:
        """Return the profile of a step, or None if a stop was requested meanwhile. Collective.

        It changes the weights, so it comes last, and after `close`, so that no thread makes batches meanwhile.

        Raises:
            RunFailed: the trace cannot be written.
        """
        # Imported here, since PyTorch's profiler takes time to import that most runs save.
        from harness.training.profiling import profile_steps

        return profile_steps(
            step,
            self._config,
            self._dataset,
            backend=self._backend,
            folder=self._folder,
            processes=self._processes,
            stop_requested=self._stop.requested,
        )

    def _train(self, stream: TextIO, observer: LoopObserver) -> PreparedTraining:
        config, backend, ranks = self._config, self._backend, self._processes.ranks
        heartbeat = self._processes.heartbeat
        self._step_clock.check()
        fingerprint = Fingerprint(config, backend, self._dataset, ranks, heartbeat.beat)
        prepared = self._prepare(fingerprint)
        checkpoints = self._checkpoint_manager(prepared)
        state_before = prepared.step.state()
        backend.reset_peak_memory()
        self._restore_history(checkpoints)
        observers = LoopObservers(
            ExchangeObserver(self._meter, self.history),
            prepared.compilation,
            fingerprint.first_step_observer(prepared, self.history),
            self._telemetry,
            observer,
            *self._loggers(stream),
        )

        def stop_requested() -> bool:
            heartbeat.beat()
            return self._stop.requested()

        loop = Loop(
            config,
            prepared.step,
            self._prefetcher,
            self._step_clock,
            prepared.evaluator,
            ranks,
            observers,
            stop_requested=stop_requested,
            checkpoints=checkpoints,
        )
        try:
            self._run_loop(loop, prepared)
        finally:
            observers.close()
        if (compiled := prepared.compilation.to_record()) is not None:
            self._measurements = self._measurements.observing(compilation=compiled)
        if self.history.fingerprint is not None and not self._stop.requested():
            fingerprint.repeat_first_step(prepared, state_before, self.history.fingerprint)
        return prepared

    def _prepare(self, fingerprint: Fingerprint) -> PreparedTraining:
        """Build what the training needs, and look at its computation. Collective."""
        config, ranks = self._config, self._processes.ranks
        looking = config.fingerprint and not self._from_step
        in_fp32 = fingerprint.look_in_fp32() if looking else None
        prepared = prepare_training(
            config,
            self._backend,
            self._dataset,
            ranks,
            self._prefetcher.digest,
            self._processes.heartbeat.beat,
        )
        self._measurements = replace(self._measurements, init_digest=prepared.init_digest)
        observed = observe_training_step(prepared, config, self._dataset, ranks)
        self._measurements = self._measurements.observing(**observed.to_settings())
        if looking:
            self.history.fingerprint = fingerprint.take_first_looks(prepared, observed.activations, in_fp32)
        return prepared

    def _restore_history(self, checkpoints: CheckpointManager | None) -> None:
        """Resume from the checkpoint, if there is one, and leave times under other conditions out. Collective."""
        if self._from_step and checkpoints is not None:
            self.history = checkpoints.resume(self._from_step)
        # Rank 0's, which a checkpoint holds: hosts may differ, and all ranks have to decide alike.
        changed = self.history.continue_under(self._processes.ranks.broadcast_from_main(self._conditions))
        if changed and self._processes.world.is_main:
            log.warning(f"the steps before are left out of the timing, since conditions changed: {'; '.join(changed)}")

    def _conditions(self) -> dict[str, Any]:
        """Return what a step time depends on besides the work."""
        description = self._description
        return {
            **conditions(to_dict(self._config)),
            # Axes that were left open have their sizes in the layout.
            **flatten({"parallel": asdict(description.layout)}),
            "threads": description.effective_settings["threads"],
            "world_size": description.world_size,
            "device": description.device.get("name"),
            "software": description.versions,
        }

    def _run_loop(self, loop: Loop, prepared: PreparedTraining) -> None:
        """Run the loop, and collect the measurements."""
        ranks, own_from = self._processes.ranks, len(self.history.intervals)
        setup_seconds = time.perf_counter() - self._description.start.began_seconds
        self._measurements = replace(self._measurements, setup_seconds=setup_seconds)
        contention = Contention(self._backend, ranks)
        self._meter.pop()
        try:
            with self._telemetry, self._stop.deferred():
                loop.run(self.history)
        except RunFailed as error:
            if error.shared or ranks.size == 1:
                # The device itself works, so that its measurements are kept.
                self._measurements = replace(self._measurements, **contention.finish(device_is_well=False))
                self._collect(prepared, own_from)
            raise
        self._dataset.check_unchanged()
        check_copies(prepared.model, ranks, self._backend.device())
        self._measurements = replace(self._measurements, **contention.finish())
        self._collect(prepared, own_from)

    def _collect(self, prepared: PreparedTraining, own_from: int) -> None:
        work = self._config.workload
        self._measurements = collect_measurements(
            self._measurements,
            parameters=compared_weights(prepared.parameters, self._config.model),
            step=prepared.step,
            backend=self._backend,
            ranks=self._processes.ranks,
            batch_digest=self._prefetcher.digest,
            telemetry=self._telemetry,
            history=self.history,
            own_from=own_from,
            device=self._description.device,
            host=self._description.environment.get("host"),
            tokens_per_step=work.global_batch_size * work.seq_len,
        )

    def _checkpoint_manager(self, prepared: PreparedTraining) -> CheckpointManager | None:
        if not self._config.checkpoint.every:
            return None
        # Imported here, since PyTorch's checkpoints take time to import that most runs save.
        from harness.training.checkpoint_manager import make_checkpoint_manager

        return make_checkpoint_manager(
            self._folder, self._config, prepared, self._dataset, self._prefetcher.digest, self._processes,
            data=self._description.data,
        )  # fmt: skip

    def _loggers(self, stream: TextIO) -> list[LoopObserver]:
        if not self._processes.world.is_main:
            return []
        device = self._description.device
        return build_loggers(
            self._config, self._folder, device, self._telemetry, stream=stream, from_step=self._from_step
        )

    def _check_fallback(self, watch: StderrWatch) -> None:
        """Raise RunFailed if part of any rank's work fell back to the CPU, or if that is unknown. Collective."""
        if not watch.complete:
            raise RunFailed(
                "the process that reads standard error was killed, so that it is unknown whether part of the work ran "
                "on the host; the run does not count: run it again"
            )
        ranks = self._processes.ranks
        found = ranks.gather(watch.found)
        if self._backend.fallback_pattern is not None:
            fell_back = any(line is not None for line in found)
            self._measurements = self._measurements.observing(cpu_fallback=fell_back)
        for rank, line in enumerate(found):
            if line is not None:
                where = f" of rank {rank}" if ranks.size > 1 else ""
                raise RunFailed(
                    f"part of the work{where} ran on the host instead of the device, so the run does not count: {line}",
                    shared=True,
                )
