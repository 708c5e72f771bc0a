"""Terminal table of a comparison of suites: the verdict, then a row a workload; 100 columns wide."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from harness.analysis.suite_verdict import SuiteComparison
from harness.report.console import WIDTH, PlainConsole
from harness.report.suite_content import COLUMNS, claim_sentence, details, note, suite_rows
from harness.text import printable


def print_suite_comparison(found: SuiteComparison) -> None:
    """Print the verdict, a row for each workload, and why a workload has no ratio."""
    console = PlainConsole(WIDTH)
    console.print(Text(printable(found.summary), style="bold"))
    if found.claim is not None:
        console.print(Text(claim_sentence(found) or "", style="bold"))
        console.print(Text(printable(found.claim.citation)))
    console.print()
    console.print(Text(printable(f"suite {found.suite.name}: {found.other} against {found.reference}")))
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for heading, numeric in COLUMNS:
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for cells in suite_rows(found):
        table.add_row(*map(Text, cells))
    console.print(table)
    for line in details(found):
        console.print(Text(line))
    console.print(Text(note(found)))
