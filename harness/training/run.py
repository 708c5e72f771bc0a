"""One run from its settings to its record: set-up, training, optional profile, and the handling of failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness import environment, log
from harness.backends.base import Backend
from harness.backends.step import TrainStep
from harness.config import Config, WorkloadConfig, to_yaml
from harness.errors import CheckpointError, ConfigError, Interrupted, RunFailed, UserError
from harness.layout import layout_of
from harness.records.attempts import begin_attempt, end_attempt
from harness.records.files import archive_file
from harness.records.record import write_record
from harness.records.run_folder import acquire_run_folder, checkpoint_steps
from harness.records.steps import STEPS_FILE
from harness.signals import StopRequest, stop_on_signals
from harness.training.distributed.collectives import CoordinatedStop, same_on_all
from harness.training.distributed.process_group import RunProcesses, join_processes
from harness.training.distributed.watchdog import RankFailure
from harness.training.monitoring.heartbeat import Heartbeat, HeartbeatWriter
from harness.training.prefetch import DEPTH
from harness.training.run_record import build_record
from harness.training.setup import RunDescription, RunStart, describe_run
from harness.training.trainer import Trainer
from harness.validation import check_layout
from harness.workload.data import Dataset, open_dataset
from harness.workload.digest import BatchDigest
from harness.workload.model import parameter_shapes
from harness.workload.weights import open_weights
from harness.world import World

T = TypeVar("T")
# Sequences are int64 on the host.
BYTES_PER_TOKEN = 8


@dataclass
class RunResult:
    """The outcome of a run, and its record, which is empty on all ranks but rank 0."""

    folder: Path
    record: dict[str, Any]
    failure: RunFailed | None = None
    interrupted: Interrupted | None = None
    is_new: bool = True
    """False if the folder held a finished run, which was not run again."""


def run(config: Config, backend: Backend, world: World | None = None) -> RunResult:
    """Train and time the configured workload on a backend that passed its preflight, and write the record.

    Once the folder is acquired, every outcome leaves a record. In a distributed run every process calls this, and rank
    0 writes the record.

    Raises:
        UserError: nothing was run: the data, the device or the folder cannot be used.
        EndedWithAll: the same, on a rank that does not report it to the user.
        Interrupted: a signal came before training began.
    """
    world = world or World()
    start, heartbeat = RunStart(), Heartbeat()
    timeout_seconds, layout = config.parallel.timeout_seconds, layout_of(config.parallel, world.size)
    check_layout(config, layout)
    with (
        stop_on_signals(launched=world.is_distributed) as stop,
        _written_heartbeat(heartbeat, world, timeout_seconds) as writer,
        join_processes(world, layout, heartbeat, timeout_seconds=timeout_seconds) as processes,
    ):
        try:
            dataset = _open_inputs(config, heartbeat)
            for line in dataset.cautions() if world.is_main else ():
                log.warning(line)
            backend.load()
            log.adopt_libraries()
            with ExitStack() as stack:
                stack.callback(backend.close)
                processes.init_collectives(backend)
                resolved, description = describe_run(config, backend, dataset, processes, start)
                acquired = processes.broadcast_from_main(lambda: _acquire_folder(description, stack))
                if acquired.existing_record is not None:
                    return RunResult(acquired.path, acquired.existing_record, is_new=False)
                writer.set_run_folder(acquired.path)
                return _Run(acquired, resolved, description, backend, dataset, processes, stop).run(writer)
        except UserError as error:
            raise processes.failure_for_all(error) from error
        except Exception as error:
            failure = _to_failure(error, backend, processes)
            if failure is None:
                # A bug: the other ranks end with this line, this one with the traceback too.
                processes.resolve_failure(RunFailed(f"{type(error).__name__}: {error}"))
                raise
            raise processes.failure_for_all(failure) from error


@contextmanager
def _written_heartbeat(heartbeat: Heartbeat, world: World, timeout_seconds: float) -> Iterator[HeartbeatWriter]:
    """Write the heartbeat for `harness health` during the run, in one file for all processes of a host."""
    writer = HeartbeatWriter(heartbeat, timeout_seconds=timeout_seconds)
    if world.local_rank == 0:
        writer.start()
    try:
        yield writer
    finally:
        writer.stop()


def _open_inputs(config: Config, heartbeat: Heartbeat) -> Dataset:
    """Open the data set, and check it and the files of the initial weights before anything is written."""
    _check_host_memory(config.workload)
    weights = open_weights(config)
    if weights is not None:
        weights.check(parameter_shapes(config.model))
    dataset = open_dataset(config, heartbeat.beat)
    if config.workload.eval_every:
        dataset.require_held_out(config.workload.eval_sequences)
        dataset.held_out(0, config.workload.eval_sequences)
    # An unusable first batch, for instance with a token id beyond the vocabulary, is found now and not after set-up.
    dataset.train(0, config.workload.global_batch_size)
    return dataset


def _check_host_memory(work: WorkloadConfig) -> None:
    """Raise ConfigError for batches that the host cannot hold: the system would kill the run."""
    available = environment.memory_limit_bytes()
    # The batches that wait, one that is made and one that is trained on.
    for key, sequences in (("global_batch_size", (DEPTH + 2) * work.global_batch_size),
                           ("eval_sequences", work.eval_sequences if work.eval_every else 0)):  # fmt: skip
        needed = sequences * (work.seq_len + 1) * BYTES_PER_TOKEN
        if available is not None and needed > available:
            raise ConfigError(
                f"workload.{key}: found {getattr(work, key):,}, whose sequences of {work.seq_len:,} tokens take "
                f"{needed / 2**30:,.1f} GiB of the host's {available / 2**30:,.1f} GiB of memory; lower it"
            )


@dataclass(frozen=True)
class _AcquiredFolder:
    """The fields of a RunFolder that all ranks need."""

    path: Path
    from_step: int = 0
    attempts: list[dict[str, Any]] | None = None
    """All attempts with this one; None for a run without checkpoints."""
    existing_record: dict[str, Any] | None = None


def _acquire_folder(description: RunDescription, stack: ExitStack) -> _AcquiredFolder:
    """Create the run's folder, or resume the run in it, and hold its lock until the stack closes. On rank 0."""
    config = description.config
    acquired = stack.enter_context(acquire_run_folder(config, f"{description.backend_name}-{config.model.name}"))
    if acquired.existing_record is not None:
        return _AcquiredFolder(acquired.path, existing_record=acquired.existing_record)
    from_step = (checkpoint_steps(acquired.path) or [0])[-1] if acquired.resuming else 0
    if acquired.resuming and not from_step and (acquired.path / STEPS_FILE).exists():
        # Interrupted before its first checkpoint: it starts again, and the old steps are kept under another name.
        archive_file(acquired.path / STEPS_FILE)
    attempts = None
    if config.checkpoint.every:
        host = environment.host_name()
        attempts = begin_attempt(acquired.path, from_step=from_step, layout=description.layout, host=host)
    return _AcquiredFolder(acquired.path, from_step, attempts)


