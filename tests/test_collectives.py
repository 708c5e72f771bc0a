"""What ranks tell each other: of one rank alone here, of several in integration/test_parallel.py; and when all stop."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from harness.signals import StopRequest
from harness.training.distributed.collectives import CoordinatedStop, Ranks
from harness.workload.digest import BatchDigest
from harness.world import World


def test_alone_everything_is_ones_own() -> None:
    ranks, digest = Ranks(), BatchDigest()
    digest.add_step(1, "ab")
    assert ranks.gather("x") == ["x"]
    assert ranks.mean([0.1, 0.2]) == [0.1, 0.2]
    assert ranks.all_max(3, 4) == [3, 4]
    assert ranks.broadcast_from_main(lambda: 7) == 7
    assert ranks.combined_digest(digest) == digest.hexdigest()


class TwoRanks(Ranks):
    """Rank 0 of two, the other one being a script."""

    def __init__(self, others: list[int]) -> None:
        super().__init__(World(0, 2, 0, 2, is_distributed=True))
        self.others, self.asked = others, 0

    def all_max(self, *values: int) -> list[int]:
        self.asked += 1
        other = self.others.pop(0) if self.others else 0
        return [max(values[0], other), values[1]]


class TestStopAgreement:
    def agreement(self, ranks: Any, step_seconds: float) -> tuple[CoordinatedStop, StopRequest]:
        request, now = StopRequest(), [0.0]

        def clock() -> float:
            return now[0]

        agreement = CoordinatedStop(ranks, request, clock=clock)
        ask = agreement.requested

        def step() -> bool:
            now[0] += step_seconds
            return ask()

        agreement.requested = step  # type: ignore[method-assign]
        return agreement, request

    def test_alone_a_request_is_seen_at_once(self) -> None:
        request = StopRequest()
        agreement = CoordinatedStop(Ranks(), request)
        assert not agreement.requested()
        request.request(signal.SIGTERM)
        assert agreement.requested()

    @pytest.mark.parametrize(("step_seconds", "expected"), [(0.01, 12), (0.1, 103), (2.0, 1000)])
    def test_the_others_are_asked_about_once_a_second(self, step_seconds: float, expected: int) -> None:
        ranks = TwoRanks([])
        agreement, _ = self.agreement(ranks, step_seconds)
        assert not any(agreement.requested() for _ in range(1000))
        assert ranks.asked == pytest.approx(expected, abs=expected // 8 + 1)

    def test_what_another_rank_was_told_stops_this_one_too(self) -> None:
        agreement, request = self.agreement(TwoRanks([0, 0, signal.SIGTERM]), 2.0)
        assert [agreement.requested() for _ in range(4)] == [False, False, True, True]
        assert request.signal_number == signal.SIGTERM

    def test_once_agreed_nobody_is_asked_again(self) -> None:
        ranks = TwoRanks([])
        agreement, request = self.agreement(ranks, 2.0)
        request.request(signal.SIGINT)
        assert agreement.requested()
        assert agreement.requested()
        assert ranks.asked == 1
