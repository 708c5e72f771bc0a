"""Signals to stop: deferred while the loop runs, at once outside it, and a second one always at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.errors import Interrupted
from harness.signals import DUPLICATE_SIGNAL_SECONDS, STOP_SIGNALS, StopRequest, stop_on_signals, stop_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
class TestStop:
    def test_outside_the_loop_it_ends_at_once(self, number: signal.Signals) -> None:
        with stop_on_signals(), pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), number)
        assert caught.value.exit_code == 128 + number

    def test_inside_the_loop_the_first_is_held_back_and_a_later_one_is_not(self, number: signal.Signals) -> None:
        now = 0.0
        stop = StopRequest(clock=lambda: now)
        with stop.deferred():
            assert not stop.requested()
            stop.handle(number, None)
            assert stop.signal_number == number
            # A launcher forwards what a terminal or a scheduler has sent to all processes.
            now = DUPLICATE_SIGNAL_SECONDS - 0.1
            stop.handle(number, None)
            now += 0.2
            with pytest.raises(Interrupted):
                stop.handle(number, None)

    def test_outside_the_loop_its_duplicate_does_not_disturb_the_end(self, number: signal.Signals) -> None:
        stop = StopRequest(clock=lambda: 0.0)
        with pytest.raises(Interrupted):
            stop.handle(number, None)
        stop.handle(number, None)

    def test_a_launcher_does_not_disturb_the_report(self, number: signal.Signals) -> None:
        """torchrun stops rank 0 as soon as another rank has ended, which it then still has to name."""
        before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
        try:
            # A command has handlers of its own around those of its run.
            with stop_on_signals():
                with stop_on_signals(launched=True) as stop:
                    stop.begin_shutdown()
                os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def test_handlers_are_put_back(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        with stop_on_signals():
            assert signal.getsignal(number) is not before
        assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_the_caller_ignores_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_on_signals():
            os.kill(os.getpid(), number)
        assert number not in stop_signals()
    finally:
        signal.signal(number, before)


def test_is_no_exception_that_a_broad_except_would_swallow() -> None:
    assert not issubclass(Interrupted, Exception)


ENTRY_POINT = """
import os, signal, sys
import harness.__main__ as door
import harness.commands.doctor as doctor
doctor.main = lambda words: os.kill(os.getpid(), getattr(signal, words[0]))
sys.exit(door.main(["doctor", sys.argv[1]]))
"""

STARTING = """
import os, signal, subprocess, sys
from harness.errors import Interrupted
from harness.commands.child_process import run_process
start = subprocess.Popen.__init__
def interrupted_start(*arguments, **named):
    os.kill(os.getpid(), signal.SIGTERM)
    start(*arguments, **named)
subprocess.Popen.__init__ = interrupted_start
try:
    run_process([sys.executable, "-c", "import time; time.sleep(60)"])
except Interrupted as interrupted:
    sys.exit(interrupted.exit_code)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_command_is_told_to_stop_where_no_run_of_it_is_under_way(number: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENTRY_POINT, number.name], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (128 + number, "interrupted\n")


def test_a_signal_while_a_child_is_being_started_ends_the_child_too() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STARTING], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (143, "")
    assert time.monotonic() - began < 30
