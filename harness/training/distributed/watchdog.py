"""Watchdog over the processes of a run: a failure of one of them ends all of them, with one message.

A rank that fails reports it in the ranks' shared store; a rank that dies sends no more heartbeats there; a rank that
hangs makes no progress. A thread on each rank polls every second. If the main thread does not return from a collective
that will never finish, the thread ends the process itself.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from harness import log
from harness.addresses import QUIET_SECONDS
from harness.errors import ConfigError, ExitCode
from harness.training.monitoring.heartbeat import Heartbeat

POLL_SECONDS = 1.0
# A process without a heartbeat for this long is dead: its thread sends them even while its main thread is busy.
HEARTBEAT_TIMEOUT_SECONDS = 10.0
# The same after a connection to another rank broke.
BROKEN_CONNECTION_TIMEOUT_SECONDS = 4.0
# For the main thread to end by itself once a failure is known.
END_TIMEOUT_SECONDS = 5.0
# For the other ranks to wait for the record, before they end and the launcher stops everything.
WRITE_TIMEOUT_SECONDS = 15.0
MAX_STACK_BYTES = 20_000
LEAVE_TIMEOUT_SECONDS = 2.0
_FAILURE, _WRITTEN, _LEFT = "failure", "written", "left"


class Store(Protocol):
    """The methods of torch.distributed.Store that the watchdog needs."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def add(self, key: str, amount: int, /) -> int: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


@dataclass(frozen=True)
class RankFailure:
    """The failure that ended a distributed run, the same on all ranks."""

    rank: int | None
    """The rank that failed; None if all ranks failed alike."""
    status: str
    message: str
    """Cause and remedy in one line, without the rank."""
    exit_code: int = ExitCode.RUN_FAILED
    place: str = ""
    """Of the rank in the layout; empty where it does not matter."""

    def __str__(self) -> str:
        place = f" ({self.place})" if self.place else ""
        return self.message if self.rank is None else f"rank {self.rank}{place}: {self.message}"


@dataclass
class _LastSeen:
    """The last heartbeat of a rank and its progress, and when each changed."""

    heartbeat: str = ""
    heartbeat_at: float = 0.0
    progress: int = -1
    signs: int = 0
    progress_at: float = 0.0
    is_elsewhere: bool = False
    """As of `_is_elsewhere`."""


