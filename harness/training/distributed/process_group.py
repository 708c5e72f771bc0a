"""Makes one run of several processes: joins them, opens their collectives, and ends all of them when one fails."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import IO, NoReturn, TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from harness import log
from harness.backends.base import Backend
from harness.errors import BackendUnavailable, ConfigError, EndedWithAll, ExitCode, RunFailed, UserError
from harness.records.files import archive_file, write_atomically
from harness.records.run_folder import STACKS_FILE
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.watchdog import RankFailure, Watchdog, rendezvous
from harness.training.monitoring.heartbeat import HeartbeatWriter
from harness.training.monitoring.stderr_watch import StderrWatch
from harness.world import World

T = TypeVar("T")
_NO_STORE = (
    "MASTER_ADDR: no store of this run answers at {host}:{port}; see that rank 0 was started there, that this host "
    "reaches it, and that nothing else listens on that port"
)
SECONDS_OF_PATIENCE = 5.0
# Collectives' own time-outs come long after the watchdog's, which can say what is wrong. (HCCL waits 1 836 s for a
# collective, and torch-npu warns of a time-out below that.)
COLLECTIVE_TIMEOUT_MARGIN_SECONDS = 1900


class RunProcesses:
    """The processes of one run. A run of one process has no watchdog and no collectives."""

    def __init__(
        self, world: World, timeout_seconds: float, *, heartbeat_writer: HeartbeatWriter | None = None
    ) -> None:
        """
        Args:
            heartbeat_writer: tells `harness health` of every heartbeat of this process.
        """
        self.world = world
        self.heartbeat_writer = heartbeat_writer or HeartbeatWriter(patience_seconds=timeout_seconds)
        self.ranks = Ranks(world)
        self.watchdog: Watchdog | None = None
        self._timeout_seconds = timeout_seconds
        self._store: Store | None = None
        self._formed = False
        self._failed_with: int | None = None
        self.lock: IO[str] | None = None
        """Holds the run's folder while this process lives, on rank 0."""
        self.on_fatal: Callable[[RankFailure], object] | None = None
        """Writes the record of a failed run; set once the folder is claimed."""

    def connect(self) -> None:
        """Meet the other processes in the store, and begin to watch over each other.

        Raises:
            ConfigError: the address is taken or not to be reached, ranks are missing or there twice.
        """
        if not self.world.is_distributed:
            return
        self._store = PrefixStore(f"harness/{self.world.restarts}", self._open_store())
        rendezvous(self._store, self.world.rank, self.world.size, timeout_seconds=self._timeout_seconds)
        self.watchdog = Watchdog(
            self._store.clone(),  # pyright: ignore[reportAttributeAccessIssue] (missing from its type stub)
            self.world.rank,
            self.world.size,
            hung_seconds=self._timeout_seconds,
            force_exit=self._force_exit,
        )
        self.watchdog.start()

    def init_collectives(self, backend: Backend) -> None:
        """Open the collectives: gloo for host data, and the device's own.

        Raises:
            BackendUnavailable: the device has no collectives.
        """
        if not self.world.is_distributed:
            return
        device, collective = backend.device(), backend.collective
        if collective is None:
            raise BackendUnavailable(f"backend {backend.name} has no collectives; use parallel=single")
        assert self._store is not None
        for name, value in backend.collective_variables.items():
            os.environ.setdefault(name, value)
        names = collective if device.type == "cpu" else f"cpu:gloo,{device.type}:{collective}"
        dist.init_process_group(
            names,
            store=PrefixStore("collectives", self._store),
            rank=self.world.rank,
            world_size=self.world.size,
            timeout=timedelta(seconds=self._timeout_seconds + COLLECTIVE_TIMEOUT_MARGIN_SECONDS),
        )
        self._formed = True

    def heartbeat(self) -> None:
        """Note that this process has got further."""
        self.heartbeat_writer.beat()
        if self.watchdog is not None:
            self.watchdog.beat()

    def resolve_failure(self, own: RunFailed, *, certain: bool = True) -> RunFailed:
        """Return the failure that ends the run for all ranks, which may be another rank's.

        Args:
            certain: whether `own` is this rank's own, and not the echo of what befell another one.
        """
        if self.watchdog is None:
            return own
        rank = None if own.shared else self.world.rank
        settled = self.watchdog.resolve_failure(RankFailure(rank, own.status, str(own), own.exit_code), certain=certain)
        failure = RunFailed(str(settled), settled.status, shared=own.shared)
        failure.exit_code = ExitCode(settled.exit_code)
        self._failed_with = failure.exit_code
        return failure

    def failure_for_all(self, error: UserError) -> UserError:
        """Return what to raise on this rank when nothing is run because of `error`, here or on another rank."""
        if self.watchdog is None or isinstance(error, EndedWithAll):
            return error
        failure = self.watchdog.report(RankFailure(self.world.rank, "failed", str(error), error.exit_code))
        self._failed_with = failure.exit_code
        if not self.world.is_main:
            self.watchdog.wait_until_written()
            return EndedWithAll(str(failure), failure.exit_code)
        told = UserError(str(failure))
        told.exit_code = ExitCode(failure.exit_code)
        return told

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

    def record_written(self) -> None:
        """Say, on rank 0, that the record is on disk, or wait for that, elsewhere."""
        if self.watchdog is None:
            return
        if self.world.is_main:
            self.watchdog.mark_record_written()
        else:
            self.watchdog.wait_until_written()

    def write_stacks(self, folder: Path) -> None:
        """Write what each process was doing when the run was found to hang to hung.txt."""
        assert self.watchdog is not None
        told = self.watchdog.stacks()
        parts = [
            f"rank {rank}\n{told.get(rank, 'gave no answer: its process is stopped or gone')}"
            for rank in range(self.world.size)
        ]
        file = folder / STACKS_FILE
        if file.exists():
            archive_file(file)
        write_atomically(file, "\n\n".join(parts) + "\n")

    def close(self) -> None:
        """Leave the group."""
        if self.watchdog is not None:
            self.watchdog.close()
        if not self._formed:
            return
        if self._failed_with is None:
            dist.destroy_process_group()
        else:
            # Collectives that are still under way wait for ranks that have gone, and the interpreter's end for them.
            atexit.register(_leave, self._failed_with)

    def _open_store(self) -> Store:
        """Connect to the store at MASTER_ADDR, which rank 0 opens there, or torchrun has opened already.

        Raises:
            ConfigError: the port is taken, or nothing that is a store answers.
        """
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        hosts_it = self.world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
        # Something else that listens there and says nothing is waited for without end.
        guard = threading.Timer(self._timeout_seconds + SECONDS_OF_PATIENCE, self._give_up_store, (host, port))
        guard.daemon = True
        guard.start()
        try:
            return TCPStore(
                host,
                port,
                is_master=hosts_it,
                timeout=timedelta(seconds=self._timeout_seconds),
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

    def _give_up_store(self, host: str, port: int) -> NoReturn:
        log.error(f"rank {self.world.rank}: {_NO_STORE.format(host=host, port=port)}", exit_code=int(ExitCode.USAGE))
        os._exit(ExitCode.USAGE)

    def _force_exit(self, failure: RankFailure) -> NoReturn:
        """End this process from the watchdog's thread: its main thread waits for what will never come."""
        StderrWatch.stop_active()
        if self.world.is_main:
            if self.on_fatal is not None:
                self.on_fatal(failure)
            log.error(str(failure), exit_code=failure.exit_code)
            assert self.watchdog is not None
            self.watchdog.mark_record_written()
        else:
            assert self.watchdog is not None
            self.watchdog.wait_until_written()
        sys.stdout.flush()
        os._exit(failure.exit_code)


def _leave(exit_code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
