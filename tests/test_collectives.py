"""Ranks and CoordinatedStop, with one process or a fake second one; integration/test_parallel.py has several."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from harness.signals import StopRequest
from harness.training.distributed.collectives import CoordinatedStop, Ranks
from harness.workload.digest import BatchDigest
from harness.world import World


def test_a_single_rank_gets_its_own_values() -> None:
    ranks, digest = Ranks(), BatchDigest()
    digest.add_step(1, "ab")
    assert ranks.gather("x") == ["x"]
    assert ranks.mean([0.1, 0.2]) == [0.1, 0.2]
    assert ranks.all_max(3, 4) == [3, 4]
    assert ranks.broadcast_from_main(lambda: 7) == 7
    assert ranks.combined_digest(digest) == digest.hexdigest()


class TwoRanks(Ranks):
    """Rank 0 of two; the other one's answers are given."""

    def __init__(self, others: list[int]) -> None:
        super().__init__(World(0, 2, 0, 2, is_distributed=True))
        self.others, self.asked = others, 0

    def all_max(self, *values: int) -> list[int]:
        self.asked += 1
        other = self.others.pop(0) if self.others else 0
        return [max(values[0], other), values[1]]


class TestCoordinatedStop:
    def make_stop(self, ranks: Any, step_seconds: float) -> tuple[CoordinatedStop, StopRequest]:
        request, now = StopRequest(), [0.0]

        def clock() -> float:
            return now[0]

        stop = CoordinatedStop(ranks, request, clock=clock)
        ask = stop.requested

        def step() -> bool:
            now[0] += step_seconds
            return ask()

        stop.requested = step  # type: ignore[method-assign]
        return stop, request

    def test_a_single_rank_stops_at_once(self) -> None:
        request = StopRequest()
        stop = CoordinatedStop(Ranks(), request)
        assert not stop.requested()
        request.request(signal.SIGTERM)
        assert stop.requested()

    @pytest.mark.parametrize(("step_seconds", "expected"), [(0.01, 12), (0.1, 103), (2.0, 1000)])
    def test_the_others_are_asked_about_once_a_second(self, step_seconds: float, expected: int) -> None:
        ranks = TwoRanks([])
        stop, _ = self.make_stop(ranks, step_seconds)
        assert not any(stop.requested() for _ in range(1000))
        assert ranks.asked == pytest.approx(expected, abs=expected // 8 + 1)

    def test_a_request_to_another_rank_stops_this_one_too(self) -> None:
        stop, request = self.make_stop(TwoRanks([0, 0, signal.SIGTERM]), 2.0)
        assert [stop.requested() for _ in range(4)] == [False, False, True, True]
        assert request.signal_number == signal.SIGTERM

    def test_once_agreed_no_rank_is_asked_again(self) -> None:
        ranks = TwoRanks([])
        stop, request = self.make_stop(ranks, 2.0)
        request.request(signal.SIGINT)
        assert stop.requested()
        assert stop.requested()
        assert ranks.asked == 1
