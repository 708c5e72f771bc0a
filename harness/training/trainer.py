"""The model, the loop and the files of a run while it lasts."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from harness import environment
from harness.backends.base import Backend
from harness.backends.step import TrainStep
from harness.config import Config, workload_id
from harness.errors import RunFailed
from harness.records.steps import NoWriter, StepsWriter
from harness.signals import StopRequest
from harness.training.distributed.collectives import CoordinatedStop, all_of_this_host, same_on_all
from harness.training.distributed.communication import CommunicationMeter
from harness.training.distributed.parallel import parallelize_model
from harness.training.distributed.process_group import RunProcesses
from harness.training.history import TrainingHistory
from harness.training.loop import Loop, LoopObservers
from harness.training.monitoring.loggers import build_loggers
from harness.training.monitoring.progress import MetricsLoggers
from harness.training.monitoring.stderr_watch import StderrWatch
from harness.training.monitoring.telemetry import Telemetry, merge_ranks, sensor_of
from harness.training.prefetch import Prefetcher
from harness.training.probe import observe_dtypes
from harness.training.run_record import describe_ranks, rank_timing
from harness.training.setup import Facts
from harness.training.timing import StepClock
from harness.training.tuning import Compilation, apply_track, force_eager
from harness.workload.data import Dataset
from harness.workload.digest import init_digest, parameter_norms, sharded_digests, total_digest
from harness.workload.optimizer import build_optimizer, learning_rate

if TYPE_CHECKING:
    from harness.training.checkpoint_manager import CheckpointManager


class Trainer:
    """One process's part of a run, from its model to its last step."""

    def __init__(self, folder: Path, config: Config, backend: Backend, dataset: Dataset, facts: Facts,
                 stop: StopRequest, group: RunProcesses, from_step: int = 0) -> None:  # fmt: skip
        """
        Args:
            from_step: the step whose checkpoint the run goes on from; 0 begins it.
        """
        self.config, self.backend, self.dataset, self.facts = config, backend, dataset, facts
        self._stop, self.group, self.ranks = stop, group, group.ranks
        self.step_clock = StepClock(backend.synchronize, backend.event_timer(), asynchronous=backend.asynchronous)
        self._meter = CommunicationMeter(
            # FSDP's collectives run on queues of its own, where this process's time stamps tell nothing.
            events=backend.event_timer() if config.parallel.name == "ddp" else None,
            asynchronous=backend.asynchronous,
            heartbeat=group.heartbeat,
        )
        self.telemetry = Telemetry(sensor_of(backend) if config.telemetry else "telemetry=false")
        self._from_step = from_step
        self.folder = folder
        self._writer: StepsWriter | NoWriter = NoWriter()
        work = config.workload
        self.prefetcher = Prefetcher(
            dataset,
            first_step=from_step + 1,
            last_step=work.steps,
            global_batch_size=work.global_batch_size,
            micro_batch_size=work.micro_batch_size,
            pin_memory=backend.pins_host_memory,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
        )
        self._loop: Loop | None = None
        self._trained: TrainStep | None = None
        self._intervals_before = 0

    @property
    def result(self) -> TrainingHistory | None:
        """Return what has been measured so far, or None if training has not begun."""
        return None if self._loop is None else self._loop.result

    def batch_digest(self) -> str:
        """Return the digest of what was trained on: of all ranks if training ended well, else of this one."""
        return self.facts.batch_digest or self.prefetcher.digest.hexdigest()

    def train(self) -> None:
        """Train, and refuse the result if any of the work ran on the host instead of the device.

        Raises:
            RunFailed: it did, or the training itself failed.
        """
        if self.ranks.is_main:
            self._writer = StepsWriter(self.folder, self._from_step)
        with StderrWatch(self.backend.fallback_pattern) as watch:
            progress = self._build_loggers(watch.stream)
            try:
                self._train(progress)
            finally:
                progress.close()
        if not watch.complete:
            raise RunFailed(
                "the process that read standard error was ended from outside: whether part of the work ran on the host "
                "is not known, so this is no run; start it again"
            )
        found = self.ranks.gather(watch.found)
        if self.backend.fallback_pattern is not None:
            self.facts.effective_settings["cpu_fallback"] = any(words is not None for words in found)
        for rank, words in enumerate(found):
            if words is not None:
                where = f" of rank {rank}" if self.ranks.size > 1 else ""
                raise RunFailed(
                    f"part of the work{where} ran on the host instead of the device, so this is no run of it: {words}",
                    shared=True,
                )

    def close(self) -> None:
        self.prefetcher.close()
        self._writer.close()

    def _build_loggers(self, stream: TextIO) -> MetricsLoggers:
        if not self.ranks.is_main:
            return MetricsLoggers()
        return build_loggers(
            self.config,
            self.facts,
            self.folder,
            done=self._from_step,
            stream=stream,
            reading=lambda: self.telemetry.latest,
        )

    def _train(self, progress: MetricsLoggers) -> None:
        config, backend, facts = self.config, self.backend, self.facts
        parallel_model = parallelize_model(config, backend, self.ranks, self._meter, self.group.heartbeat)
        model = parallel_model.model
        apply_track(model, facts.track, backend)
        compilation = Compilation(facts.track)
        facts.init_digest = self._init_digest(model)
        self.group.heartbeat()
        optimizer = build_optimizer(model, config.workload, facts.track)
        step = backend.prepare(
            parallel_model.wrapped,
            optimizer,
            precision=config.precision,
            max_grad_norm=config.workload.max_grad_norm,
            grad_sync=parallel_model.grad_sync,
            skip_nonfinite=config.on_nonfinite == "skip",
        )
        checkpoint_manager = self._checkpoint_manager(model, optimizer, step)
        first = torch.from_numpy(self.dataset.train(0, 1))
        with force_eager(facts.track):
            facts.effective_settings["linear_output_dtypes"] = observe_dtypes(step, model, first, config.precision)
        backend.reset_peak_memory()
        agreement = CoordinatedStop(self.ranks, self._stop)
        self._loop = Loop(
            config,
            step,
            self.prefetcher,
            self.dataset,
            self.step_clock,
            self._writer,
            progress,
            stop_requested=agreement.requested,
            ranks=self.ranks,
            done=checkpoint_manager.resume(self._from_step)
            if checkpoint_manager is not None and self._from_step
            else None,
            save=checkpoint_manager.save if checkpoint_manager is not None else None,
            communication=self._meter.pop,
            heartbeat=self.group.heartbeat,
            watch=LoopObservers(compilation, self.telemetry, self.group.heartbeat_writer),
        )
        self._intervals_before = len(self._loop.result.intervals)
        self._run_loop(model, step)
        if (compiled := compilation.facts()) is not None:
            facts.effective_settings["compilation"] = compiled
        self._trained = step

    def profile(self) -> None:
        """Note where the time of a step goes, unless a stop is asked for meanwhile. Collective.

        It trains on, so everything else has been asked by now, and `close` been called: nothing makes batches.

        Raises:
            RunFailed: the trace cannot be written.
        """
        # Here, since importing PyTorch's profiler takes a while that most runs need not spend.
        from harness.training.profiling import STEPS, profile_steps

        step = self._trained
        assert step is not None
        work, ranks, backend = self.config.workload, self.ranks, self.backend
        share = work.global_batch_size // ranks.size
        batches = []
        for number in range(min(STEPS, work.steps)):
            sequences = self.dataset.train(number * work.global_batch_size + ranks.rank * share, share)
            batch = torch.from_numpy(sequences)
            batches.append((batch.pin_memory() if backend.pins_host_memory else batch).split(work.micro_batch_size))
        self.facts.profile = profile_steps(
            step,
            batches,
            learning_rate(work.steps, work),
            backend=backend,
            folder=self.folder,
            rank=ranks.rank,
            waited=(lambda: self._meter.pop()[1]) if ranks.size > 1 else (lambda: 0.0),
            stop_requested=CoordinatedStop(ranks, self._stop).requested,
            uncompiled=lambda: force_eager(self.facts.track),
            heartbeat=self.group.heartbeat,
        )

    def _run_loop(self, model: torch.nn.Module, step: TrainStep) -> None:
        facts, backend, ranks = self.facts, self.backend, self.ranks
        assert self._loop is not None
        facts.setup_seconds = time.perf_counter() - facts.began
        contention = environment.CpuContention(all_of_this_host(ranks))
        facts.device_processes = backend.other_processes()
        before = backend.clock_state()
        self._meter.pop()
        try:
            self.telemetry.start()
            try:
                with self._stop.deferred():
                    self._loop.run()
            finally:
                self.telemetry.stop()
        except RunFailed as error:
            if error.shared or ranks.size == 1:
                # The device itself is well: what it knows of the run is kept.
                facts.other_processes_cpu_fraction = contention.other_fraction()
                self._collect_measurements(model, step)
            raise
        self.dataset.refuse_changes()
        facts.other_processes_cpu_fraction = contention.other_fraction()
        if before is not None:
            # At once: a device that was held down cools within seconds.
            facts.device_condition = {"before": before, "after": backend.clock_state()}
        self._collect_measurements(model, step)

    def _checkpoint_manager(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: TrainStep
    ) -> CheckpointManager | None:
        """Return what saves and resumes this run, if it is to write checkpoints."""
        if not self.config.checkpoint.every:
            return None
        # Here, since importing PyTorch's checkpoints takes a while that most runs need not spend.
        from harness.training.checkpoint import CheckpointStore, TrainingState
        from harness.training.checkpoint_manager import CheckpointManager

        config, facts = self.config, self.facts
        return CheckpointManager(
            checkpoints=CheckpointStore(
                self.folder, self.ranks, workload_id=workload_id(config), keep=config.checkpoint.keep
            ),
            state=TrainingState(model, optimizer),
            step=step,
            dataset=self.dataset,
            batch_digest=self.prefetcher.digest,
            ranks=self.ranks,
            global_batch_size=config.workload.global_batch_size,
            fixed={"init": facts.init_digest, "data": facts.data},
        )

    def _collect_measurements(self, model: torch.nn.Module, step: TrainStep) -> None:
        facts, ranks = self.facts, self.ranks
        assert self._loop is not None
        facts.final_norms = parameter_norms(model)
        facts.memory = self.backend.memory()
        facts.skipped_steps = step.skipped_steps()
        facts.batch_digest = ranks.combined_digest(self.prefetcher.digest)
        # Of this process alone: what an earlier attempt drew, nobody has read.
        own = self._loop.result.intervals[self._intervals_before :]
        measured = [interval for phase, interval in own if phase == "measured"]
        told = self.telemetry.facts(
            math.fsum(interval.seconds for interval in measured),
            sum(interval.steps for interval in measured)
            * self.config.workload.global_batch_size
            * self.config.workload.seq_len,
        )
        facts.telemetry = merge_ranks(ranks.gather(told))
        if self.group.world.is_distributed:
            own = {
                "host": facts.environment.get("host"),
                "device": facts.device.get("name"),
                "device_index": facts.device.get("index"),
                "peak_allocated_bytes": (facts.memory or {}).get("peak_allocated_bytes"),
                **rank_timing(self._loop.result),
            }
            facts.parallel = describe_ranks(ranks.gather(own))

    def _init_digest(self, model: torch.nn.Module) -> str:
        """Return the digest of the initial weights; of sharded ones, put together from all ranks.

        Raises:
            RunFailed: the ranks do not have the same weights.
        """
        ranks = self.ranks
        if self.config.parallel.name == "fsdp":
            parts = ranks.gather(sharded_digests(model, ranks.rank, ranks.size, self.group.heartbeat))
            return total_digest({name: digest for part in parts for name, digest in part.items()})
        same_on_all(ranks, "the initial weights", digest := init_digest(model))
        return digest