class _Run:
    """A run with an acquired folder: it trains, and writes the record of every outcome."""

    def __init__(self, acquired: _AcquiredFolder, config: Config, description: RunDescription, backend: Backend,
                 dataset: Dataset, processes: RunProcesses, stop: StopRequest) -> None:  # fmt: skip
        self._folder, self._config, self._description = acquired.path, config, description
        self._attempts = acquired.attempts
        self._backend, self._dataset, self._processes, self._stop = backend, dataset, processes, stop
        self._trainer = Trainer(
            acquired.path, config, description, backend, dataset, processes, CoordinatedStop(processes.ranks, stop),
            from_step=acquired.from_step,
        )  # fmt: skip
        processes.on_fatal(self._end_at_once)

    def run(self, heartbeat_writer: HeartbeatWriter) -> RunResult:
        """Train, and write the record; then profile, if `profile=true` and the run ended well."""
        try:
            step, failure, interrupted = self._attempt(lambda: self._train(heartbeat_writer))
        except Exception as error:
            # A bug in the harness: write the record, then raise for the traceback.
            own = RunFailed(f"{type(error).__name__}: {error}")
            self._finish(self._processes.resolve_failure(own), None)
            raise
        finally:
            self._trainer.close()
        if self._config.profile and failure is None:
            stopped = any(self._processes.ranks.gather(interrupted is not None))
            if not stopped and step is not None:
                return self._profile(step)
        self._stop.begin_shutdown()
        return RunResult(self._folder, self._finish(failure, interrupted), failure, interrupted)

    def _end_at_once(self, first: RankFailure) -> Path:
        """Write the record of a run whose main thread hangs, and return its folder."""
        self._finish(RunFailed(str(first), first.status), None)
        return self._folder

    def _train(self, heartbeat_writer: HeartbeatWriter) -> TrainStep:
        _check_equal_ranks(self._description, self._dataset, self._processes)
        return self._trainer.train(heartbeat_writer)

    def _profile(self, step: TrainStep) -> RunResult:
        """Write the record of a run that ended well, then profile it, and add the profile to the record.

        In this order, since the run is complete even if the profile runs out of memory or is interrupted.
        """

        def profile() -> dict[str, Any] | None:
            with self._stop.deferred():
                return self._trainer.profile(step)

        if self._processes.world.is_main:
            self._write("ok")
        # The record does not change if the profile ends this process.
        self._processes.on_fatal(lambda first: None)
        found, failure, interrupted = self._attempt(profile)
        if failure is not None:
            failure = RunFailed(f"profile: {failure}; the run itself ended well, and its record is in {self._folder}")
        self._stop.begin_shutdown()
        return RunResult(self._folder, self._finish(None, None, found), failure, interrupted)

    def _attempt(self, act: Callable[[], T]) -> tuple[T | None, RunFailed | None, Interrupted | None]:
        """Return the result of `act`, the failure in which it ended, and whether a signal interrupted it."""
        try:
            result = act()
        except Interrupted as error:
            return None, None, error
        except Exception as error:
            self._stop.begin_shutdown()
            failure = _to_failure(error, self._backend, self._processes)
            if failure is None:
                raise
            return None, failure, None
        signal = self._stop.signal_number
        return result, None, None if signal is None else Interrupted(signal)

    def _finish(
        self, failure: RunFailed | None, interrupted: Interrupted | None, profile: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write the record on rank 0, and wait for it on the others. Return the record, empty on the others."""
        record: dict[str, Any] = {}
        if self._processes.world.is_main:
            status = failure.status if failure is not None else "ok" if interrupted is None else "interrupted"
            if status == "hung":
                self._processes.write_stacks(self._folder)
            record = self._write(status, None if failure is None else str(failure), profile)
        self._processes.record_written()
        return record

    def _write(self, status: str, error: str | None = None, profile: dict[str, Any] | None = None) -> dict[str, Any]:
        history, attempts = self._trainer.history, self._attempts
        if attempts is not None:
            attempts = end_attempt(self._folder, attempts, status=status, to_step=history.steps_done)
        record = build_record(
            self._description,
            self._trainer.measurements,
            history,
            status=status,
            error=error,
            attempts=attempts,
            profile=profile,
        )
        write_record(self._folder, record)
        return record


def _check_equal_ranks(description: RunDescription, dataset: Dataset, processes: RunProcesses) -> None:
    """Raise RunFailed if the ranks would not do the same work with the same software. Collective."""
    sample = BatchDigest()
    sample.add("train", 0, dataset.train(0, 1))
    software = {**description.versions, "harness": description.environment["harness_version"]}
    for what, value, remedy in (
        ("its settings", to_yaml(description.config), "launch every rank with the same command line"),
        ("its software", software, "install the same on every host"),
        ("its data", {**description.data, "first sequence": sample.hexdigest()}, "give every host the same data"),
    ):
        same_on_all(processes.ranks, what, value, remedy)


def _to_failure(error: Exception, backend: Backend, processes: RunProcesses) -> RunFailed | None:
    """Return the failure that an exception means, the same on all ranks; None for a bug in the harness."""
    if isinstance(error, RunFailed):
        return processes.resolve_failure(error)
    if isinstance(error, CheckpointError):
        return processes.resolve_failure(RunFailed(str(error), "bad_checkpoint", shared=True))
    if isinstance(error, UserError):
        return processes.resolve_failure(RunFailed(str(error)))
    classified = backend.classify_error(error)
    if classified is None:
        return None
    own = RunFailed(f"{classified.cause}; {classified.remedy}", classified.status)
    return processes.resolve_failure(own, certain=not classified.secondary)
