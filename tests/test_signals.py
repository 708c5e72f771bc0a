"""SIGINT and SIGTERM: deferred while the loop runs, at once outside it, and a second one always at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.errors import Interrupted
from harness.signals import stop_on_signals


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
