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
from harness.records.files import set_aside, write_atomically
from harness.records.run_folder import STACKS_FILE
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.watchdog import RankFailure, Supervisor, take_seats
from harness.training.monitoring.heartbeat import PulseWriter
from harness.training.monitoring.stderr_watch import StderrWatch
from harness.world import World

T = TypeVar("T")
_NO_STORE = (
    "MASTER_ADDR: no store of this run answers at {host}:{port}; see that rank 0 was started there, that this host "
    "reaches it, and that nothing else listens on that port"
)
SECONDS_OF_PATIENCE = 5.0
# Collectives' own time-outs come long after the supervisor's, which can say what is wrong. (HCCL waits 1 836 s for a
# collective, and torch-npu warns of a time-out below that.)
SECONDS_AFTER_SUPERVISOR = 1900


class Group:
    """The processes of one run. A run of one process has no supervisor and no collectives."""

    def __init__(self, world: World, timeout_seconds: float, *, pulse: PulseWriter | None = None) -> None:
        """
        Args:
            pulse: is to be told whenever this process has got further.
        """
        self.world = world
        self.pulse = pulse or PulseWriter(patience_seconds=timeout_seconds)
        self.ranks = Ranks(world)
        self.supervisor: Supervisor | None = None
        self._timeout_seconds = timeout_seconds
        self._store: Store | None = None
        self._formed = False
        self._failed_with: int | None = None
        self.lock: IO[str] | None = None
        """Holds the run's folder while this process lives, on rank 0."""
        self.write_last_words: Callable[[RankFailure], object] | None = None
        """Writes the record of a failed run; set once the folder is claimed."""

    def connect(self) -> None:
        """Meet the other processes in the store, and begin to watch over each other.

        Raises:
            ConfigError: the address is taken or not to be reached, ranks are missing or there twice.
        """
        if not self.world.grouped:
            return
        self._store = PrefixStore(f"harness/{self.world.restarts}", self._open_store())
        take_seats(self._store, self.world.rank, self.world.size, timeout_seconds=self._timeout_seconds)
        self.supervisor = Supervisor(
            self._store.clone(),  # pyright: ignore[reportAttributeAccessIssue] (missing from its type stub)
            self.world.rank,
            self.world.size,
            hung_seconds=self._timeout_seconds,
            abandon=self._abandon,
        )
        self.supervisor.start()

    def form(self, backend: Backend) -> None:
        """Open the collectives: gloo for host data, and the device's own.

        Raises:
            BackendUnavailable: the device has no collectives.
        """
        if not self.world.grouped:
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
            timeout=timedelta(seconds=self._timeout_seconds + SECONDS_AFTER_SUPERVISOR),
        )
        self._formed = True

    def advanced(self) -> None:
        """Note that this process has got further."""
        self.pulse.advanced()
        if self.supervisor is not None:
            self.supervisor.advanced()

    def settle(self, own: RunFailed, *, certain: bool = True) -> RunFailed:
        """Return the failure that ends the run for all ranks, which may be another rank's.

        Args:
            certain: whether `own` is this rank's own, and not the echo of what befell another one.
        """
        if self.supervisor is None:
            return own
        rank = None if own.shared else self.world.rank
        settled = self.supervisor.settle(RankFailure(rank, own.status, str(own), own.exit_code), certain=certain)
        failure = RunFailed(str(settled), settled.status, shared=own.shared)
        failure.exit_code = ExitCode(settled.exit_code)
        self._failed_with = failure.exit_code
        return failure

    def refuse(self, error: UserError) -> UserError:
        """Return what to raise on this rank when nothing is run because of `error`, here or on another rank."""
        if self.supervisor is None or isinstance(error, EndedWithAll):
            return error
        failure = self.supervisor.report(RankFailure(self.world.rank, "failed", str(error), error.exit_code))
        self._failed_with = failure.exit_code
        if not self.world.leads:
            self.supervisor.wait_until_written()
            return EndedWithAll(str(failure), failure.exit_code)
        told = UserError(str(failure))
        told.exit_code = ExitCode(failure.exit_code)
        return told

    def from_leader(self, make: Callable[[], T]) -> T:
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

        value, error = self.ranks.from_leader(answer)
        if error is not None:
            raise error if self.world.leads else EndedWithAll(str(error), error.exit_code)
        return value  # pyright: ignore[reportReturnType]

    def record_written(self) -> None:
        """Say, on rank 0, that the record is on disk, or wait for that, elsewhere."""
        if self.supervisor is None:
            return
        if self.world.leads:
            self.supervisor.written()
        else:
            self.supervisor.wait_until_written()

    def write_stacks(self, folder: Path) -> None:
        """Write what each process was doing when the run was found to hang to hung.txt."""
        assert self.supervisor is not None
        told = self.supervisor.stacks()
        parts = [
            f"rank {rank}\n{told.get(rank, 'gave no answer: its process is stopped or gone')}"
            for rank in range(self.world.size)
        ]
        file = folder / STACKS_FILE
        if file.exists():
            set_aside(file)
        write_atomically(file, "\n\n".join(parts) + "\n")

    def close(self) -> None:
        """Leave the group."""
        if self.supervisor is not None:
            self.supervisor.close()
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
        hosts_it = self.world.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
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

    def _abandon(self, failure: RankFailure) -> NoReturn:
        """End this process from the supervisor's thread: its main thread waits for what will never come."""
        StderrWatch.stop_active()
        if self.world.leads:
            if self.write_last_words is not None:
                self.write_last_words(failure)
            log.error(str(failure), exit_code=failure.exit_code)
            assert self.supervisor is not None
            self.supervisor.written()
        else:
            assert self.supervisor is not None
            self.supervisor.wait_until_written()
        sys.stdout.flush()
        os._exit(failure.exit_code)


def _leave(exit_code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
