"""One run from its settings to its record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import environment, log
from harness.analysis.scaling import scaling_baseline
from harness.backends.base import Backend
from harness.config import Config, to_yaml
from harness.errors import CheckpointError, Interrupted, RunFailed, UserError
from harness.records.files import archive_file
from harness.records.record import write_record
from harness.records.run_folder import acquire_run_folder, begin_attempt, checkpoint_steps, end_attempt
from harness.records.steps import STEPS_FILE
from harness.signals import StopRequest, stop_on_signals
from harness.training.distributed.collectives import same_on_all
from harness.training.distributed.process_group import RunProcesses
from harness.training.monitoring.heartbeat import HeartbeatWriter
from harness.training.run_record import build_record
from harness.training.setup import Facts, inspect_or_refuse
from harness.training.trainer import Trainer
from harness.workload.data import Dataset, open_dataset
from harness.workload.digest import BatchDigest
from harness.world import World


@dataclass
class RunResult:
    """How a run ended, and where its record lies."""

    folder: Path
    record: dict[str, Any]
    failure: RunFailed | None = None
    interrupted: Interrupted | None = None


def run(config: Config, backend: Backend, world: World | None = None) -> RunResult:
    """Train and time the configured workload on a backend that passed its preflight, and write the record.

    Whatever happens once the folder is claimed, a record is written that says so. Of several processes each calls
    this, and rank 0 writes.

    Raises:
        UserError: nothing was run: the data, the device or the folder is not fit for it.
        EndedWithAll: likewise, on another rank than the one that tells the user.
        Interrupted: a signal came before training began.
    """
    world = world or World()
    with stop_on_signals(launched=world.is_distributed) as stop, heartbeat_of(config, world) as heartbeat:
        group = RunProcesses(world, config.parallel.timeout_seconds, heartbeat_writer=heartbeat)
        group.connect()
        facts = Facts()
        try:
            dataset = _open_data(config)
            backend.load()
            log.adopt_libraries()
            try:
                group.init_collectives(backend)
                inspect_or_refuse(config, backend, dataset, facts)
                claimed = group.broadcast_from_main(lambda: _claim(config, backend, group, facts))
                if claimed.existing_record is not None:
                    return RunResult(claimed.folder, claimed.existing_record)
                heartbeat.set_run_folder(claimed.folder)
                return _run_in(claimed, config, backend, dataset, facts, stop, group)
            finally:
                backend.close()
        except UserError as error:
            raise group.failure_for_all(error) from error
        except Exception as error:
            failure = _to_failure(error, backend, group)
            if failure is None or not world.is_distributed:
                raise
            raise group.failure_for_all(failure) from error
        finally:
            group.close()


@contextmanager
def heartbeat_of(config: Config, world: World) -> Iterator[HeartbeatWriter]:
    """Leave a sign that the run gets further, while it lasts: one for the processes of a host."""
    writer = HeartbeatWriter(patience_seconds=config.parallel.timeout_seconds)
    if world.local_rank == 0:
        writer.start()
    try:
        yield writer
    finally:
        writer.stop()


@dataclass
class _Claimed:
    """What all ranks have to know of the folder."""

    folder: Path
    from_step: int = 0
    existing_record: dict[str, Any] | None = None


def _claim(config: Config, backend: Backend, group: RunProcesses, facts: Facts) -> _Claimed:
    """Take the run's folder, on rank 0, if what the run is to be measured by is there."""
    facts.scaling_baseline = scaling_baseline(config, group.world.size, facts.device, backend.device_threads())
    taken = acquire_run_folder(config, f"{backend.name}-{config.model.name}")
    group.lock = taken.lock
    from_step = 0
    if taken.existing_record is None and taken.resuming:
        from_step = (checkpoint_steps(taken.folder) or [0])[-1]
        if not from_step and (taken.folder / STEPS_FILE).exists():
            # Cut off before its first checkpoint: it begins again, and the steps that were done are kept.
            archive_file(taken.folder / STEPS_FILE)
    if taken.existing_record is None and config.checkpoint.every:
        begin_attempt(taken.folder, from_step=from_step, world_size=group.world.size, host=environment.host_name())
    return _Claimed(taken.folder, from_step, taken.existing_record)


def _open_data(config: Config) -> Dataset:
    dataset = open_dataset(config)
    if config.workload.eval_every:
        dataset.require_held_out(config.workload.eval_sequences)
        dataset.held_out(0, config.workload.eval_sequences)
    # A token id beyond the vocabulary should be found now rather than in an hour, where the first batch shows it.
    dataset.train(0, config.workload.global_batch_size)
    return dataset


def _refuse_differing_ranks(config: Config, dataset: Dataset, facts: Facts, group: RunProcesses) -> None:
    """Raise RunFailed if the ranks would not do the same work with the same software."""
    sample = BatchDigest()
    sample.add("train", 0, dataset.train(0, 1))
    for what, value, remedy in (
        ("its settings", to_yaml(config), "start every rank with the same words"),
        ("its software", {**facts.versions, "harness": facts.environment["harness_version"]},
         "install the same on every host"),
        ("its data", {**facts.data, "first sequence": sample.hexdigest()}, "give every host the same data"),
    ):  # fmt: skip
        same_on_all(group.ranks, what, value, remedy)


