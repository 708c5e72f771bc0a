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
from harness.training.distributed.collectives import StopAgreement, all_of_this_host, same_on_all
from harness.training.distributed.communication import CommunicationMeter
from harness.training.distributed.process_group import Group
from harness.training.history import Progressed
from harness.training.loop import Loop, Watches
from harness.training.monitoring.loggers import listeners_of
from harness.training.monitoring.progress import Listeners
from harness.training.monitoring.stderr_watch import StderrWatch
from harness.training.monitoring.telemetry import Telemetry, combined, sensor_of
from harness.training.prefetch import Prefetcher
from harness.training.probe import observe_step
from harness.training.run_record import describe_ranks, own_times
from harness.training.setup import Facts
from harness.training.spread import Spread
from harness.training.timing import StepClock
from harness.training.tuning import Compilation, tune, watched_eagerly
from harness.workload.data import Dataset
from harness.workload.digest import init_digest, parameter_norms, sharded_digests, total_digest
from harness.workload.initialization import build_model
from harness.workload.optimizer import build_optimizer, learning_rate

if TYPE_CHECKING:
    from harness.training.checkpoint_manager import Keeper


class Session:
    """One process's part of a run, from its model to its last step."""

    def __init__(self, folder: Path, config: Config, backend: Backend, dataset: Dataset, facts: Facts,
                 stop: StopRequest, group: Group, from_step: int = 0) -> None:  # fmt: skip
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
            advanced=group.advanced,
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
        self._blocks_before = 0

    @property
    def result(self) -> Progressed | None:
        """Return what has been measured so far, or None if training has not begun."""
        return None if self._loop is None else self._loop.result

    def batch_digest(self) -> str:
        """Return the digest of what was trained on: of all ranks if training ended well, else of this one."""
        return self.facts.batch_digest or self.prefetcher.digest.hexdigest()

    def train_watched(self) -> None:
        """Train, and refuse the result if any of the work ran on the host instead of the device.

        Raises:
            RunFailed: it did, or the training itself failed.
        """
        if self.ranks.leads:
            self._writer = StepsWriter(self.folder, self._from_step)
        with StderrWatch(self.backend.fallback_pattern) as watch:
            progress = self._listeners(watch.stream)
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
            self.facts.effective["cpu_fallback"] = any(words is not None for words in found)
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

    def _listeners(self, stream: TextIO) -> Listeners:
        if not self.ranks.leads:
            return Listeners()
        return listeners_of(
            self.config,
            self.facts,
            self.folder,
            done=self._from_step,
            stream=stream,
            reading=lambda: self.telemetry.latest,
        )

    def _train(self, progress: Listeners) -> None:
        config, backend, facts = self.config, self.backend, self.facts
        spread = self._spread()
        model = spread.model
        tune(model, facts.track, backend)
        compilation = Compilation(facts.track)
        facts.init_digest = self._init_digest(model)
        self.group.advanced()
        optimizer = build_optimizer(model, config.workload, facts.track)
        step = backend.prepare(
            spread.call,
            optimizer,
            precision=config.precision,
            gradient_clip_norm=config.workload.gradient_clip_norm,
            exchange=spread.exchange,
            skip_nonfinite=config.on_nonfinite == "skip",
        )
        keeper = self._keeper(model, optimizer, step)
        first = torch.from_numpy(self.dataset.train(0, 1))
        with watched_eagerly(facts.track):
            facts.effective["linear_output_dtypes"] = observe_step(step, model, first, config.precision)
        backend.reset_peak_memory()
        agreement = StopAgreement(self.ranks, self._stop)
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
            done=keeper.resume(self._from_step) if keeper is not None and self._from_step else None,
            save=keeper.save if keeper is not None else None,
            communication=self._meter.take,
            advanced=self.group.advanced,
            watch=Watches(compilation, self.telemetry, self.group.pulse),
        )
        self._blocks_before = len(self._loop.result.blocks)
        self._run_loop(model, step)
        if (compiled := compilation.facts()) is not None:
            facts.effective["compilation"] = compiled
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
            waited=(lambda: self._meter.take()[1]) if ranks.size > 1 else (lambda: 0.0),
            stop_requested=StopAgreement(ranks, self._stop).requested,
            uncompiled=lambda: watched_eagerly(self.facts.track),
            advanced=self.group.advanced,
        )

    def _spread(self) -> Spread:
        """Return the model with its initial weights, on this process's device or spread over all."""
        config = self.config
        if config.parallel.name == "single":
            model = build_model(config.model, config.seed, self.backend.device())
            return Spread(model, model)
        # Here, since importing PyTorch's engines takes a second that a run on one device need not spend.
        from harness.training.distributed.parallel import spread_model

        return spread_model(config, self.backend, self.ranks, self._meter, self.group.advanced)

    def _run_loop(self, model: torch.nn.Module, step: TrainStep) -> None:
        facts, backend, ranks = self.facts, self.backend, self.ranks
        assert self._loop is not None
        facts.setup_seconds = time.perf_counter() - facts.began
        contention = environment.CpuContention(all_of_this_host(ranks))
        facts.device_processes = backend.other_processes()
        before = backend.condition()
        self._meter.take()
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
                facts.host_other_fraction = contention.other_fraction()
                self._ask_device(model, step)
            raise
        self.dataset.refuse_changes()
        facts.host_other_fraction = contention.other_fraction()
        if before is not None:
            # At once: a device that was held down cools within seconds.
            facts.device_condition = {"before": before, "after": backend.condition()}
        self._ask_device(model, step)

    def _keeper(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: TrainStep) -> Keeper | None:
        """Return what saves and resumes this run, if it is to write checkpoints."""
        if not self.config.checkpoint.every:
            return None
        # Here, since importing PyTorch's checkpoints takes a while that most runs need not spend.
        from harness.training.checkpoint import Checkpoints, TrainingState
        from harness.training.checkpoint_manager import Keeper

        config, facts = self.config, self.facts
        return Keeper(
            checkpoints=Checkpoints(
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

    def _ask_device(self, model: torch.nn.Module, step: TrainStep) -> None:
        facts, ranks = self.facts, self.ranks
        assert self._loop is not None
        facts.final_norms = parameter_norms(model)
        facts.memory = self.backend.memory()
        facts.skipped_steps = step.skipped_steps()
        facts.batch_digest = ranks.added_digest(self.prefetcher.digest)
        # Of this process alone: what an earlier attempt drew, nobody has read.
        own = self._loop.result.blocks[self._blocks_before :]
        measured = [block for phase, block in own if phase == "measured"]
        told = self.telemetry.facts(
            math.fsum(block.seconds for block in measured),
            sum(block.steps for block in measured)
            * self.config.workload.global_batch_size
            * self.config.workload.seq_len,
        )
        facts.telemetry = combined(ranks.gather(told))
        if self.group.world.grouped:
            own = {
                "host": facts.environment.get("host"),
                "device": facts.device.get("name"),
                "device_index": facts.device.get("index"),
                "peak_allocated_bytes": (facts.memory or {}).get("peak_allocated_bytes"),
                **own_times(self._loop.result),
            }
            facts.parallel = describe_ranks(ranks.gather(own))

    def _init_digest(self, model: torch.nn.Module) -> str:
        """Return the digest of the initial weights; of sharded ones, put together from all ranks.

        Raises:
            RunFailed: the ranks do not have the same weights.
        """
        ranks = self.ranks
        if self.config.parallel.name == "fsdp":
            parts = ranks.gather(sharded_digests(model, ranks.rank, ranks.size, self.group.advanced))
            return total_digest({name: digest for part in parts for name, digest in part.items()})
        same_on_all(ranks, "the initial weights", digest := init_digest(model))
        return digest
