"""The processes of one run: rendezvous, process group, and the end of all of them when one fails."""

from __future__ import annotations

import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from harness import log
from harness.addresses import LOOPBACK, resolvable_host, wait_for_answer
from harness.backends.base import Backend
from harness.errors import BackendUnavailable, ConfigError, EndedWithAll, ExitCode, RunFailed, UserError
from harness.layout import Layout
from harness.process_end import skip_finalization
from harness.records.files import archive_file, write_atomically
from harness.records.run_folder import STACKS_FILE
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.watchdog import RankFailure, Watchdog, rendezvous
from harness.training.monitoring.heartbeat import Heartbeat
from harness.training.monitoring.stderr_watch import StderrWatch
from harness.world import World

T = TypeVar("T")
# Returns the folder of the record that it has written.
OnFatal = Callable[[RankFailure], Path | None]
_NO_STORE = (
    "MASTER_ADDR: no store of this run answers at {host}:{port}; check that rank 0 was started there, that this host "
    "reaches it, and that no other program listens on that port"
)
STORE_GRACE_SECONDS = 5.0
# Collectives time out long after the watchdog, whose message names the cause. (HCCL waits 1836 s for a collective, and
# torch-npu warns about a shorter timeout.)
COLLECTIVE_TIMEOUT_MARGIN_SECONDS = 1900


class RunProcesses(ABC):
    """The processes of one run, as one of them sees them."""

    def __init__(self, world: World, layout: Layout, heartbeat: Heartbeat) -> None:
        self.world, self.heartbeat, self.ranks = world, heartbeat, Ranks(world, layout)

    @abstractmethod
    def init_collectives(self, backend: Backend) -> None:
        """Open the collectives: gloo for host data, and the device's own.

        Raises:
            BackendUnavailable: the device has no collectives.
        """

    @abstractmethod
    def resolve_failure(self, own: RunFailed, *, certain: bool = True) -> RunFailed:
        """Return the failure that ends the run on all ranks, which may be another rank's.

        Args:
            certain: false if `own` may only be the consequence of another rank's failure.
        """

    @abstractmethod
    def failure_for_all(self, error: UserError) -> UserError:
        """Return the error to raise on this rank when `error` keeps the run from starting, here or on another rank."""

    @abstractmethod
    def on_fatal(self, write_record: OnFatal) -> None:
        """Set what rank 0 calls to write the record before the watchdog's thread ends the process."""

    @abstractmethod
    def record_written(self) -> None:
        """On rank 0, announce that the record is on disk; on the others, wait for that."""

    @abstractmethod
    def write_stacks(self, folder: Path) -> None:
        """Write the stacks of all processes, taken when the hang was found, to hung.txt."""

    @abstractmethod
    def close(self) -> None:
        """Leave the process group."""

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """Return on every rank what `make` returns on rank 0, the only one to call it. Collective.

        Raises:
            UserError: `make` raised it.
            EndedWithAll: likewise, on the other ranks.
        """

        def answer() -> tuple[T | None, UserError | None]:
            try:
                return make(), None
            except UserError as error:
                return None, error

        value, error = self.ranks.broadcast_from_main(answer)
        if error is not None:
            raise error if self.world.is_main else EndedWithAll(str(error), error.exit_code)
        return value  # pyright: ignore[reportReturnType]


@contextmanager
def join_processes(
    world: World, layout: Layout, heartbeat: Heartbeat, *, timeout_seconds: float
) -> Iterator[RunProcesses]:
    """Join the other processes of the run, if there are any, and leave them at the end.

    Raises:
        ConfigError: the address is taken or does not answer, or ranks are missing or started twice.
    """
    processes: RunProcesses
    if world.is_distributed:
        processes = _DistributedProcesses(world, layout, heartbeat, timeout_seconds)
    else:
        processes = _SingleProcess(world, layout, heartbeat)
    try:
        yield processes
    finally:
        processes.close()


class _SingleProcess(RunProcesses):
    def init_collectives(self, backend: Backend) -> None:
        pass

    def resolve_failure(self, own: RunFailed, *, certain: bool = True) -> RunFailed:
        return own

    def failure_for_all(self, error: UserError) -> UserError:
        return error

    def on_fatal(self, write_record: OnFatal) -> None:
        pass

    def record_written(self) -> None:
        pass

    def write_stacks(self, folder: Path) -> None:
        pass

    def close(self) -> None:
        pass


