"""The console that every printed table goes through."""

from __future__ import annotations

import sys
from typing import NoReturn, TextIO

from rich.console import Console

WIDTH = 100


class PlainConsole(Console):
    """At least 100 columns wide, no color guesses, and a reader that went away is the door's to handle."""

    def __init__(self, width: int | None = None, file: TextIO | None = None) -> None:
        super().__init__(width=width, file=file, highlight=False, markup=False, emoji=False, soft_wrap=False)
        if width is None and self.width < WIDTH:
            self.width = WIDTH

    def on_broken_pipe(self) -> NoReturn:
        # rich would end the process with code 1, although what was asked for is done.
        raise sys.exc_info()[1] or BrokenPipeError
