"""Progress display: a bar on a terminal, lines elsewhere, log fields with log=json. Updated between timed intervals.

A closed pipe or terminal ends the display, never the run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NoReturn, TextIO

from tqdm import tqdm

from harness import log
from harness.training.observer import IntervalReport, LoopObserver

LINE_PERIOD_SECONDS = 10.0


class _Pace:
    """Timer of progress lines, with an estimate of the time left."""

    def __init__(self, steps: int, done: int, clock: Callable[[], float]) -> None:
        self._steps, self._done_before = steps, done
        self._clock = clock
        self._began = self._last_line = clock()
        self._first = True

    def seconds_left(self, step: int) -> float | None:
        """Return the estimated time of the remaining steps if a line is due now, else None."""
        now = self._clock()
        if not self._first and step != self._steps and now - self._last_line < LINE_PERIOD_SECONDS:
            return None
        self._first, self._last_line = False, now
        return (now - self._began) / (step - self._done_before) * (self._steps - step)


class Progress(LoopObserver):
    """Progress bar or lines: step, loss, tokens/s (unless the device is emulated) and time left."""

    def __init__(
        self,
        steps: int,
        *,
        done: int = 0,
        shows_speed: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = steps
        self._shows_speed = shows_speed
        self._stream = sys.stderr if stream is None else stream
        self._pace = _Pace(steps, done, clock)
        self._done = done
        self._evaluation = ""
        self._bar: tqdm[NoReturn] | None = None
        self._closed = False
        if self._stream.isatty():
            self._show(self._open_bar)

    def interval_done(self, report: IntervalReport) -> None:
        speed = "emulated"
        if self._shows_speed:
            known = report.tokens_per_second
            speed = f"{known:,.0f} tokens/s" if known is not None else "? tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {report.loss:.4f}, {speed}{self._evaluation}", refresh=False)
            self._show(self._bar.update, report.last_step - self._done)
        self._done = report.last_step
        if self._bar is None and (left := self._pace.seconds_left(self._done)) is not None:
            self._print(f"step {self._done}/{self._steps}  loss {report.loss:.4f}  {speed}  {left:.0f} s left")

    def evaluated(self, step: int, loss: float) -> None:
        self._evaluation = f", eval {loss:.4f}"
        if self._bar is None:
            self._print(f"step {step}/{self._steps}  eval loss {loss:.4f}")

    def close(self) -> None:
        """Close the bar, which stays visible."""
        if self._bar is not None:
            self._show(self._bar.close)

    def _open_bar(self) -> None:
        # Where no speed is shown, the bar's own steps per second are left out too.
        form = None if self._shows_speed else "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self._bar = tqdm(
            total=self._steps,
            initial=self._done,
            unit="step",
            file=self._stream,
            dynamic_ncols=True,
            bar_format=form,
        )

    def _print(self, line: str) -> None:
        self._show(lambda: print(line, file=self._stream, flush=True))

    def _show(self, draw: Callable[..., object], *arguments: object) -> None:
        if self._closed:
            return
        try:
            draw(*arguments)
        except OSError:
            self._closed = True


class JsonProgress(LoopObserver):
    """Progress as log lines with fields: at the first and last step and every ten seconds."""

    def __init__(
        self, steps: int, *, done: int = 0, shows_speed: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps, self._shows_speed = steps, shows_speed
        self._pace = _Pace(steps, done, clock)

    def interval_done(self, report: IntervalReport) -> None:
        left = self._pace.seconds_left(report.last_step)
        if left is None:
            return
        fields = {
            "step": report.last_step,
            "steps": self._steps,
            "phase": report.phase,
            "loss": report.loss,
            "gradient_norm": report.gradient_norms[-1],
            "learning_rate": report.learning_rates[-1],
        }
        if self._shows_speed:
            fields |= {
                "tokens_per_second": report.tokens_per_second,
                "step_seconds": report.seconds / report.steps,
            }
        log.info("training", **fields, seconds_left=left)

    def evaluated(self, step: int, loss: float) -> None:
        log.info("evaluated", step=step, steps=self._steps, loss=loss)
