"""Terminal table of an audit, as `audit` and `claim` print it, 100 columns wide."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.analysis.audit.rows import IMPOSSIBLE, INCONSISTENT, SUSPICIOUS
from harness.analysis.audit.summary import Audit, AuditedRow, Mean, judge_by_rows, rows_about
from harness.analysis.claims import Claim
from harness.analysis.format import interval, ratio, ratio_with_interval
from harness.report.console import WIDTH, PlainConsole
from harness.text import printable

STYLES = {IMPOSSIBLE: "bold red", INCONSISTENT: "bold red", SUSPICIOUS: "yellow"}
SOUND = "sound"
UNTESTED = "untested"
NO_MEAN = "No sound row has a ratio."


def print_audit(table: Audit, claim: Claim | None = None, console: Console | None = None) -> None:
    """Print every row with its findings, then the conclusion."""
    console = console or PlainConsole(WIDTH)
    for row in table.rows:
        console.print(
            Text.assemble((printable(heading(row)), "bold"), "  ", (grade(row), STYLES.get(row.grade or "", "green")))
        )
        console.print(_findings(row))
        console.print()
    for line in conclusion(table, claim):
        console.print(Text(printable(line)))


def heading(row: AuditedRow) -> str:
    """Return a row's name, its two chips, and the time ratio."""
    chips = " against ".join(text for side in ("subject", "reference") if (text := row.row.text(side)) is not None)
    shown = "" if row.ratio is None else f"time ratio {ratio(row.ratio)}"
    return ", ".join(part for part in (row.row.name, chips, shown) if part)


def grade(row: AuditedRow) -> str:
    """Return the grade of a row: its worst finding, or `sound`, with `unproven` if something is missing."""
    if not row.sound:
        return str(row.grade)
    if not row.tested:
        return UNTESTED
    return SOUND if row.grade is None else f"{SOUND}, {row.grade}"


def conclusion(table: Audit, claim: Claim | None) -> list[str]:
    """Return the lines about the table as a whole, and about the claim."""
    sound = sum(row.sound for row in table.rows)
    untested = sum(row.sound and not row.tested for row in table.rows)
    lines = [f"{sound} of {len(table.rows)} rows are sound{f', {untested} of them untested' * (untested > 0)}."]
    lines += [f"Sound rows of {pair.subject} against {pair.reference}: {mean_text(pair.mean)}." for pair in table.means]
    if not table.means:
        lines.append(NO_MEAN)
    if claim is not None:
        about = rows_about(claim, table)
        verdict = judge_by_rows(claim, table)
        sound_about = sum(row.sound for row in about)
        lines.append(
            f"Claim {claim.name} ({len(about)} rows are about it, {sound_about} of them sound): {verdict.verdict}. "
            f"{verdict.summary}"
        )
    return lines


def mean_text(mean: Mean) -> str:
    """Return a mean with its interval and its range, in words."""
    if mean.count == 1:
        return f"time ratio {ratio(mean.estimate)} (one row)"
    return (
        f"geometric mean of the time ratios {ratio_with_interval(mean.estimate, mean.low, mean.high)} "
        f"({mean.count} rows, taken for independent trials), "
        f"from {interval(mean.smallest, mean.largest)}"
    )


def _findings(row: AuditedRow) -> Table:
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in row.findings:
        grid.add_row(
            Text(f"  {finding.severity}", style=STYLES.get(finding.severity, "")),
            Text(finding.check),
            Text(printable(f"{finding.what}: {finding.why}")),
        )
    return grid