class Watchdog:
    """The watchdog of one rank.

    Args:
        store: a connection of its own, used by the thread and, under a lock, by the main thread.
        heartbeat: counts this rank's steps and collectives.
        hung_seconds: the run hangs if no rank makes progress for this time.
        place: returns where a rank is in the layout, for messages.
        force_exit: called in the thread if the main thread does not end in time; must end the process.
    """

    def __init__(
        self, store: Store, rank: int, size: int, heartbeat: Heartbeat, *, hung_seconds: float,
        force_exit: Callable[[RankFailure], Any], clock: Callable[[], float] = time.monotonic,
        place: Callable[[int], str] = lambda rank: "",
    ) -> None:  # fmt: skip
        self._store, self._rank, self._size, self._heartbeat = store, rank, size, heartbeat
        self._hung_seconds, self._force_exit, self._clock = hung_seconds, force_exit, clock
        self._place = place
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._polls = 0
        self._heartbeat_timeout_seconds = HEARTBEAT_TIMEOUT_SECONDS
        now = clock()
        self._seen = {other: _LastSeen(heartbeat_at=now, progress_at=now) for other in range(size)}
        self._failed_at: float | None = None
        self._end_timeout_seconds = END_TIMEOUT_SECONDS
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, at the end of the main thread. Rank 0, which may host the store, leaves last."""
        self._closing.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)
        limit = self._clock() + LEAVE_TIMEOUT_SECONDS
        # Without a store there is no reason to wait.
        with suppress(Exception):
            if self._rank != 0:
                self._store.add(_LEFT, 1)
            while self._rank == 0 and self._store.add(_LEFT, 0) < self._size - 1 and self._clock() < limit:
                time.sleep(0.02)

    # From the main thread

    def report(self, failure: RankFailure) -> RankFailure:
        """Publish a failure to all ranks, and return the first one, which may be another rank's."""
        # The main thread is about to end; it may have to wait for the record.
        self._end_timeout_seconds = END_TIMEOUT_SECONDS + WRITE_TIMEOUT_SECONDS
        return self._publish_failure(failure)

    def _publish_failure(self, failure: RankFailure) -> RankFailure:
        if failure.rank is not None:
            failure = replace(failure, place=self._place(failure.rank))
        try:
            with self._lock:
                first = self._store.compare_set(_FAILURE, "", json.dumps(asdict(failure)))
            return RankFailure(**json.loads(first))
        except Exception:  # noqa: BLE001 (the store is gone: this rank's own failure stands)
            return failure

    def resolve_failure(self, own: RankFailure, *, certain: bool) -> RankFailure:
        """Return the failure that ends the run, after an exception in this rank's main thread.

        Args:
            certain: false if `own` may be the consequence of another rank's failure. It is then reported only if no
                other failure becomes known in the time in which a dead rank is found.
        """
        if certain:
            return self.report(own)
        self._heartbeat_timeout_seconds = BROKEN_CONNECTION_TIMEOUT_SECONDS
        limit = self._clock() + self._heartbeat_timeout_seconds + 4 * POLL_SECONDS
        while self._clock() < limit:
            known = self.first_failure()
            if known is not None:
                return known
            time.sleep(0.1)
        return self.report(own)

    def first_failure(self) -> RankFailure | None:
        """Return the failure that ends this run, if one has been reported."""
        try:
            with self._lock:
                found = self._store.get(_FAILURE) if self._store.check([_FAILURE]) else None
            return None if found is None else RankFailure(**json.loads(found))
        except Exception:  # noqa: BLE001 (the store is gone)
            return RankFailure(0, "rank_lost", _LOST.format("the store of the ranks"))

    def mark_record_written(self) -> None:
        """Announce to the other ranks that the record is on disk."""
        # Without a store they end by themselves.
        with suppress(Exception), self._lock:
            self._store.set(_WRITTEN, "1")

    def wait_until_written(self) -> None:
        """Wait for the record: the launcher stops all processes as soon as one has ended."""
        limit = self._clock() + WRITE_TIMEOUT_SECONDS
        while self._clock() < limit:
            try:
                if self._has(_WRITTEN):
                    return
            except Exception:  # noqa: BLE001 (the store is gone, and with it the reason to wait)
                return
            time.sleep(0.05)

    def stacks(self) -> dict[int, str]:
        """Return the stacks that the ranks published when the hang was found; a stopped process has none."""
        found = {}
        limit = self._clock() + 3 * POLL_SECONDS
        while len(found) < self._size and self._clock() < limit:
            for rank in range(self._size):
                if rank not in found and self._has(f"stacks/{rank}"):
                    with self._lock:
                        found[rank] = self._store.get(f"stacks/{rank}").decode(errors="replace")
            time.sleep(0.05)
        return found

    # In the thread

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                self.poll()
            except Exception:  # noqa: BLE001 (the store is gone)
                self._shut_down(RankFailure(0, "rank_lost", _LOST.format("its process")))
            self._closing.wait(POLL_SECONDS)

    def poll(self) -> None:
        """Publish this rank's heartbeat, read the others', and end this process if the run has failed."""
        with self._lock:
            self._polls += 1
            beat = f"{self._polls}:{self._heartbeat.beats}:{self._heartbeat.signs}:{int(_is_elsewhere())}"
            self._store.set(f"heartbeat/{self._rank}", beat)
            published = json.loads(self._store.get(_FAILURE)) if self._store.check([_FAILURE]) else None
        if published is not None:
            self._shut_down(RankFailure(**published))
            return
        # Rank 0 watches all; all watch rank 0.
        self._read_heartbeats(range(self._size) if self._rank == 0 else (0,))
        failure = self._find_lost_rank() or self._find_hang()
        if failure is not None:
            self._shut_down(self._publish_failure(failure))

    def _read_heartbeats(self, ranks: Iterable[int]) -> None:
        now = self._clock()
        for rank in ranks:
            seen = self._seen[rank]
            if not self._has(f"heartbeat/{rank}"):
                continue
            with self._lock:
                heartbeat = self._store.get(f"heartbeat/{rank}").decode()
            if heartbeat != seen.heartbeat:
                seen.heartbeat, seen.heartbeat_at = heartbeat, now
            _, progress, signs, is_elsewhere = map(int, heartbeat.split(":"))
            seen.is_elsewhere = bool(is_elsewhere)
            if (progress, signs) != (seen.progress, seen.signs):
                seen.progress, seen.signs, seen.progress_at = progress, signs, now

    def _find_lost_rank(self) -> RankFailure | None:
        now = self._clock()
        for rank in range(self._size) if self._rank == 0 else (0,):
            if rank != self._rank and now - self._seen[rank].heartbeat_at > self._heartbeat_timeout_seconds:
                return RankFailure(rank, "rank_lost", _LOST.format("its process"))
        return None

    def _find_hang(self) -> RankFailure | None:
        if self._rank != 0:
            return None
        now = self._clock()
        if any(now - seen.progress_at <= self._hung_seconds for seen in self._seen.values()):
            return None
        # Tensor parallelism and pipelines make all ranks stop within the same step.
        behind = min(self._seen, key=lambda rank: (not self._seen[rank].is_elsewhere, self._seen[rank].progress))
        why = "waits for no other rank" if self._seen[behind].is_elsewhere else "is the furthest behind"
        return RankFailure(
            behind,
            "hung",
            f"no progress for {self._hung_seconds:g} s, and this rank {why}; the stacks of all ranks are in hung.txt; "
            "raise parallel.timeout_seconds if a step can take longer",
        )

    def _shut_down(self, failure: RankFailure) -> None:
        now = self._clock()
        if self._failed_at is None:
            self._failed_at = now
            if failure.status == "hung":
                self._publish_stacks()
        if now - self._failed_at >= self._end_timeout_seconds and not self._closing.is_set():
            self._force_exit(failure)

    def _publish_stacks(self) -> None:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            text = file.read(MAX_STACK_BYTES).decode(errors="replace")
        with self._lock:
            self._store.set(f"stacks/{self._rank}", text)

    def _has(self, key: str) -> bool:
        with self._lock:
            return self._store.check([key])


