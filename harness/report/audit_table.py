"""Terminal table of an audit, as `audit` and `claim` print it, 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from harness.analysis.audit.rows import IMPOSSIBLE, INCONSISTENT, SUSPICIOUS, AuditFinding
from harness.analysis.audit.summary import Audit, AuditedRow, Mean, judge_by_rows, rows_about
from harness.analysis.claims import Claim
from harness.analysis.format import interval, ratio, ratio_with_interval
from harness.report.console import WIDTH, PlainConsole
from harness.text import printable

STYLES = {IMPOSSIBLE: "bold red", INCONSISTENT: "bold red", SUSPICIOUS: "yellow"}
SOUND = "sound"
UNTESTED = "untested"
SHARED = "Most rows"
NO_MEAN = "No sound row has a ratio."


def print_audit(table: Audit, claim: Claim | None = None) -> None:
    """Print every row with its findings, then the conclusion."""
    console = PlainConsole(WIDTH)
    shared = table.shared
    for row in table.rows:
        console.print(
            Text.assemble((printable(heading(row)), "bold"), "  ", (grade(row), STYLES.get(row.grade or "", "green")))
        )
        if own := [finding for finding in row.findings if finding not in shared]:
            console.print(_findings(own))
            console.print()
    if shared:
        console.print(Text(SHARED, style="bold"))
        console.print(_findings(list(shared), [count_of(count, table) for count in shared.values()]))
        console.print()
    for line in table.unread:
        console.print(Text(printable(f"Left out: {line}")))
    for line in conclusion(table, claim):
        console.print(Text(printable(line)))


def heading(row: AuditedRow) -> str:
    """Return a row's name, its two chips, and the time ratio."""
    chips = " against ".join(text for side in ("subject", "reference") if (text := row.row.text(side)) is not None)
    shown = "" if row.ratio is None else f"time ratio {ratio(row.ratio)}"
    return ", ".join(part for part in (row.row.name, chips, shown) if part)


def grade(row: AuditedRow) -> str:
    """Return the grade of a row: its worst finding, or `sound`, with `unproven` if something is missing."""
    if row.faulty:
        return str(row.grade)
    if not row.tested:
        return UNTESTED
    return SOUND if row.grade is None else f"{SOUND}, {row.grade}"


def conclusion(table: Audit, claim: Claim | None) -> list[str]:
    """Return the lines about the table as a whole, and about the claim."""
    lines = [headline(table)]
    lines += [f"Sound rows of {pair.subject} against {pair.reference}: {mean_text(pair.mean)}." for pair in table.means]
    if not table.means and not table.one_sided:
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


def headline(table: Audit) -> str:
    """Return the line about all rows: how many are sound, or for a table of one side, how many are of which grade."""
    counts, total = table.counts, len(table.rows)
    left_out = f"; {len(table.unread)} left out" if table.unread else ""
    if table.one_sided:
        names = {"sound": "within the peak"}
        found = ", ".join(f"{count} {names.get(grade, grade)}" for grade, count in counts.items())
        return f"{_rows(total)} without a comparison: {found}{left_out}."
    untested = f", {counts['untested']} untested" if "untested" in counts else ""
    return f"{counts.get('sound', 0)} of {_rows(total)} {'is' if total == 1 else 'are'} sound{untested}{left_out}."


def count_of(count: int, table: Audit) -> str:
    """Return in how many of the rows something is found."""
    return "all" if count == len(table.rows) else f"{count} of {len(table.rows)}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def mean_text(mean: Mean) -> str:
    """Return a mean with its interval and its range, in words."""
    if mean.count == 1:
        return f"time ratio {ratio(mean.estimate)} (one row)"
    return (
        f"geometric mean of the time ratios {ratio_with_interval(mean.estimate, mean.low, mean.high)} "
        f"({mean.count} rows, taken for independent trials), "
        f"from {interval(mean.smallest, mean.largest)}"
    )


def _findings(findings: Sequence[AuditFinding], counts: Sequence[str] | None = None) -> Table:
    grid = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(2 if counts is None else 3):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for number, finding in enumerate(findings):
        grid.add_row(
            Text(f"  {finding.severity}", style=STYLES.get(finding.severity, "")),
            *([] if counts is None else [Text(counts[number])]),
            Text(finding.check),
            Text(printable(f"{finding.what}: {finding.why}")),
        )
    return grid
