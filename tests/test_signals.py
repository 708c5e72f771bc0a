"""SIGINT and SIGTERM: deferred while the loop runs, at once outside it, and a second one always at once."""

from __future__ import annotations

import os
import signal

import pytest

from harness.errors import Interrupted
from harness.training.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
class TestStop:
    def test_outside_the_loop_it_ends_at_once(self, number: signal.Signals) -> None:
        with stop_on_signals(), pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), number)
        assert caught.value.exit_code == 128 + number

    def test_inside_the_loop_the_first_is_held_back_and_the_second_is_not(self, number: signal.Signals) -> None:
        with stop_on_signals() as stop, stop.deferred():
            assert not stop.requested()
            os.kill(os.getpid(), number)
            assert stop.requested()
            assert stop.signal_number == number
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), number)

    def test_handlers_are_put_back(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        with stop_on_signals():
            assert signal.getsignal(number) is not before
        assert signal.getsignal(number) is before


def test_is_no_exception_that_a_broad_except_would_swallow() -> None:
    assert not issubclass(Interrupted, Exception)
