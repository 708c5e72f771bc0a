"""Terminal table of many records."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.analysis.run_table import RunTable, TableGroup
from harness.report.console import WIDTH, PlainConsole
from harness.report.run_table_content import COLUMNS, cells, notes, outlier_sentences
from harness.text import printable


def print_run_table(table: RunTable) -> None:
    """Print every group, fastest entry first, with its outliers by name."""
    console = PlainConsole(WIDTH)
    for number, group in enumerate(table.groups):
        if number:
            console.print()
        _print_group(console, group)


def _print_group(console: Console, group: TableGroup) -> None:
    console.print(Text(printable(group.title), style="bold"))
    grid = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for heading, numeric in COLUMNS:
        grid.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    odd = {id(entry) for entry in group.outliers}
    for rank, entry in enumerate(group.entries, 1):
        grid.add_row(*map(Text, cells(group, entry, rank)), style="yellow" if id(entry) in odd else "")
    console.print(grid)
    for line in outlier_sentences(group):
        console.print(Text(f"outlier: {line}", style="bold"))
    for line in notes(group):
        console.print(Text(line))