def _is_elsewhere() -> bool:
    """Return whether the main thread is in code of neither PyTorch nor the harness: then it waits for no other rank.

    A thread that waits for a device, and with it maybe for other ranks, is in the code of one of the two.
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return False
    file = Path(frame.f_code.co_filename)
    in_torch = any(part == "torch" or part.startswith("torch_") for part in file.parts)
    return not in_torch and not file.is_relative_to(_PACKAGE)


_PACKAGE = Path(__file__).resolve().parents[2]
_LOST = (
    "{} stopped responding: it was killed, its host ran out of memory, or the connection to it broke; see the "
    "kernel's log on that host"
)


def rendezvous(store: Store, rank: int, size: int, *, timeout_seconds: float,
               clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
    """Wait until every rank has joined, and check that each is there once and all have the same world size.

    Raises:
        ConfigError: two processes have the same rank, the world sizes differ, or a rank does not join in time.
    """
    if store.add(f"joined/{rank}", 1) != 1:
        raise ConfigError(
            f"RANK: two processes were started as rank {rank} of {size}; give each its own, or let torchrun do it"
        )
    first = store.compare_set("size", "", str(size)).decode()
    if first != str(size):
        raise ConfigError(
            f"WORLD_SIZE: rank {rank} was started with {size}, another rank with {first}; start all with the same"
        )
    began, said = clock(), False
    while not store.check([f"joined/{other}" for other in range(size)]):
        missing = [str(other) for other in range(size) if not store.check([f"joined/{other}"])]
        if rank == 0 and not said and clock() - began >= QUIET_SECONDS:
            log.info(f"waits for {', '.join(missing)} of the ranks 0 to {size - 1} (limit {timeout_seconds:g} s)")
            said = True
        if clock() - began >= timeout_seconds:
            raise ConfigError(
                f"WORLD_SIZE: {', '.join(missing)} of the ranks 0 to {size - 1} did not join within "
                f"{timeout_seconds:g} s; check that all were started and reach MASTER_ADDR"
            )
        time.sleep(0.05)
