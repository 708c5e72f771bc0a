"""Progress display: its lines, its bar, its log fields, and a broken display that never ends a run."""

from __future__ import annotations

import io
import json
from itertools import count

import pytest

from harness import log
from harness.training.monitoring.progress import JsonProgress, Progress
from harness.training.observer import IntervalReport, LoopObservers


def interval(last: int, loss: float, tokens: int, seconds: float, steps: int = 1) -> IntervalReport:
    first = last - steps + 1
    each = [seconds / steps] * steps
    return IntervalReport(
        "measured", first, last, 100, [loss] * steps, [0.5] * steps, [0.1] * steps, each, tokens, seconds
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class ClosedPipe(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_off_a_terminal_plain_lines_at_the_ends_and_every_ten_seconds() -> None:
    stream = io.StringIO()
    progress = Progress(40, stream=stream, clock=map(float, count(0, 6)).__next__)
    for step in (1, 10, 20, 30, 40):
        progress.interval_done(interval(step, 5.0 / step, 1000, 0.5))
    progress.evaluated(40, 0.2)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 1/40  loss 5.0000  2,000 tokens/s  234 s left",
        "step 20/40  loss 0.2500  2,000 tokens/s  18 s left",
        "step 40/40  loss 0.1250  2,000 tokens/s  0 s left",
        "step 40/40  eval loss 0.2000",
    ]


def test_on_a_terminal_a_bar_with_step_speed_loss_and_time_left() -> None:
    stream = Terminal()
    progress = Progress(4, stream=stream)
    progress.interval_done(interval(2, 1.5, 1000, 0.5))
    progress.evaluated(2, 1.25)
    progress.interval_done(interval(4, 1.0, 1000, 0.5))
    progress.close()
    shown = stream.getvalue()
    for part in ("4/4", "loss 1.0000", "2,000 tokens/s", "eval 1.2500", "step"):
        assert part in shown


def test_a_closed_pipe_ends_the_display_not_the_run() -> None:
    for terminal in (False, True):
        progress = Progress(4, stream=ClosedPipe(terminal))
        progress.interval_done(interval(1, 5.0, 10, 1.0))
        progress.evaluated(1, 5.0)
        progress.interval_done(interval(4, 5.0, 10, 1.0))
        progress.close()


def test_a_resumed_run_shows_its_first_interval_and_estimates_time_from_there() -> None:
    stream = io.StringIO()
    # Ten steps a second: 60 of 100 are left after 10 more than the 30 that were done.
    progress = Progress(100, done=30, stream=stream, clock=iter([0.0, 1.0]).__next__)
    progress.interval_done(interval(40, 2.0, 1000, 1.0))
    assert stream.getvalue() == "step 40/100  loss 2.0000  1,000 tokens/s  6 s left\n"
    terminal = Terminal()
    bar = Progress(100, done=30, stream=terminal)
    bar.interval_done(interval(40, 2.0, 1000, 1.0))
    bar.close()
    assert "40/100" in terminal.getvalue()


@pytest.mark.usefixtures("own_log")
def test_json_log_has_the_same_lines_with_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(["log=json"], {})
    progress = JsonProgress(40, clock=map(float, count(0, 6)).__next__)
    for step in (1, 10, 20, 30, 40):
        progress.interval_done(interval(step, 5.0 / step, 1000, 0.5))
    progress.evaluated(40, 0.2)
    progress.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line.get("step") for line in lines] == [1, 20, 40, 40]
    assert {key: value for key, value in lines[1].items() if key != "time"} == {
        "level": "info", "message": "training", "step": 20, "steps": 40, "phase": "measured", "loss": 0.25,
        "gradient_norm": 0.5, "learning_rate": 0.1, "tokens_per_second": 2000.0, "step_seconds": 0.5,
        "seconds_left": 18.0,
    }  # fmt: skip
    assert lines[3]["message"] == "evaluated"
    assert lines[3]["loss"] == 0.2


@pytest.mark.usefixtures("own_log")
def test_json_log_has_no_speed_of_an_emulated_device(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(["log=json"], {})
    JsonProgress(40, shows_speed=False).interval_done(interval(1, 5.0, 1000, 0.5))
    [line] = capsys.readouterr().err.splitlines()
    assert "tokens_per_second" not in line
    assert "step_seconds" not in line


def test_all_observers_are_called() -> None:
    one, two = io.StringIO(), io.StringIO()
    observers = LoopObservers(Progress(2, stream=one), Progress(2, stream=two))
    observers.interval_done(interval(2, 1.0, 10, 1.0))
    observers.evaluated(2, 0.5)
    observers.close()
    assert one.getvalue() == two.getvalue()
    assert one.getvalue().splitlines()[-1] == "step 2/2  eval loss 0.5000"
