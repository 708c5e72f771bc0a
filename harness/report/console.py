"""Console for every printed table, and the table of names and texts that most screens have."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NoReturn, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.text import printable

WIDTH = 100


class PlainConsole(Console):
    """A console at least WIDTH columns wide, without markup, whose broken pipes `__main__` handles."""

    def __init__(self, width: int | None = None, file: TextIO | None = None) -> None:
        super().__init__(width=width, file=file, highlight=False, markup=False, emoji=False, soft_wrap=False)
        if width is None and self.width < WIDTH:
            self.width = WIDTH

    def on_broken_pipe(self) -> NoReturn:
        # rich would exit with code 1, although the command succeeded.
        raise sys.exc_info()[1] or BrokenPipeError


def key_value_table(rows: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """Return a table of names and texts, which wrap in their column and may come from records."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(printable(text)))
    return table
