"""Terminal table of a comparison, as `compare` prints it: verdict, gates, numbers, cautions; 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.analysis.verdict import Comparison, Pair
from harness.report import content
from harness.report.console import WIDTH, PlainConsole
from harness.text import printable

STYLES = {content.PASS: "green", content.FAIL: "bold red", content.NOT_CHECKED: "yellow"}
# Headings of columns, and whether they hold numbers.
NUMBER_COLUMNS = (
    ("", False),
    (content.REFERENCE, True),
    (content.OTHER, True),
    ("unit", False),
    ("ratio", True),
    ("95 % interval", True),
    ("repeats", False),
    ("", False),
)
RATIO_COLUMN = "{title} ratio"
SIDE_COLUMNS = (("side", False), ("verdict", False), (RATIO_COLUMN, True), ("95 % interval", True),
                ("repeats", True))  # fmt: skip


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the verdict first, then gates, numbers and cautions."""
    console = console or PlainConsole(WIDTH)
    for pair in comparison.pairs:
        console.print(Text(printable(pair.summary), style="bold"))
        if claim := content.claim_sentence(comparison, pair):
            console.print(Text(claim, style="bold"))
    if statement := content.claim_statement(comparison):
        console.print(Text(statement))
    several = len(comparison.pairs) > 1
    if several:
        _heading(console, "summary")
        console.print(_sides(comparison))
    else:
        console.print()
        console.print(_legend(comparison.pairs[0]))
    for pair in comparison.pairs:
        if several:
            _heading(console, f"{printable(pair.other.label)} against {printable(comparison.reference.label)}")
            console.print(_legend(pair))
        _print_pair(console, pair, comparison.margin)
    _print_cautions(console, comparison)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.rule(Text(text, style="bold"), align="left", characters="-", style="")


def _grid(*, header: bool = False) -> Table:
    return Table(box=None, pad_edge=False, show_header=header, header_style="bold", show_edge=False)


def _legend(pair: Pair) -> Table:
    """Return a table of the reference and the other side, with their devices."""
    grid = _grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for role, side in ((content.REFERENCE, pair.reference), (content.OTHER, pair.other)):
        grid.add_row(Text(role), Text(f"{printable(side.label)}: {content.describe(side)}"))
    return grid


def _sides(comparison: Comparison) -> Table:
    title = comparison.headline_title
    table = _table([(name.format(title=title), numeric) for name, numeric in SIDE_COLUMNS])
    for row in content.side_rows(comparison):
        _add(table, row.label, row.verdict, row.ratio, row.interval, row.repeats)
    return table


def _print_pair(console: Console, pair: Pair, margin: float) -> None:
    console.print()
    console.print(_gates(pair))
    if any(gate.passed is False for gate in pair.gates):
        console.print(Text(content.GATES_STOP))
    rows = content.number_rows(pair)
    if not rows:
        return
    console.print()
    console.print(_numbers(rows))
    console.print()
    console.print(_values(pair, rows))
    console.print()
    for line in content.notes(pair, margin):
        console.print(Text(line))


def _gates(pair: Pair) -> Table:
    grid = _grid(header=True)
    grid.add_column("gate", no_wrap=True)
    grid.add_column("", no_wrap=True)
    grid.add_column("", overflow="fold")
    for row in content.gate_rows(pair):
        lines = [row.summary]
        if row.state == content.FAIL:
            lines += [f"- {detail}" for detail in row.details]
        grid.add_row(Text(row.name), Text(row.state, style=STYLES[row.state]), Text("\n".join(lines)))
    return grid


def _numbers(rows: Iterable[content.NumberRow]) -> Table:
    table = _table(NUMBER_COLUMNS)
    for row in rows:
        _add(table, row.title, row.reference_mean, row.other_mean, row.unit, row.ratio, row.interval, row.repeats,
             row.strength)  # fmt: skip
    return table


def _values(pair: Pair, rows: Iterable[content.NumberRow]) -> Table:
    """Return a table of every process's value, in the order of the processes."""
    grid = _grid(header=True)
    grid.add_column("each process (* outlier)", no_wrap=True)
    grid.add_column("", no_wrap=True)
    grid.add_column("", overflow="fold")
    for row in rows:
        for role, values in ((content.REFERENCE, row.reference), (content.OTHER, row.other)):
            shown = "  ".join(value.text + ("*" if value.outlier else "") for value in values)
            title = f"{row.title}, {row.unit}" if role == content.REFERENCE else ""
            grid.add_row(Text(title), Text(role), Text(shown))
    return grid


def _print_cautions(console: Console, comparison: Comparison) -> None:
    found = content.cautions(comparison)
    if not found:
        return
    console.print()
    grid = _grid(header=True)
    grid.add_column("caution", no_wrap=True)
    grid.add_column("", overflow="fold")
    for caution in found:
        grid.add_row(Text(caution.name), Text(f"{caution.side}: {caution.text}"))
    console.print(grid)


def _table(columns: Iterable[tuple[str, bool]]) -> Table:
    table = _grid(header=True)
    for heading, numeric in columns:
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    # As Text: a str would have its :words: turned into emoji.
    table.add_row(*(Text(cell) for cell in cells))
