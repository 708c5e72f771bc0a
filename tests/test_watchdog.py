"""The watchdog, with a store in memory and a clock that the test sets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import cycle
from typing import Any

import pytest
import torch

from harness import log
from harness.errors import ConfigError
from harness.training.distributed import watchdog
from harness.training.distributed.process_group import _DistributedProcesses
from harness.training.distributed.watchdog import (
    BROKEN_CONNECTION_TIMEOUT_SECONDS,
    END_TIMEOUT_SECONDS,
    HEARTBEAT_TIMEOUT_SECONDS,
    WRITE_TIMEOUT_SECONDS,
    RankFailure,
    Watchdog,
    rendezvous,
)
from harness.training.monitoring.heartbeat import Heartbeat
from harness.world import World

OOM = RankFailure(1, "oom", "out of memory; use less")


class MemoryStore:
    """A store like those of torch.distributed, which loses its connection if `gone` is set."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.gone = False

    def _reach(self) -> None:
        if self.gone:
            raise RuntimeError("Connection reset by peer")

    def set(self, key: str, value: str) -> None:
        self._reach()
        self.values[key] = value

    def get(self, key: str) -> bytes:
        self._reach()
        return self.values[key].encode()

    def add(self, key: str, amount: int) -> int:
        self._reach()
        self.values[key] = str(int(self.values.get(key, "0")) + amount)
        return int(self.values[key])

    def check(self, keys: list[str]) -> bool:
        self._reach()
        return all(key in self.values for key in keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        self._reach()
        if self.values.get(key, "") == expected:
            self.values[key] = desired
        return self.values[key].encode()


class Scene:
    """Ranks that share a store and a clock; their threads are never started, since the test polls."""

    def __init__(self, size: int, hung_seconds: float = 100, place: Callable[[int], str] = lambda rank: "") -> None:
        self.store, self.now = MemoryStore(), 0.0
        self.force_exited: dict[int, RankFailure] = {}
        self.heartbeats = [Heartbeat() for _ in range(size)]
        self.ranks = [
            Watchdog(
                self.store,
                rank,
                size,
                self.heartbeats[rank],
                hung_seconds=hung_seconds,
                force_exit=self._force_exit(rank),
                clock=lambda: self.now,
                place=place,
            )
            for rank in range(size)
        ]

    def _force_exit(self, rank: int) -> Callable[[RankFailure], None]:
        def note(failure: RankFailure) -> None:
            self.force_exited.setdefault(rank, failure)

        return note

    def pass_time(self, seconds: float, alive: set[int], busy: set[int] | None = None) -> None:
        """Advance the clock; every living rank polls once per second, and the busy ones make progress."""
        for _ in range(int(seconds)):
            self.now += 1
            for rank in sorted(alive):
                if busy is None or rank in busy:
                    self.heartbeats[rank].beat()
                self.ranks[rank].poll()


class TestReport:
    def test_the_first_failure_counts(self) -> None:
        scene = Scene(3)
        second = RankFailure(2, "rank_lost", "connection closed")
        assert scene.ranks[1].report(OOM) == OOM
        assert scene.ranks[2].report(second) == OOM
        assert scene.ranks[0].first_failure() == OOM

    def test_an_echo_waits_for_its_cause(self) -> None:
        scene = Scene(2)
        scene.ranks[1].report(OOM)
        echo = RankFailure(0, "rank_lost", "connection closed")
        assert scene.ranks[0].resolve_failure(echo, certain=False) == OOM

    def test_an_echo_that_nothing_explains_is_reported(self) -> None:
        scene = Scene(2)
        echo = RankFailure(0, "rank_lost", "connection closed")
        ticks = iter(range(1000))
        scene.ranks[0]._clock = lambda: float(next(ticks))
        assert scene.ranks[0].resolve_failure(echo, certain=False) == echo

    def test_without_a_store_a_ranks_own_failure_stands(self) -> None:
        scene = Scene(2)
        scene.store.gone = True
        assert scene.ranks[1].report(OOM) == OOM

    def test_message_names_the_rank_unless_all_failed(self) -> None:
        assert str(OOM) == "rank 1: out of memory; use less"
        assert str(RankFailure(None, "diverged", "the loss became nan")) == "the loss became nan"


class TestWatch:
    def test_healthy_ranks_have_no_failure(self) -> None:
        scene = Scene(3)
        scene.pass_time(1000, {0, 1, 2})
        assert scene.force_exited == {}
        assert scene.ranks[0].first_failure() is None

    @pytest.mark.parametrize("dead", [1, 2])
    def test_rank_0_finds_a_dead_rank_and_all_end(self, dead: int) -> None:
        scene = Scene(3)
        scene.pass_time(20, {0, 1, 2})
        alive = {0, 1, 2} - {dead}
        scene.pass_time(HEARTBEAT_TIMEOUT_SECONDS, alive)
        assert scene.ranks[0].first_failure() is None
        scene.pass_time(2, alive)
        known = scene.ranks[0].first_failure()
        assert known is not None
        assert (known.rank, known.status) == (dead, "rank_lost")
        assert "stopped responding" in known.message
        # The main thread has its time to end by itself.
        assert scene.force_exited == {}
        scene.pass_time(END_TIMEOUT_SECONDS + 2, alive)
        assert set(scene.force_exited) == alive
        assert all(failure.rank == dead for failure in scene.force_exited.values())

    def test_after_a_broken_connection_the_timeout_is_shorter(self) -> None:
        scene = Scene(2)
        scene.pass_time(5, {0, 1})
        scene.ranks[0]._heartbeat_timeout_seconds = BROKEN_CONNECTION_TIMEOUT_SECONDS  # as resolve_failure does
        scene.pass_time(BROKEN_CONNECTION_TIMEOUT_SECONDS + 2, {0})
        known = scene.ranks[0].first_failure()
        assert known is not None
        assert known.status == "rank_lost"

    def test_the_others_find_rank_0_dead(self) -> None:
        scene = Scene(3)
        scene.pass_time(5, {0, 1, 2})
        scene.pass_time(HEARTBEAT_TIMEOUT_SECONDS + END_TIMEOUT_SECONDS + 3, {1, 2})
        assert set(scene.force_exited) == {1, 2}
        assert all(failure.rank == 0 for failure in scene.force_exited.values())

    def test_ranks_without_progress_hang(self) -> None:
        scene = Scene(3, hung_seconds=30)
        scene.pass_time(5, {0, 1, 2})
        # All wait at the next collective; rank 2 is the furthest behind.
        scene.heartbeats[0].beat()
        scene.heartbeats[1].beat()
        scene.pass_time(30, {0, 1, 2}, busy=set())
        assert scene.ranks[0].first_failure() is None
        scene.pass_time(3, {0, 1, 2}, busy=set())
        known = scene.ranks[0].first_failure()
        assert known is not None
        assert (known.rank, known.status) == (2, "hung")
        stacks = scene.ranks[0].stacks()
        assert set(stacks) == {0, 1, 2}
        assert all("test_watchdog.py" in text for text in stacks.values())

    def test_of_ranks_that_stopped_together_the_one_that_waits_for_none_hangs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As under tensor parallelism and in pipelines: within a step no rank makes more progress than another."""
        scene = Scene(3, hung_seconds=30, place=lambda rank: f"tensor {rank}")
        polled = cycle([False, True, False])
        monkeypatch.setattr(watchdog, "_is_elsewhere", lambda: next(polled))
        scene.pass_time(3, {0, 1, 2})
        scene.pass_time(33, {0, 1, 2}, busy=set())
        known = scene.ranks[0].first_failure()
        assert known is not None
        assert (known.rank, known.status, known.place) == (1, "hung", "tensor 1")
        assert str(known).startswith("rank 1 (tensor 1): no progress for 30 s, and this rank waits for no other rank")

    @pytest.mark.parametrize("in_torch", [True, False])
    def test_where_the_main_thread_is(self, in_torch: bool) -> None:
        found: list[bool] = []
        done: Any = torch.futures.Future() if in_torch else threading.Event()

        def observe() -> None:
            time.sleep(0.2)
            found.append(watchdog._is_elsewhere())
            done.set_result(None) if in_torch else done.set()

        threading.Thread(target=observe).start()
        done.wait()
        assert found == [not in_torch]

    def test_one_slow_rank_among_busy_ones_does_not_hang(self) -> None:
        scene = Scene(2, hung_seconds=10)
        scene.pass_time(100, {0, 1}, busy={1})
        assert scene.ranks[0].first_failure() is None

    def test_a_main_thread_that_ends_is_not_killed(self) -> None:
        scene = Scene(2)
        scene.ranks[1].report(OOM)
        scene.pass_time(1, {0})
        scene.ranks[1].close()
        scene.ranks[0].close()
        scene.pass_time(100, {0})
        assert scene.force_exited == {}

    def test_a_main_thread_that_reported_has_time_to_wait_for_the_record(self) -> None:
        scene = Scene(2)
        scene.ranks[1].report(OOM)
        scene.pass_time(END_TIMEOUT_SECONDS + 2, {0, 1})
        assert set(scene.force_exited) == {0}
        scene.pass_time(WRITE_TIMEOUT_SECONDS, {1})
        assert set(scene.force_exited) == {0, 1}

    def test_waits_for_the_record(self) -> None:
        scene = Scene(2)
        scene.ranks[0].mark_record_written()
        scene.ranks[1].wait_until_written()


class TestRendezvous:
    def join(self, store: MemoryStore, rank: int, size: int) -> None:
        ticks = iter(range(100))
        rendezvous(store, rank, size, timeout_seconds=3, clock=lambda: float(next(ticks)))

    def test_all_join(self) -> None:
        store = MemoryStore()
        store.set("joined/1", "1")
        self.join(store, 0, 2)

    def test_a_missing_rank_is_named(self) -> None:
        store = MemoryStore()
        store.set("joined/2", "1")
        with pytest.raises(ConfigError, match=r"1, 3 of the ranks 0 to 3 did not join within 3 s"):
            self.join(store, 0, 4)

    def test_two_processes_of_one_rank(self) -> None:
        store = MemoryStore()
        store.set("joined/1", "1")
        with pytest.raises(ConfigError, match="two processes were started as rank 1 of 2"):
            self.join(store, 1, 2)

    def test_differing_numbers_of_ranks(self) -> None:
        store = MemoryStore()
        store.set("size", "3")
        with pytest.raises(ConfigError, match="rank 0 was started with 2, another rank with 3"):
            self.join(store, 0, 2)


def test_a_failure_survives_the_store() -> None:
    assert RankFailure(**json.loads(json.dumps(asdict(OOM)))) == OOM


class Ended(Exception):
    """Stand-in for the end of the process."""


def test_a_record_that_cannot_be_written_does_not_keep_a_hanging_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(failure: RankFailure) -> None:
        raise OSError(28, "No space left on device")

    def exit_now(code: int) -> None:
        raise Ended(code)

    log.set_up([], {})
    monkeypatch.setattr("os._exit", exit_now)
    processes = object.__new__(_DistributedProcesses)
    processes.world = World(size=2)
    processes.on_fatal(full)
    with pytest.raises(Ended, match="5"):
        processes._force_exit(RankFailure(1, "hung", "made no progress"))
    said = capsys.readouterr().err
    assert "error: rank 1: made no progress" in said
    assert "error: the run's end could not be written: [Errno 28] No space left on device" in said