def _run_in(claimed: _Claimed, config: Config, backend: Backend, dataset: Dataset, facts: Facts, stop: StopRequest,
            group: RunProcesses) -> RunResult:  # fmt: skip
    world, folder = group.world, claimed.folder
    failure: RunFailed | None = None
    interrupted: Interrupted | None = None
    trainer = Trainer(folder, config, backend, dataset, facts, stop, group, claimed.from_step)
    group.on_fatal = lambda told: _write(folder, config, backend, trainer, RunFailed(str(told), told.status), None)
    try:
        _refuse_differing_ranks(config, dataset, facts, group)
        trainer.train()
        if stop.signal_number is not None:
            interrupted = Interrupted(stop.signal_number)
    except Interrupted as error:
        interrupted = error
    except Exception as error:
        stop.begin_shutdown(launched=world.is_distributed)
        failure = _to_failure(error, backend, group)
        if failure is None:
            # Ours to mend: leave the record, then let the traceback be seen.
            failure = group.resolve_failure(RunFailed(f"{type(error).__name__}: {error}"))
            _write(folder, config, backend, trainer, failure, None)
            raise
    finally:
        trainer.close()
    if config.profile and failure is None and not any(trainer.ranks.gather(interrupted is not None)):
        return _profiled(folder, config, backend, trainer, stop)
    stop.begin_shutdown(launched=world.is_distributed)
    record = _write(folder, config, backend, trainer, failure, interrupted)
    return RunResult(folder, record, failure, interrupted)


def _profiled(folder: Path, config: Config, backend: Backend, trainer: Trainer, stop: StopRequest) -> RunResult:
    """Write the record of a run that ended well, then profile it, and write that into the record.

    In this order, since a profile may run out of memory, or be stopped: the run is whole all the same.
    """
    group = trainer.group
    if group.world.is_main:
        _write_record(folder, config, backend, trainer, "ok", None)
    # Whatever befalls the profile, the record stays as it is.
    group.on_fatal = None
    failure: RunFailed | None = None
    interrupted: Interrupted | None = None
    try:
        with stop.deferred():
            trainer.profile()
        if stop.signal_number is not None:
            interrupted = Interrupted(stop.signal_number)
    except Interrupted as error:
        interrupted = error
    except Exception as error:
        stop.begin_shutdown(launched=group.world.is_distributed)
        settled = _to_failure(error, backend, group)
        if settled is None:
            raise
        failure = RunFailed(f"profile: {settled}; the run itself ended well, and {folder} has its record")
    stop.begin_shutdown(launched=group.world.is_distributed)
    record = _write(folder, config, backend, trainer, None, None)
    return RunResult(folder, record, failure, interrupted)


def _to_failure(error: Exception, backend: Backend, group: RunProcesses) -> RunFailed | None:
    """Return the failure that an exception means, as all ranks tell it; None if it is a fault of our own."""
    if isinstance(error, RunFailed):
        return group.resolve_failure(error)
    if isinstance(error, CheckpointError):
        return group.resolve_failure(RunFailed(str(error), "bad_checkpoint", shared=True))
    if isinstance(error, UserError):
        return group.resolve_failure(RunFailed(str(error)))
    classified = backend.classify_error(error)
    if classified is None:
        return None
    own = RunFailed(f"{classified.cause}; {classified.remedy}", classified.status)
    return group.resolve_failure(own, certain=not classified.secondary)


def _write(folder: Path, config: Config, backend: Backend, trainer: Trainer, failure: RunFailed | None,
           interrupted: Interrupted | None) -> dict[str, Any]:  # fmt: skip
    """Write the record on rank 0, and elsewhere wait for that. Returns the record, empty elsewhere."""
    group = trainer.group
    if not group.world.is_main:
        group.record_written()
        return {}
    status = "ok"
    if failure is not None:
        status = failure.status
    elif interrupted is not None:
        status = "interrupted"
    if status == "hung":
        group.write_stacks(folder)
    record = _write_record(folder, config, backend, trainer, status, str(failure) if failure is not None else None)
    group.record_written()
    return record


def _write_record(
    folder: Path, config: Config, backend: Backend, trainer: Trainer, status: str, error: str | None
) -> dict[str, Any]:
    done = trainer.result.steps_done if trainer.result is not None else 0
    attempts = end_attempt(folder, status=status, to_step=done) if config.checkpoint.every else None
    record = build_record(
        config,
        status=status,
        error=error,
        facts=trainer.facts,
        history=trainer.result,
        batch_digest=trainer.batch_digest(),
        step_seconds_method=trainer.step_clock.step_seconds_method,
        backend_name=backend.name,
        world_size=trainer.group.world.size,
        attempts=attempts,
    )
    write_record(folder, record)
    return record
