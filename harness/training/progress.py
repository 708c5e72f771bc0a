"""What the user sees while a run goes on: a bar on a terminal, plain lines elsewhere. Called between blocks only.

A reader that has gone away (a closed pipe, a terminal that hung up) ends the display, never the run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NoReturn, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows step, loss, tokens/s (if it is one of a device) and time left, from numbers that the loop has read."""

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
        self._clock = clock
        self._began = self._last_line = clock()
        self._done = self._done_before = done
        self._evaluation = ""
        self._bar: tqdm[NoReturn] | None = None
        self._closed = False
        if self._stream.isatty():
            self._show(self._open_bar)

    def block_done(self, step: int, loss: float, tokens: int, seconds: float) -> None:
        """Show that training has got to `step`; tokens and seconds are of the last block."""
        speed = f"{tokens / seconds:,.0f} tokens/s" if seconds > 0 else "? tokens/s"
        if not self._shows_speed:
            speed = "emulated"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed}{self._evaluation}", refresh=False)
            self._show(self._bar.update, step - self._done)
        before, self._done = self._done, step
        if self._bar is None:
            now = self._clock()
            due = now - self._last_line >= SECONDS_BETWEEN_LINES
            if due or before == self._done_before or step == self._steps:
                self._last_line = now
                left = (now - self._began) / (step - self._done_before) * (self._steps - step)
                self._say(f"step {step}/{self._steps}  loss {loss:.4f}  {speed}  {left:.0f} s left")

    def evaluated(self, step: int, loss: float) -> None:
        """Show an evaluation's loss."""
        self._evaluation = f", eval {loss:.4f}"
        if self._bar is None:
            self._say(f"step {step}/{self._steps}  eval loss {loss:.4f}")

    def close(self) -> None:
        """Leave the last state of the display standing."""
        if self._bar is not None:
            self._show(self._bar.close)

    def _open_bar(self) -> None:
        # Without a speed to show, the bar's own steps a second go too.
        form = None if self._shows_speed else "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self._bar = tqdm(
            total=self._steps,
            initial=self._done,
            unit="step",
            file=self._stream,
            dynamic_ncols=True,
            bar_format=form,
        )

    def _say(self, line: str) -> None:
        self._show(lambda: print(line, file=self._stream, flush=True))

    def _show(self, draw: Callable[..., object], *arguments: object) -> None:
        if self._closed:
            return
        try:
            draw(*arguments)
        except OSError:
            self._closed = True


class NoProgress:
    """Stands in for the display where another process shows it."""

    def block_done(self, step: int, loss: float, tokens: int, seconds: float) -> None:
        return None

    def evaluated(self, step: int, loss: float) -> None:
        return None

    def close(self) -> None:
        return None