class _DistributedProcesses(RunProcesses):
    def __init__(self, world: World, layout: Layout, heartbeat: Heartbeat, timeout_seconds: float) -> None:
        super().__init__(world, layout, heartbeat)
        self._timeout_seconds = timeout_seconds
        self._has_collectives = False
        self._exit_code: ExitCode | None = None
        self._write_record: OnFatal = lambda failure: None
        self._store = PrefixStore(f"harness/{world.restarts}", _open_store(world, timeout_seconds))
        rendezvous(self._store, world.rank, world.size, timeout_seconds=timeout_seconds)
        self._watchdog = Watchdog(
            self._store.clone(),  # pyright: ignore[reportAttributeAccessIssue] (missing from its type stub)
            world.rank,
            world.size,
            heartbeat,
            hung_seconds=timeout_seconds,
            force_exit=self._force_exit,
            place=layout.place,
        )
        self._watchdog.start()

    def init_collectives(self, backend: Backend) -> None:
        device, collective = backend.device(), backend.collective
        if collective is None:
            raise BackendUnavailable(f"backend {backend.name} has no collectives; use parallel=single")
        for name, value in backend.collective_variables.items():
            os.environ.setdefault(name, value)
        names = collective if device.type == "cpu" else f"cpu:gloo,{device.type}:{collective}"
        self.ranks.timeout = timedelta(seconds=self._timeout_seconds + COLLECTIVE_TIMEOUT_MARGIN_SECONDS)
        dist.init_process_group(
            names,
            store=PrefixStore("collectives", self._store),
            rank=self.world.rank,
            world_size=self.world.size,
            timeout=self.ranks.timeout,
        )
        self._has_collectives = True

    def resolve_failure(self, own: RunFailed, *, certain: bool = True) -> RunFailed:
        rank = None if own.shared else self.world.rank
        first = self._watchdog.resolve_failure(RankFailure(rank, own.status, str(own), own.exit_code), certain=certain)
        failure = RunFailed(str(first), first.status, shared=own.shared)
        failure.exit_code = self._exit_code = ExitCode(first.exit_code)
        return failure

    def failure_for_all(self, error: UserError) -> UserError:
        if isinstance(error, EndedWithAll):
            return error
        first = self._watchdog.report(RankFailure(self.world.rank, "failed", str(error), error.exit_code))
        self._exit_code = ExitCode(first.exit_code)
        if not self.world.is_main:
            self._watchdog.wait_until_written()
            return EndedWithAll(str(first), first.exit_code)
        failure = UserError(str(first))
        failure.exit_code = self._exit_code
        return failure

    def on_fatal(self, write_record: OnFatal) -> None:
        self._write_record = write_record

    def record_written(self) -> None:
        if self.world.is_main:
            self._watchdog.mark_record_written()
        else:
            self._watchdog.wait_until_written()

    def write_stacks(self, folder: Path) -> None:
        stacks = self._watchdog.stacks()
        parts = [
            f"rank {rank}\n{stacks.get(rank, 'no answer: its process is stopped or has ended')}"
            for rank in range(self.world.size)
        ]
        file = folder / STACKS_FILE
        if file.exists():
            archive_file(file)
        write_atomically(file, "\n\n".join(parts) + "\n")

    def close(self) -> None:
        self._watchdog.close()
        if not self._has_collectives:
            return
        # After a failure, pending collectives wait for ranks that have ended, and this would wait for the collectives.
        if self._exit_code is None:
            dist.destroy_process_group()
        skip_finalization()

    def _force_exit(self, failure: RankFailure) -> NoReturn:
        """End this process from the watchdog's thread: its main thread waits in a collective that never finishes."""
        try:
            StderrWatch.stop_active()
            if self.world.is_main:
                named = RunFailed(str(failure), failure.status)
                try:
                    folder = self._write_record(failure)
                    named = named if folder is None else named.in_run(folder)
                finally:
                    # Also where the record cannot be written, as on a full disk.
                    log.error(str(named), exit_code=failure.exit_code, **named.fields)
            self.record_written()
            sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 (nobody else would end a process that hangs)
            log.error(f"the run's end could not be written: {' '.join(str(error).split())}")
        finally:
            os._exit(failure.exit_code)


def _open_store(world: World, timeout_seconds: float) -> Store:
    """Connect to the store at MASTER_ADDR, which rank 0 opens there unless torchrun has opened it already.

    Raises:
        ConfigError: the address does not resolve, the port is taken, or no store answers.
    """
    is_host = world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
    host, port = os.environ["MASTER_ADDR"].strip(), int(os.environ["MASTER_PORT"])
    # The process that opens the store needs no name: MASTER_ADDR may be one that only the others reach it by.
    host = LOOPBACK if is_host else resolvable_host(host, is_here=world.local_size == world.size)
    if not is_host and not wait_for_answer(host, port, who=world.name(), timeout_seconds=timeout_seconds):
        raise ConfigError(_NO_STORE.format(host=host, port=port))

    def give_up() -> NoReturn:
        log.error(f"rank {world.rank}: {_NO_STORE.format(host=host, port=port)}", exit_code=int(ExitCode.USAGE))
        os._exit(ExitCode.USAGE)

    # PyTorch waits forever if another program listens there and does not answer.
    guard = threading.Timer(timeout_seconds + STORE_GRACE_SECONDS, give_up)
    guard.daemon = True
    guard.start()
    try:
        return TCPStore(
            host,
            port,
            is_master=is_host,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except Exception as error:
        text = str(error)
        if "EADDRINUSE" in text or "address already in use" in text.lower():
            raise ConfigError(
                f"MASTER_PORT: {host}:{port} is taken by another process, most likely another run; choose a free "
                "port (torchrun --master-port=... or --standalone)"
            ) from error
        raise ConfigError(_NO_STORE.format(host=host, port=port)) from error
    finally:
        guard.cancel()
